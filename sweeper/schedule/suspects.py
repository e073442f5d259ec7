"""Which node fails what goes well elsewhere; pure.

A failure is a node's fault when its trial later gets further on another node. Where more than half
of the nodes fail in the same way it may be the disk, the network or the driver that was away: then
it is the fault of those alone that go on to fail when others have overcome it.

What is not yet known to be a node's fault makes it doubtful: one failure before it has completed
any trial, three in a row afterwards.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

TRIALS = 3  # that a node fails alone, before it is to blame

_NEVER = -1


@dataclass
class _Failed:
    """How a trial failed on a node and after which step; how many that had completed by then.

    Parameters
    ----------
    persists : whether others had overcome such a failure, since the node last completed a trial.
    overcome : when it was by this trial, elsewhere.
    """

    signature: str
    step: int
    n_completed: int
    persists: bool
    overcome: int = _NEVER

    @property
    def went_well_elsewhere(self) -> bool:
        return self.overcome != _NEVER


@dataclass(frozen=True)
class Blame:
    """The trials that failed on a node alone, and the signature of most of these failures."""

    trial_ids: tuple[str, ...]
    signature: str


class Suspects:
    """What failed where, until its trial has ended; of each node the last that were its fault."""

    def __init__(self) -> None:
        self._failed: dict[str, dict[str, _Failed]] = {}  # by node and trial
        self._completed: Counter[str] = Counter()  # trials of each node
        self._completed_at: dict[str, int] = {}  # the last of them
        self._row: dict[str, tuple[str, ...]] = {}  # the trials that failed since, the last of them
        self._now = 0  # counts what happens

    def failed(self, trial_id: str, node: str, step: int, signature: str) -> None:
        """An attempt failed on a node, `step` being the last that it had made; -1 for none."""
        there = self._failed.setdefault(node, {})
        before = there.pop(trial_id, None)  # the newest comes last
        step = max(step, before.step) if before else step
        persists = self._overcome(signature) > self._completed_at.get(node, _NEVER)
        there[trial_id] = _Failed(signature, step, self._completed[node], persists)
        row = [other for other in self._row.get(node, ()) if other != trial_id]
        self._row[node] = (*row[-TRIALS:], trial_id)

    def reached(self, trial_id: str, node: str, step: int) -> None:
        """An attempt made a step on a node."""
        for other, there in self._failed.items():
            found = there.get(trial_id)
            if other != node and found is not None and step > found.step:
                self._overcomes(found)

    def completed(self, trial_id: str, node: str) -> None:
        """A trial completed on a node, or diverged there."""
        self._completed[node] += 1
        self._completed_at[node] = self._tick()
        self._row.pop(node, None)
        for other, there in self._failed.items():
            if other != node and trial_id in there:
                self._overcomes(there[trial_id])
        self.ended(trial_id)

    def ended(self, trial_id: str) -> None:
        """A trial needs no other attempt: what it showed of nodes is kept, as far as it matters."""
        for there in self._failed.values():
            found = there.get(trial_id)
            if found is not None and not found.went_well_elsewhere:
                del there[trial_id]
            elif found is not None:
                _keep_last(there)

    def gone(self, node: str) -> None:
        """A node is not there any more, and never comes back by this name."""
        self._failed.pop(node, None)
        self._completed.pop(node, None)
        self._completed_at.pop(node, None)
        self._row.pop(node, None)

    def is_doubtful(self, node: str, but: str = "") -> bool:
        """Whether what fails there may be its fault, for all that other trials than this showed."""
        n_failed = sum(trial_id != but for trial_id in self._row.get(node, ()))
        return n_failed >= (TRIALS if self._completed[node] else 1)

    def is_sound(self, node: str, but: str = "") -> bool:
        """Whether it completes trials, for all that other trials than this showed."""
        return self._completed[node] > 0 and not self.is_doubtful(node, but)

    def is_suspect(self, node: str) -> bool:
        """Whether so many trials failed there that it matters how they do elsewhere."""
        return self._outweighs(node, self._failed.get(node, {}))

    def to_blame(self, n_nodes: int) -> dict[str, Blame]:
        """The nodes that fail what goes well elsewhere, of `n_nodes` that there are.

        These are the ones whose last three such trials are more than what they completed since.
        """
        return {node: found for node in self._failed if (found := self._blame(node, n_nodes))}

    def _blame(self, node: str, n_nodes: int) -> Blame | None:
        faults = {
            trial_id: found
            for trial_id, found in self._failed[node].items()
            if found.went_well_elsewhere and self._is_its_own(node, found.signature, n_nodes)
        }
        if not self._outweighs(node, faults):
            return None
        last = list(faults)[-TRIALS:]
        [(signature, _)] = Counter(faults[trial_id].signature for trial_id in last).most_common(1)
        return Blame(tuple(last), signature)

    def _is_its_own(self, node: str, signature: str, n_nodes: int) -> bool:
        """Whether this way of failing is not that of most nodes, or not any more."""
        if 2 * self._n_nodes(signature) <= n_nodes:
            return True
        there = self._failed[node].values()
        return any(found.persists for found in there if found.signature == signature)

    def _outweighs(self, node: str, failed: dict[str, _Failed]) -> bool:
        last = list(itertools.islice(reversed(failed.values()), TRIALS))
        if len(last) < TRIALS:
            return False
        return len(last) > self._completed[node] - min(found.n_completed for found in last)

    def _overcomes(self, found: _Failed) -> None:
        if not found.went_well_elsewhere:
            found.overcome = self._tick()

    def _overcome(self, signature: str) -> int:
        """When a trial that had failed in this way was last seen to go well elsewhere."""
        alike = (
            found.overcome
            for there in self._failed.values()
            for found in there.values()
            if found.signature == signature
        )
        return max(alike, default=_NEVER)

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _n_nodes(self, signature: str) -> int:
        """How many nodes fail in this way."""
        return sum(
            any(found.signature == signature for found in there.values())
            for there in self._failed.values()
        )


def _keep_last(there: dict[str, _Failed]) -> None:
    """Drop the oldest fault where there are enough of them without it."""
    faults = [trial_id for trial_id, found in there.items() if found.went_well_elsewhere]
    for trial_id in faults[:-TRIALS]:
        del there[trial_id]
