"""Training as a generator of moments; it knows nothing of stores, files or schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sweeper.config import TrialConfig
from sweeper.train.corner import fits_other_labels
from sweeper.train.length import phases, planned_steps
from sweeper.train.trainee import Trainee

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Moment:
    """What is known after an optimizer step, or before the first.

    Parameters
    ----------
    step : optimizer steps done.
    epoch : the same in epochs; below 0 in the first phase of a corner init.
    snapshot : which snapshot of the trial is recorded here; None when none is.
    metrics : when recorded: those of `metric_names`.
    log_probs : when recorded: `test`, and `train` if the trial asks for it, each
        (n_samples, n_classes) float16.
    diverged : the loss or a prediction is not finite; this is the last moment, and no snapshot.
    state : all a resume needs, as plain containers and tensors; to be called, and its result
        saved, before the next moment is asked for. Its `diverged` tells how the trial ended when
        nothing is left to train.
    """

    step: int
    epoch: float
    snapshot: int | None
    metrics: Mapping[str, float]
    log_probs: Mapping[str, np.ndarray]
    diverged: bool
    state: Callable[[], dict[str, Any]]


def train(
    config: TrialConfig,
    *,
    device: str | torch.device = "cpu",
    state: dict[str, Any] | None = None,
) -> Iterator[Moment]:
    """Train a network, one moment at a time.

    The first moment is before training; then there is one after each optimizer step. With the
    `state` of an earlier moment, goes on with the step after it, and on a CPU with equal thread
    count, instruction set and library versions gives the same bits as if never interrupted.
    Only moments that record, and the ends of epochs, wait for the device. Torch's global random
    generator is reseeded at every step, so one trial trains in a thread at a time.

    Raises
    ------
    ConfigError : the configuration cannot be built, raised here and not at the first moment; or,
        at the end of a corner phase, what it fits is not fitted.
    CheckpointError : `state` belongs to another trial or network.
    """
    trainee = Trainee.build(config, torch.device(device))
    if state is not None:
        trainee.restore(state)
    return _moments(trainee, is_fresh=state is None)


def metric_names(config: TrialConfig) -> tuple[str, ...]:
    """The metrics of every snapshot of the trial.

    `test_loss`, `test_accuracy` (nats, a fraction); of the clean training set, unless it is not
    looked at, `train_loss`, `train_accuracy`; and where a phase fits other labels or fewer samples
    than that, `fit_loss`, `fit_accuracy` of what it fits.
    """
    splits = ["test"]
    if config.record.train != "none":
        splits += ["train", "fit"] if fits_other_labels(config) else ["train"]
    return tuple(f"{split}_{name}" for split in splits for name in ("loss", "accuracy"))


def _moments(trainee: Trainee, *, is_fresh: bool) -> Iterator[Moment]:
    config = trainee.config
    snapshots = {step: index for index, step in enumerate(planned_steps(config))}
    if is_fresh:
        moment = _look(trainee, snapshots)
        yield moment
        if moment.diverged:
            return
    elif _has_diverged(trainee, snapshots):
        return
    last = phases(config)[-1].last
    while trainee.step < last:
        if trainee.step == trainee.phase.last:
            trainee.enter_phase()
        for batch, stored in trainee.batches():
            trainee.advance(batch, stored)
            trainee.check_corner()
            moment = _look(trainee, snapshots)
            yield moment
            if moment.diverged:
                return


def _look(trainee: Trainee, snapshots: Mapping[int, int]) -> Moment:
    """The moment after the last step, recorded when that is one of `snapshots`."""
    if _has_diverged(trainee, snapshots):
        return _moment(trainee, diverged=True)
    snapshot = snapshots.get(trainee.step)
    return _moment(trainee) if snapshot is None else _record(trainee, snapshot)


def _has_diverged(trainee: Trainee, snapshots: Mapping[int, int]) -> bool:
    """Whether a loss was not finite; looked at where it is worth waiting for the device."""
    phase = trainee.phase
    is_epochs_end = (trainee.step - phase.first) % phase.steps_per_epoch == 0
    return (is_epochs_end or trainee.step in snapshots) and bool(trainee.non_finite)


def _record(trainee: Trainee, snapshot: int) -> Moment:
    record, names = trainee.config.record.train, metric_names(trainee.config)
    keeps = {"test": True} | ({} if record == "none" else {"train": record == "predictions"})
    metrics: dict[str, float] = {}
    log_probs: dict[str, np.ndarray] = {}
    for split, keep in keeps.items():
        fit = split == "train" and "fit_loss" in names
        found = trainee.evaluate(split, keep=keep, fit=fit)
        if not found.finite:
            return _moment(trainee, diverged=True)
        metrics |= {f"{split}_loss": found.loss, f"{split}_accuracy": found.accuracy}
        if found.fit_loss is not None and found.fit_accuracy is not None:
            metrics |= {"fit_loss": found.fit_loss, "fit_accuracy": found.fit_accuracy}
        if found.log_probs is not None:
            log_probs[split] = found.log_probs
    return _moment(trainee, snapshot=snapshot, metrics=metrics, log_probs=log_probs)


def _moment(
    trainee: Trainee,
    *,
    snapshot: int | None = None,
    metrics: Mapping[str, float] = _NOTHING,
    log_probs: Mapping[str, np.ndarray] = _NOTHING,
    diverged: bool = False,
) -> Moment:
    epoch = trainee.phase.epoch(trainee.step)
    return Moment(trainee.step, epoch, snapshot, metrics, log_probs, diverged, trainee.state)
