"""How long trials take, from the work that they are and what was measured of others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.plan import PlannedWork


@dataclass
class _Total:
    """Slot-seconds that were measured, and what was done in them."""

    seconds: float = 0.0
    n_steps: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, n_steps: float, work: float) -> None:
        self.seconds += seconds
        self.n_steps += n_steps
        self.work += work


class Rates:
    """What an optimizer step takes in each shape, from the attempts that have ended.

    A rate is the total of seconds over the total of steps, not a median of trials': what is asked
    for is a sum over trials, of which the mean is the measure, its rare long waits included.

    Parameters
    ----------
    planned : all trials of the sweep.
    tallied : what the journal tells of each trial (`Tally.trials`). Measured are those with
        `seconds` and `steps`, the optimizer steps made in them; older journals have no `steps`,
        and a complete trial is then taken to have made all in its last attempt.
    """

    def __init__(self, planned: PlannedWork, tallied: Mapping[str, Mapping[str, Any]]) -> None:
        rows = zip(planned.shapes, planned.n_steps, planned.works, strict=True)
        self._planned = dict(zip(planned.ids, rows, strict=True))
        self._all, self._of_shape = _Total(), defaultdict[str, _Total](_Total)
        for trial, found in tallied.items():
            if trial in self._planned:
                self._measure(*self._planned[trial], found)

    def _measure(self, shape: str, n_steps: int, work: float, found: Mapping[str, Any]) -> None:
        seconds, share = found.get("seconds"), _share_made(n_steps, found)
        if seconds and share:
            done = seconds, share * _length(n_steps), share * work
            self._all.add(*done)
            self._of_shape[shape].add(*done)

    def seconds(self, shape: str, n_steps: int, work: float) -> float | None:
        """Slot-seconds of a whole trial; None where nothing tells.

        Steps are counted at the rate of its shape; while that has not been measured, floating
        point operations at that of all shapes.
        """
        measured = self._of_shape.get(shape)
        if measured:
            return measured.seconds / measured.n_steps * _length(n_steps)
        return self._all.seconds / self._all.work * work if self._all.work else None

    def remaining(self, left: Mapping[str, int]) -> float | None:
        """Slot-seconds that are left to run; None where nothing tells.

        Parameters
        ----------
        left : the planned trials that are not complete, and the optimizer steps that each has
            behind it: 0 for one that has not begun.
        """
        spans = self._spans(left)
        return None if spans is None else sum(spans)

    def eta(self, left: Mapping[str, int], n_slots: int) -> float | None:
        """Wall-clock seconds until all of `left` is done; None where nothing tells.

        No order of the trials on `n_slots` slots takes less, and none that leaves no slot idle
        takes longer by more than the longest trial.

        Parameters
        ----------
        left : see `remaining`.
        n_slots : slots that work at the same time; of 0 nothing is to be expected.
        """
        spans = self._spans(left)
        if spans is None or not n_slots:
            return None
        return max(sum(spans) / n_slots, max(spans, default=0.0))

    def _spans(self, left: Mapping[str, int]) -> list[float] | None:
        spans = []
        for trial, n_done in left.items():
            shape, n_steps, work = self._planned[trial]
            seconds = self.seconds(shape, n_steps, work)
            if seconds is None:
                return None
            spans.append(seconds * max(0.0, 1 - n_done / n_steps) if n_steps else seconds)
        return spans


def _length(n_steps: int) -> int:
    """The length in which a shape's rate is counted: trials, where steps are not known."""
    return n_steps or 1


def _share_made(n_steps: int, found: Mapping[str, Any]) -> float:
    """The share of a trial that its last attempt has made."""
    n_made = found.get("steps")
    if n_made is None or not n_steps:
        return 1.0 if found["state"] == "complete" else 0.0
    return min(1.0, float(n_made) / n_steps)
