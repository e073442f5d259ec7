"""How many steps a trial takes and which of them are recorded; nothing is read for it."""

from __future__ import annotations

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.train.data import describe
from sweeper.train.record import record_steps


def steps_per_epoch(config: TrialConfig) -> int:
    """Optimizer steps in an epoch; the last batch has what is left over.

    A single left-over sample makes no step, because batch norm cannot normalise it: each epoch
    leaves out another one.

    Raises
    ------
    ConfigError : a batch has more samples than the training set.
    """
    n_train, batch_size = describe(config.data).n_train, config.optim.batch_size
    if batch_size > n_train:
        raise ConfigError(
            "optim.batch_size", f"`{batch_size}`", f"at most the {n_train} training samples"
        )
    full, rest = divmod(n_train, batch_size)
    return full + (rest > 1)


def planned_steps(config: TrialConfig) -> tuple[int, ...]:
    """The step of each snapshot of the trial, ascending: its length is `n_snapshots`.

    Raises
    ------
    ConfigError : a batch has more samples than the training set.
    """
    return record_steps(config.record, config.epochs, steps_per_epoch(config))
