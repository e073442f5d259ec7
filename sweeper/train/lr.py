"""The learning rate as a pure function of the step."""

from __future__ import annotations

import itertools
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


def linear(progress: float, final: float = 0.0) -> float:
    """A line from 1 to `final`.

    Raises
    ------
    ConfigError : `final` is negative.
    """
    if not final >= 0:
        raise ConfigError("final", f"`{final}`", "a number at least 0 is needed")
    return 1.0 + (final - 1.0) * progress


def step(progress: float, milestones: tuple[float, ...] = (0.5, 0.75), gamma: float = 0.1) -> float:
    """`gamma` to the power of the milestones reached, each a fraction of the schedule's length.

    Raises
    ------
    ConfigError : `milestones` do not ascend between 0 and 1, or `gamma` is not above 0.
    """
    bounds = (0.0, *milestones, 1.0)
    if not milestones or any(not a < b for a, b in itertools.pairwise(bounds)):
        raise ConfigError(
            "milestones", f"`{list(milestones)}`", "ascending numbers above 0 and below 1"
        )
    if not gamma > 0:
        raise ConfigError("gamma", f"`{gamma}`", "a number above 0 is needed")
    return gamma ** sum(milestone <= progress for milestone in milestones)


def one_cycle(
    progress: float, peak: float = 0.3, start_div: float = 25.0, final_div: float = 1e4
) -> float:
    """Half a cosine up from 1/start_div to 1 at `peak`, then one down to 1/(start_div·final_div).

    Smith & Topin, "Super-Convergence", 2018, arXiv:1708.07120, with PyTorch's cosines in the place
    of lines; momentum stays as it is.

    Raises
    ------
    ConfigError : `peak` is not in (0, 1), or a divisor is below 1.
    """
    if not 0 < peak < 1:
        raise ConfigError("peak", f"`{peak}`", "a number above 0 and below 1 is needed")
    for name, value in (("start_div", start_div), ("final_div", final_div)):
        if not value >= 1:
            raise ConfigError(name, f"`{value}`", "a number at least 1 is needed")
    if progress <= peak:
        return _half_cosine(1 / start_div, 1.0, progress / peak)
    return _half_cosine(1.0, 1 / (start_div * final_div), (progress - peak) / (1 - peak))


def _half_cosine(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1, flat at both."""
    return end + (start - end) * cosine(share)


def lr_factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int, n_steps: int) -> float:
    """The factor on the learning rate of optimizer step `step`, counted from 0.

    With w the steps of warm-up and f the schedule: f(0) · (step + 1)/(w + 1) during it, a line
    from 0 just before the first step to f(0) at the first step after it; then
    f((step − w)/(n_steps − w)). So f(1) would be the factor of the step after the last.

    Raises
    ------
    ConfigError : the schedule fails, or its factor is not a finite number at least 0.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return schedule_factor(schedule, 0.0) * ((step + 1) / (warmup + 1))
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
