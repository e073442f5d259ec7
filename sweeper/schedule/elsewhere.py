"""A driver's hold on a sweep whose store is not in its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from sweeper.store.claim import Claim, claimed, held
from sweeper.store.sweeps import StoredSweep
from sweeper.sweep_dir import SweepDir


class Elsewhere:
    """What is kept of a sweep beside its store, and this driver's claim to it.

    Neither where the store is in the sweep directory, whose own lock does.
    """

    def __init__(self, sweep: StoredSweep | None = None, claim: Claim | None = None) -> None:
        self._sweep, self._claim = sweep, claim

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken over, so that this one has to drain."""
        return self._claim is not None and self._claim.rival is not None

    def keep(self, folder: SweepDir) -> None:
        """Keep what the directory holds, for a driver anywhere."""
        if self._sweep is not None:
            self._sweep.keep(folder)

    def check(self) -> None:
        """Refuse to call a launch ended that another driver goes on with.

        Raises
        ------
        SweepDirError : another has taken over.
        """
        if self._sweep and self._claim and self._claim.rival:
            raise held(self._sweep.objects.location, self._claim.rival)


@contextlib.contextmanager
def held_elsewhere(
    folder: SweepDir, root: str, name: str, asked: Collection[str]
) -> Iterator[Elsewhere]:
    """Hold the sweep, or the share of one, against the drivers of other directories.

    The directory, which is held, then is what the driver before left, on whichever machine.

    Parameters
    ----------
    root : of its store, as `SweepDir.root` gives it.
    name : of the sweep or of the share.
    asked : the trials that are to be launched.

    Raises
    ------
    SweepDirError : another driver holds it, or a part of it, or this is not its directory.
    """
    if root == str(folder.path):
        yield Elsewhere()
        return
    sweep = StoredSweep(root, name)
    with claimed(sweep.objects, str(folder.path.absolute())) as claim:
        sweep.check_rivals()
        sweep.bring_up_to_date(folder, asked)
        yield Elsewhere(sweep, claim)
