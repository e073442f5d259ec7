"""What a driver keeps beside a store that is elsewhere, so that a driver anywhere can go on.

Below the store's root, in `sweeps/<name>/`: `grid.yaml` and `plan.parquet` as in a sweep directory,
its manifest as `sweep.json`, and `driver.json` while there is a driver (see `claim`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sweeper.durable import write_atomically
from sweeper.errors import SweepDirError, few
from sweeper.plan import planned_ids
from sweeper.store.claim import DRIVER, clear
from sweeper.store.objects import open_objects
from sweeper.sweep_dir import SweepDir, manifest_of

SWEEPS = "sweeps"

_MANIFEST = "sweep.json"  # so that no folder is taken for a sweep directory
_SHARE = re.compile(r"(.+)-\d+-of-(\d+)")  # what `shard.named` calls it


class StoredSweep:
    """One sweep at the root of a store.

    Its driver alone writes, before anything runs. Each object is replaced whole and is durable,
    the manifest last: what has none is no sweep, and a newer plan beside an older manifest is what
    a driver left that died in between, which goes on all the same.

    Parameters
    ----------
    root : a folder's absolute path or a URL, as `SweepDir.root` gives it.
    name : of the sweep, or of the share of one.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name
        self.objects = open_objects(root).below(f"{SWEEPS}/{name}")

    def manifest(self) -> dict[str, Any]:
        """The manifest, empty when the sweep was never launched with this store.

        Raises
        ------
        SweepDirError : it is unreadable.
        """
        data = self.objects.find(_MANIFEST)
        return {} if data is None else manifest_of(f"{self.objects.location}/{_MANIFEST}", data)

    def keep(self, folder: SweepDir) -> None:
        """Make this sweep what its sweep directory holds."""
        self.objects.remove_partials()
        for path in (folder.grid, folder.plan):
            with contextlib.suppress(FileNotFoundError):
                self.objects.write(path.name, path.read_bytes())
        self.objects.write(_MANIFEST, folder.manifest.read_bytes())

    def is_ahead_of(self, folder: SweepDir) -> bool:
        """Whether a driver elsewhere has launched the sweep since that of a directory did.

        Or before, if the directory is new. What a driver wrote there alone never ran.

        Raises
        ------
        SweepDirError : the directory holds another sweep.
        """
        known, stored = folder.read_manifest(), self.manifest()
        if not known or not stored:
            return bool(stored)
        if known.get("created") != stored.get("created"):
            raise SweepDirError(
                str(folder.path),
                f"not the sweep that is kept in `{self.objects.location}`",
                "one sweep of a name in a store",
                "another --sweep-dir goes on with that one; a new one needs another name or store",
            )
        launches = _launches(stored)
        return _launches(known)[: len(launches)] != launches

    def bring_up_to_date(self, folder: SweepDir, asked: Collection[str] = ()) -> None:
        """Make a directory, which is held, what the sweep is by now.

        Parameters
        ----------
        asked : trials that are to be launched in it, one of which at least the sweep must have if
            the directory is new: else somebody else's sweep goes by this name.

        Raises
        ------
        SweepDirError : the directory holds another sweep, the one that is kept is another than
            was meant, or its plan is gone.
        """
        if not self.is_ahead_of(folder):
            return
        manifest = {**self.manifest(), "store": self.root}
        plan, grid = self.objects.find(folder.plan.name), self.objects.find(folder.grid.name)
        if plan is None:
            where = f"{self.objects.location}/{folder.plan.name}"
            raise SweepDirError(where, "missing", hint="launch with the grid file again")
        is_new = not folder.manifest.is_file()
        if is_new and asked and set(asked).isdisjoint(self._planned(plan)):
            raise SweepDirError(
                self.objects.location,
                f"a sweep that has none of the {len(asked):,} trials of this grid",
                "one sweep of a name in a store",
                "give the grid another name, or use another --store",
            )
        if grid is not None:
            write_atomically(folder.grid, grid)
        write_atomically(folder.plan, plan)
        folder.write_manifest(manifest)

    def check_rivals(self) -> None:
        """Refuse to run trials that a driver of a sweep of another name may run, too.

        They are those of a sweep and of its shares, and of shares of another number.

        Raises
        ------
        SweepDirError : there is one, and it lives.
        """
        for other in drivers(self.root):
            if _overlap(self.name, other.name):
                why = f"one driver at a time, and `{self.name}` has trials of `{other.name}`"
                clear(other.objects, why)

    def _planned(self, plan: bytes) -> list[str]:
        """The ids in a plan that is kept."""
        try:
            return planned_ids(plan)
        except SweepDirError as error:
            where = f"{self.objects.location}/plan.parquet"
            raise SweepDirError(where, error.found, error.allowed, error.hint) from error


def drivers(root: str) -> Iterator[StoredSweep]:
    """The sweeps and shares at the root of a store that have a claim, be it a dead driver's."""
    for name in sorted(open_objects(root).stamps(SWEEPS, DRIVER)):
        yield StoredSweep(root, name)


def _overlap(one: str, other: str) -> bool:
    """Whether sweeps or shares of two names may have trials in common."""
    (sweep, count), (other_sweep, other_count) = _parts(one), _parts(other)
    is_alike = sweep == other_sweep and count != other_count
    return one != other and (is_alike or one == other_sweep or other == sweep)


def _parts(name: str) -> tuple[str, int]:
    """The sweep's name and the number of shares, 0 if it is no share."""
    match = _SHARE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def _launches(manifest: Mapping[str, Any]) -> list[Any]:
    """When each launch was: what tells one driver's manifest from another's."""
    return [entry.get("t") for entry in manifest.get("launches", [])]


def find_sweep(place: str) -> StoredSweep | None:
    """The sweep that is kept at the root of a store, or at `sweeps/<name>` below one.

    Parameters
    ----------
    place : a folder's absolute path or a URL.

    Raises
    ------
    SweepDirError : there are several.
    """
    objects = open_objects(place)
    root, _, name = place.rpartition(f"/{SWEEPS}/")
    if root and not root.endswith(":/") and "/" not in name and objects.exists(_MANIFEST):
        return StoredSweep(root, name)
    found = sorted(objects.stamps(SWEEPS, _MANIFEST))
    if len(found) > 1:
        there = f"holds {len(found):,} sweeps: {few([f'`{name}`' for name in found])}"
        hint = f"`{place}/{SWEEPS}/{found[0]}` is the first of them"
        raise SweepDirError(place, there, "one sweep, or the name of one", hint)
    return StoredSweep(place, found[0]) if found else None
