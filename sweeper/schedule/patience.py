"""How long an attempt may take, and how long it may show no step, before it is given up; pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from sweeper.attempt import Progress
from sweeper.schedule.rules import Rules

STALL_EPOCHS = 10  # an attempt without a step for so many median epochs of its shape hangs
_EPOCHS_KEPT = 101


@dataclass
class _Watched:
    """An attempt in progress: when it began, its last step, and the last epoch's end."""

    shape: str
    began: float
    moved: float
    step: int = -1
    epoch: int | None = None
    epoch_ended: float = 0.0


class Patience:
    """Watches attempts by their reports. Times are seconds of one clock."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._watched: dict[str, _Watched] = {}
        self._used: dict[str, float] = {}  # by earlier attempts of trials that have not ended
        self._epochs: dict[str, deque[float]] = {}

    def begins(self, trial_id: str, shape: str, now: float) -> None:
        """An attempt starts."""
        self._watched[trial_id] = _Watched(shape, now, now)

    def lives(self, trial_id: str, now: float) -> None:
        """The attempt waits for something outside of it, and says so; that is not its time."""
        watched = self._watched.get(trial_id)
        if watched is not None:
            watched.began += now - watched.moved
            watched.moved = now

    def reports(self, progress: Progress, now: float) -> None:
        """The attempt says how far it is."""
        watched = self._watched.get(progress.trial_id)
        if watched is None or progress.step == watched.step:
            return
        is_first = watched.step < 0  # says where the attempt started, before it trains
        watched.step, watched.moved = progress.step, now
        if is_first:
            return
        epoch = math.floor(progress.epoch)
        if watched.epoch is not None and epoch > watched.epoch:
            seconds = (now - watched.epoch_ended) / (epoch - watched.epoch)
            self._epochs.setdefault(watched.shape, deque(maxlen=_EPOCHS_KEPT)).append(seconds)
        if watched.epoch is None or epoch > watched.epoch:
            watched.epoch, watched.epoch_ended = epoch, now

    def ends(self, trial_id: str, now: float, *, for_good: bool) -> None:
        """The attempt has ended; `for_good` when the trial needs no other."""
        watched = self._watched.pop(trial_id, None)
        if for_good:
            self._used.pop(trial_id, None)
        elif watched is not None and self._rules.time_limit:
            self._used[trial_id] = self._used.get(trial_id, 0.0) + now - watched.began

    def is_over_limit(self, trial_id: str, now: float) -> bool:
        """Whether the trial has run for longer than it may."""
        watched, limit = self._watched.get(trial_id), self._rules.time_limit
        if watched is None or not limit:
            return False
        return self._used.get(trial_id, 0.0) + now - watched.began > limit

    def has_ended_epoch(self, trial_id: str) -> bool:
        """Whether the attempt is past its first epoch."""
        watched = self._watched.get(trial_id)
        return watched is not None and (watched.epoch or 0) >= 1

    def stalled(self, trial_id: str, now: float) -> float | None:
        """Seconds since the last step, when these are too many."""
        watched = self._watched.get(trial_id)
        if watched is None:
            return None
        still = now - watched.moved
        return still if still > self._patience(watched.shape) else None

    def _patience(self, shape: str) -> float:
        seen = self._epochs.get(shape)
        return max(self._rules.stalled_after, STALL_EPOCHS * median(seen) if seen else 0.0)
