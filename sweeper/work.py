"""How long trials take, from the work that they are and what was measured of others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sweeper.plan import PlannedWork

_NONE: Mapping[str, Any] = MappingProxyType({})


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
    """What an optimizer step takes in each shape, from the attempts that have ended or go on.

    A rate is the total of seconds over the total of steps, not a median of trials': what is asked
    for is a sum over trials, of which the mean is the measure, its rare long waits included.

    Parameters
    ----------
    planned : all trials of the sweep.
    tallied : what the journal tells of each trial (`Tally.trials`). Measured are those with
        `seconds` and `steps`, the optimizer steps made in them; older journals have no `steps`,
        and a complete trial is then taken to have made all in its last attempt.
    running : what the driver says of the attempts in progress (`Live.running`): their steps so
        far are measured by it, from their `step` in the journal, where they began.
    """

    def __init__(
        self,
        planned: PlannedWork,
        tallied: Mapping[str, Mapping[str, Any]],
        running: Mapping[str, Mapping[str, Any]] = _NONE,
    ) -> None:
        rows = zip(planned.shapes, planned.n_steps, planned.works, strict=True)
        self._planned = dict(zip(planned.ids, rows, strict=True))
        self._all, self._of_shape = _Total(), defaultdict[str, _Total](_Total)
        for trial, found in tallied.items():
            if trial in self._planned:
                self._measure(trial, found.get("seconds"), found)
        self._sharing: dict[str, int] = {}  # trials on a GPU, as those that run do it
        for trial, now in running.items():
            if trial in self._planned:
                self._sharing[self._planned[trial][0]] = now.get("per_gpu") or 1
                self._measure(trial, *_made_so_far(now, tallied.get(trial, _NONE)))

    def _measure(self, trial: str, seconds: float | None, found: Mapping[str, Any]) -> None:
        shape, n_steps, work = self._planned[trial]
        share = _share_made(n_steps, found) if seconds else 0.0
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

    def eta(
        self,
        left: Mapping[str, int],
        n_slots: int,
        n_gpus: float = 0,
        packed: Mapping[str, int] = _NONE,
    ) -> float | None:
        """Wall-clock seconds until all of `left` is done; None where nothing tells.

        No order of the trials takes less, and without GPUs none that leaves no slot idle takes
        longer by more than the longest trial.

        Parameters
        ----------
        left : see `remaining`.
        n_slots : slots that processors feed at the same time; of 0 nothing is to be expected.
        n_gpus : what the slots share; 0 where they have none.
        packed : by shape how many trials share a GPU; of others as many as those that run, or one.
        """
        spans = self._spans(left)
        if spans is None or not n_slots:
            return None
        least = max(sum(spans) / n_slots, max(spans, default=0.0))
        if not n_gpus:
            return least
        sharing = {**self._sharing, **packed}
        shares = (1 / max(1, sharing.get(self._planned[trial][0], 1)) for trial in left)
        return max(least, sum(s * share for s, share in zip(spans, shares, strict=True)) / n_gpus)

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


def _made_so_far(
    now: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[float | None, Mapping[str, Any]]:
    """Seconds of an attempt in progress and what it made in them; None where nothing tells."""
    is_it = found.get("state") == "running" and found.get("attempt") == now.get("attempt")
    if not is_it or not {"since", "beat", "step"} <= now.keys():
        return None, _NONE
    steps = max(0, now["step"] - (found.get("step") or 0))
    return now["beat"] - now["since"], {"state": "running", "steps": steps}
