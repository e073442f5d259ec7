"""What each phase of a trial fits: which samples, and which labels they are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.sections import CornerConfig
from sweeper.train.data import Splits
from sweeper.train.length import Phase, phases
from sweeper.train.randomness import raw_numbers

# A stream of its own: those of the data are 0 to 4.
_STREAM = 5


@dataclass(frozen=True)
class Fitted:
    """What a phase fits.

    Parameters
    ----------
    labels : (n_train,) int64, the label that each training sample is given.
    positions : (n_fitted,) int64 on the CPU, the samples that are seen; None: all.
    """

    labels: Tensor
    positions: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """How many samples are seen."""
        return len(self.labels if self.positions is None else self.positions)

    def seen(self) -> Tensor:
        """(n_train,) float64 on the labels' device: 1 where a sample is seen, else 0."""
        if self.positions is None:
            return torch.ones_like(self.labels, dtype=torch.float64)
        seen = torch.zeros(len(self.labels), dtype=torch.float64)
        seen[self.positions] = 1
        return seen.to(self.labels.device)


def fitted(corner: CornerConfig, phase: Phase, data: Splits) -> Fitted:
    """What the phase fits, its labels on the samples' device.

    A corner of `random-labels` draws every label anew, uniformly; one of a `subset` sees some
    samples, drawn without regard to their classes, with the labels of the training proper.
    """
    if not phase.is_corner:
        return Fitted(data.train_targets)
    raw = raw_numbers(len(data.train_y), _STREAM, corner.seed)
    if corner.fit == "subset":
        chosen = np.sort(np.argsort(raw, kind="stable")[: phase.n_samples])
        return Fitted(data.train_targets, torch.from_numpy(chosen))
    drawn = torch.from_numpy((raw % np.uint64(len(data.class_names))).astype(np.int64))
    return Fitted(drawn.to(data.train_y.device))


def labels_fitted(config: TrialConfig, data: Splits) -> dict[str, Tensor]:
    """The labels that a trial fits where they are not the clean ones, (n_train,) int64 each.

    `train` are noisy or shuffled labels, `corner` the random ones of a corner.
    """
    found = {} if data.targets is None else {"train": data.targets}
    for phase in phases(config):
        if phase.is_corner and config.init.corner.fit == "random-labels":
            found["corner"] = fitted(config.init.corner, phase, data).labels
    return found


def relabelled(config: TrialConfig) -> tuple[str, ...]:
    """The phases that fit other labels than the clean ones; nothing is read for it."""
    train = ("train",) if config.data.label_noise or config.data.shuffle_labels else ()
    return train + (("corner",) if config.init.corner.fit == "random-labels" else ())


def fits_other_labels(config: TrialConfig) -> bool:
    """Whether some phase fits other labels or fewer samples than the clean training set has."""
    return bool(relabelled(config)) or config.init.corner.fit == "subset"


def check_reached(corner: CornerConfig, accuracy: float) -> None:
    """Refuse to go on from a network that has not fitted what its corner is made of.

    Raises
    ------
    ConfigError : `accuracy` is below the corner's.
    """
    if accuracy < corner.accuracy:
        raise ConfigError(
            "init.corner.accuracy",
            f"{accuracy:.4g} reached after {corner.epochs} epochs",
            f"at least {corner.accuracy:.4g} is asked for",
            "more `init.corner.epochs`, less regularization, or a lower `init.corner.accuracy`",
        )
