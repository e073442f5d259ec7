"""What no single field of a configuration can tell: values that contradict or repeat each other.

Of two spellings of one trial one is kept, or the idle value is refused: it would have two ids.
"""

from __future__ import annotations

import dataclasses

from sweeper.errors import ConfigError, nearest
from sweeper.registry import entry
from sweeper.sections import (
    RECORD_SCHEDULES,
    CornerConfig,
    DataConfig,
    ModelConfig,
    RecordConfig,
    RegularizeConfig,
    ScheduleConfig,
)


def canonical_record(record: RecordConfig) -> RecordConfig:
    """One spelling of a list of epochs: ascending, once each, without 0, which always is one."""
    if isinstance(record.schedule, str):
        return record
    epochs = sorted({epoch for epoch in record.schedule if epoch > 0})
    return dataclasses.replace(record, schedule=tuple(epochs))


def canonical_decay(regularize: RegularizeConfig) -> RegularizeConfig:
    """One spelling of no weight decay, for which it does not matter what would decay."""
    return regularize if regularize.weight_decay else dataclasses.replace(regularize, decay="all")


def check_record(record: RecordConfig, epochs: int) -> None:
    """Refuse a schedule that is not known, or epochs that there are not.

    Raises
    ------
    ConfigError : naming `record.schedule`.
    """
    schedule = record.schedule
    if isinstance(schedule, str) and schedule not in RECORD_SCHEDULES:
        raise ConfigError(
            "record.schedule",
            f"unknown schedule `{schedule}`",
            f"known: {', '.join(RECORD_SCHEDULES)}, or a list of epochs",
            nearest(schedule, RECORD_SCHEDULES),
        )
    if not isinstance(schedule, str) and any(not 0 <= t <= epochs for t in schedule):
        raise ConfigError("record.schedule", f"`{list(schedule)}`", f"epochs from 0 to {epochs}")


def check_warmup(schedule: ScheduleConfig, corner: CornerConfig, epochs: int) -> None:
    """Refuse a warm-up that does not end within each phase of the trial.

    Raises
    ------
    ConfigError : naming `optim.schedule.warmup_epochs`.
    """
    lengths = {"trial": epochs} | ({} if corner.fit == "nothing" else {"corner": corner.epochs})
    for phase, length in lengths.items():
        if schedule.warmup_epochs > length:
            raise ConfigError(
                "optim.schedule.warmup_epochs",
                f"`{schedule.warmup_epochs}`",
                f"at most the {length} epochs of the {phase}",
            )


def check_supplied(model: ModelConfig, regularize: RegularizeConfig) -> None:
    """Refuse what the model has no place for.

    Raises
    ------
    ConfigError : naming the field of `regularize`.
    """
    supplied = entry("model", model.name).supplied
    for name in ("dropout", "stochastic_depth"):
        value = getattr(regularize, name)
        if value and name not in supplied:
            raise ConfigError(
                f"regularize.{name}",
                f"`{value}`, but model `{model.name}` takes no {name}",
                f"0, or a model whose function has a keyword `{name}`",
            )


def check_data_seed(data: DataConfig) -> None:
    """Refuse a seed from which nothing is drawn.

    Raises
    ------
    ConfigError : naming `data.seed`.
    """
    uses_seed = "seed" in entry("data", data.name).supplied
    if data.seed and not (data.subset or data.label_noise or data.shuffle_labels or uses_seed):
        raise ConfigError(
            "data.seed",
            f"`{data.seed}`, but nothing is drawn from it",
            "0, unless there is a `subset`, `label_noise` or `shuffle_labels`",
        )


def check_corner(corner: CornerConfig) -> None:
    """Refuse a value that this kind of corner does not use, or a subset of nothing.

    Raises
    ------
    ConfigError : naming the field of `init.corner`.
    """
    if corner.fit == "subset":
        if corner.samples < 1:
            raise ConfigError(
                "init.corner.samples", "`0`", "how many training samples to fit first"
            )
        return
    used = ("fit", "epochs", "accuracy", "seed") if corner.fit == "random-labels" else ("fit",)
    for field in dataclasses.fields(corner):
        value = getattr(corner, field.name)
        if field.name not in used and value != field.default:
            raise ConfigError(
                f"init.corner.{field.name}",
                f"`{value}`, but `init.corner.fit` is `{corner.fit}`",
                f"`{field.default}` there",
            )
