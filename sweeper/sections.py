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
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A numeric field with its range; required when it has no default."""
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    return field(
        **({} if default is MISSING else {"default": default}),
        metadata={key: value for key, value in bounds.items() if value is not None},
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and what is made of it; `options` are those of the registry entry `name`.

    `subset` and `test_subset` are a number of samples or a fraction below 1, the same share of
    every class. `test_subset` follows from its size alone, so that all trials of a sweep predict
    the same samples; `seed` draws all else, and is apart from the trial's own seed so that trials
    can share a subset or a noise.
    """

    name: str
    subset: int | float | None = number(None, above=0)  # of the training samples
    test_subset: int | float | None = number(None, above=0)
    label_noise: float = number(0.0, at_least=0, at_most=1)  # fraction of labels made wrong
    shuffle_labels: bool = False  # permute the training labels
    image_size: int | None = number(None, at_least=1)  # height and width, in pixels
    seed: int = number(0, at_least=0, below=2**63)
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
    clip: float | None = number(None, above=0)  # largest Euclidean norm of the whole gradient
    schedule: ScheduleConfig = ScheduleConfig()
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig:
    """What is added to the loss or the network against overfitting."""

    weight_decay: float = number(0.0, at_least=0)
    decay: typing.Literal["all", "weights"] = "all"  # `weights`: not of biases, norms, …
    dropout: float = number(0.0, at_least=0, below=1)  # probability of dropping a unit
    stochastic_depth: float = number(0.0, at_least=0, below=1)  # of dropping the last block
    label_smoothing: float = number(0.0, at_least=0, below=1)
    mixup: float = number(0.0, at_least=0)  # α of Beta(α, α); 0 is off
    cutmix: float = number(
        0.0, at_least=0
    )  # α of Beta(α, α); 0 is off; with mixup, either by turns
    ema: float = number(
        0.0, at_least=0, below=1
    )  # decay a step; predictions are then the average's


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The random transformation of every training batch."""

    name: str = "none"
    options: Options = ()


@dataclass(frozen=True, kw_only=True)
class CornerConfig:
    """A first phase that fits something else, so that training starts far from any drawn network.

    The phase has the trial's own optimizer, schedule and regularization, and ends with them; it is
    recorded with epochs below 0, so that epoch 0 is the start of training in every trial. A
    network that does not reach `accuracy` on what it fits is an error, since it is in no corner.
    Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121, Appendix E.1.
    """

    fit: typing.Literal["nothing", "random-labels", "subset"] = "nothing"
    samples: int = number(0, at_least=0)  # of a `subset`
    epochs: int = number(200, at_least=1, below=10**7)
    accuracy: float = number(0.99, at_least=0, at_most=1)  # on what it fits, unaugmented
    seed: int = number(0, at_least=0, below=2**63)


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How the weights are drawn before training."""

    name: str = "torch"
    corner: CornerConfig = CornerConfig()
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
