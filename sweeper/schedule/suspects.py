"""Which node fails what goes well elsewhere; pure.

A failure is a node's fault when its trial later gets further on another node, and it is no node's
fault when more than half of them fail in the same way: then it is the disk, the network or the
driver that was away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

TRIALS = 3  # that a node fails alone, before it is to blame


@dataclass
class _Failed:
    """How a trial failed on a node and after which step; how many that had completed by then."""

    signature: str
    step: int
    n_completed: int
    went_well_elsewhere: bool = False


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

    def failed(self, trial_id: str, node: str, step: int, signature: str) -> None:
        """An attempt failed on a node, `step` being the last that it had made; -1 for none."""
        there = self._failed.setdefault(node, {})
        before = there.pop(trial_id, None)  # the newest comes last
        step = max(step, before.step) if before else step
        there[trial_id] = _Failed(signature, step, self._completed[node])

    def reached(self, trial_id: str, node: str, step: int) -> None:
        """An attempt made a step on a node."""
        for other, there in self._failed.items():
            found = there.get(trial_id)
            if other != node and found is not None and step > found.step:
                found.went_well_elsewhere = True

    def completed(self, trial_id: str, node: str) -> None:
        """A trial completed on a node, or diverged there."""
        self._completed[node] += 1
        for other, there in self._failed.items():
            if other != node and trial_id in there:
                there[trial_id].went_well_elsewhere = True
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

    def is_suspect(self, node: str) -> bool:
        """Whether so many trials failed there that it matters how they do elsewhere."""
        return self._outweighs(node, list(self._failed.get(node, {}).values()))

    def to_blame(self, n_nodes: int) -> dict[str, Blame]:
        """The nodes that fail what goes well elsewhere, of `n_nodes` that there are.

        These are the ones whose last three such trials are more than what they completed since.
        """
        return {node: found for node in self._failed if (found := self._blame(node, n_nodes))}

    def _blame(self, node: str, n_nodes: int) -> Blame | None:
        faults = {
            trial_id: found
            for trial_id, found in self._failed[node].items()
            if found.went_well_elsewhere and 2 * self._n_nodes(found.signature) <= n_nodes
        }
        if not self._outweighs(node, list(faults.values())):
            return None
        last = list(faults)[-TRIALS:]
        [(signature, _)] = Counter(faults[trial_id].signature for trial_id in last).most_common(1)
        return Blame(tuple(last), signature)

    def _outweighs(self, node: str, failed: list[_Failed]) -> bool:
        last = failed[-TRIALS:]
        if len(last) < TRIALS:
            return False
        return len(last) > self._completed[node] - min(found.n_completed for found in last)

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
