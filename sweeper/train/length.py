"""How long a trial is, phase by phase, and when it is recorded; nothing is read for it."""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.train.data import describe
from sweeper.train.record import record_steps


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own learning-rate schedule.

    Parameters
    ----------
    is_corner : whether it is the first phase of a corner init, whose epochs are below 0.
    n_samples : training samples that it fits.
    batch_size : samples in a step.
    epochs, steps_per_epoch : its length.
    first : optimizer steps done before it.
    """

    is_corner: bool
    n_samples: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    first: int

    @property
    def n_steps(self) -> int:
        """Its length in optimizer steps."""
        return self.epochs * self.steps_per_epoch

    @property
    def last(self) -> int:
        """Optimizer steps done when it ends."""
        return self.first + self.n_steps

    def epoch(self, step: int) -> float:
        """Epochs after `step` optimizer steps; a corner's are counted from its end, downwards."""
        return (step - (self.last if self.is_corner else self.first)) / self.steps_per_epoch


def phases(config: TrialConfig) -> tuple[Phase, ...]:
    """The phases of a trial in order: one, after a corner if it starts from one.

    Raises
    ------
    ConfigError : a batch has more samples than the training set, or a corner's subset has.
    """
    n_train, batch_size = describe(config.data).n_train, config.optim.batch_size
    if batch_size > n_train:
        raise ConfigError(
            "optim.batch_size", f"`{batch_size}`", f"at most the {n_train} training samples"
        )
    corner = config.init.corner
    if corner.fit == "nothing":
        return (_phase(False, n_train, batch_size, config.epochs, 0),)
    n_samples = corner.samples if corner.fit == "subset" else n_train
    if not 2 <= n_samples <= n_train:
        raise ConfigError(
            "init.corner.samples", f"`{n_samples}`", f"from 2 to the {n_train} training samples"
        )
    first = _phase(True, n_samples, min(batch_size, n_samples), corner.epochs, 0)
    return first, _phase(False, n_train, batch_size, config.epochs, first.last)


def _phase(is_corner: bool, n_samples: int, batch_size: int, epochs: int, first: int) -> Phase:
    """A phase whose last batch in an epoch has what is left over.

    A single left-over sample makes no step, because batch norm cannot normalise it: each epoch
    leaves out another one.
    """
    full, rest = divmod(n_samples, batch_size)
    return Phase(is_corner, n_samples, batch_size, epochs, full + (rest > 1), first)


def planned_steps(config: TrialConfig) -> tuple[int, ...]:
    """The step of each snapshot of the trial, ascending: its length is `n_snapshots`.

    Raises
    ------
    ConfigError : see `phases`.
    """
    return tuple(
        sorted(
            {
                phase.first + step
                for phase in phases(config)
                for step in record_steps(config.record, phase.epochs, phase.steps_per_epoch)
            }
        )
    )
