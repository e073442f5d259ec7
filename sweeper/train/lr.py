"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from sweeper.errors import ConfigError
from sweeper.registry import entry
from sweeper.sections import ScheduleConfig
from sweeper.train.plug_in import naming


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """(1 + cos(π · progress)) / 2: from 1 to 0 (Loshchilov & Hutter, ICLR 2017, Eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def lr_factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int, n_steps: int) -> float:
    """The factor on the learning rate of optimizer step `step`, counted from 0.

    With w the steps of warm-up: (step + 1)/(w + 1) during it, a line from 0 just before the
    first step to 1 at the first step after it; then the schedule at (step − w)/(n_steps − w).

    Raises
    ------
    ConfigError : the schedule fails, or its factor is not a finite number at least 0.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return schedule_factor(schedule, (step - warmup) / (n_steps - warmup))


def schedule_factor(schedule: ScheduleConfig, progress: float) -> float:
    """The schedule's factor at `progress` in [0, 1], checked."""
    with naming("schedule", schedule.name):
        build = entry("schedule", schedule.name).build
        factor = float(build(progress, **dict(schedule.options)))
    if not (math.isfinite(factor) and factor >= 0):
        raise ConfigError(
            "optim.schedule.name",
            f"schedule `{schedule.name}` gives {factor} at progress {progress:.6g}",
            "a finite number at least 0 is needed",
        )
    return factor
