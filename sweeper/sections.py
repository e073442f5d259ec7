"""The sections of a trial's configuration, field by field: types, defaults and ranges."""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, field
from typing import Any

RECORD_SCHEDULES = ("epoch", "log", "manifold")

Options = tuple[tuple[str, Any], ...]


def number(
    default: Any = MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A numeric field with its range; required when it has no default."""
    bounds = {"at_least": at_least, "above": above, "below": below}
    return field(
        **({} if default is MISSING else {"default": default}),
        metadata={key: value for key, value in bounds.items() if value is not None},
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set; `options` are those of the registry entry `name`."""

    name: str
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture; `options` are those of the registry entry `name`."""

    name: str
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The factor on the learning rate, evaluated at every step."""

    name: str = "constant"
    warmup_epochs: float = number(0.0, at_least=0)  # linear from 0, before the schedule proper
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its peak learning rate and the number of samples in a step."""

    name: str
    lr: float = number(above=0)
    batch_size: int = number(128, at_least=1)
    schedule: ScheduleConfig = ScheduleConfig()
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig:
    """What is added to the loss or the network against overfitting."""

    weight_decay: float = number(0.0, at_least=0)
    dropout: float = number(0.0, at_least=0, below=1)  # probability of dropping a unit
    label_smoothing: float = number(0.0, at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The random transformation of every training batch."""

    name: str = "none"
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How the weights are drawn before training."""

    name: str = "torch"
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """When predictions are recorded, and what of the training set.

    `schedule` is `epoch`, `log`, `manifold` or a list of epochs (fractions allowed); the moment
    before training and the last one are always recorded. `train` is `none`, `metrics` (loss and
    accuracy on the clean training set) or `predictions` (stored as well).
    """

    schedule: str | tuple[float, ...] = "epoch"
    train: typing.Literal["none", "metrics", "predictions"] = "metrics"
