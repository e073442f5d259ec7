"""Training as a generator of moments; it knows nothing of stores, files or schedulers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from sweeper.config import TrialConfig
from sweeper.errors import CheckpointError
from sweeper.registry import entry
from sweeper.train.build import build_model, build_optimizer, draw_weights
from sweeper.train.data import Splits, describe, load
from sweeper.train.evaluate import evaluate
from sweeper.train.optim import lr_factor
from sweeper.train.randomness import epoch_order, seed_global, seed_of
from sweeper.train.record import record_steps

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Moment:
    """What is known after an optimizer step, or before the first.

    Parameters
    ----------
    step : optimizer steps done.
    epoch : the same in epochs.
    snapshot : which snapshot of the trial is recorded here; None when none is.
    metrics : when recorded: `test_loss`, `test_accuracy`, and `train_loss`, `train_accuracy` if
        the trial asks for them.
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


def steps_per_epoch(config: TrialConfig) -> int:
    """Optimizer steps in an epoch; the last batch has what is left over.

    A single left-over sample makes no step, because batch norm cannot normalise it: each epoch
    leaves out another one.
    """
    full, rest = divmod(describe(config.data).n_train, config.optim.batch_size)
    return full + (rest > 1)


def planned_steps(config: TrialConfig) -> tuple[int, ...]:
    """The step of each snapshot of the trial, ascending; nothing is read for it."""
    return record_steps(config.record, config.epochs, steps_per_epoch(config))


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
    ConfigError : the configuration cannot be built; raised here, not at the first moment.
    CheckpointError : `state` belongs to another trial or network.
    """
    trainee = _Trainee.build(config, torch.device(device))
    if state is not None:
        trainee.restore(state)
    return _moments(trainee, is_fresh=state is None)


def _moments(trainee: _Trainee, *, is_fresh: bool) -> Iterator[Moment]:
    n_steps = steps_per_epoch(trainee.config)
    batch_size = trainee.config.optim.batch_size
    snapshots = {step: index for index, step in enumerate(planned_steps(trainee.config))}
    if is_fresh:
        moment = trainee.look(snapshots)
        yield moment
        if moment.diverged:
            return
    elif trainee.has_ended(snapshots):
        return
    while trainee.step < n_steps * trainee.config.epochs:
        epoch, done = divmod(trainee.step, n_steps)
        for batch in trainee.order(epoch).split(batch_size)[done:n_steps]:
            trainee.advance(batch)
            moment = trainee.look(snapshots)
            yield moment
            if moment.diverged:
                return


@dataclass
class _Trainee:
    """A network in training: all that changes from step to step, and what changes it."""

    config: TrialConfig
    device: torch.device
    data: Splits
    model: nn.Module
    optimizer: Optimizer
    augment: Callable[[Tensor], Tensor]
    generator: torch.Generator
    steps_per_epoch: int
    step: int
    non_finite: Tensor  # () bool on the device: whether any training loss was not finite

    @classmethod
    def build(cls, config: TrialConfig, device: torch.device) -> _Trainee:
        """A network before its first step."""
        model = build_model(config.data, config.model, config.regularize.dropout, config.seed)
        draw_weights(model, config.init, config.seed)
        model.to(device)
        generator = torch.Generator(device)
        augment, options = entry("augment", config.augment.name).build, dict(config.augment.options)
        return cls(
            config=config,
            device=device,
            data=load(config.data, device),
            model=model,
            optimizer=build_optimizer(
                config.optim, config.regularize.weight_decay, model.parameters()
            ),
            augment=lambda x: augment(x, generator, **options),
            generator=generator,
            steps_per_epoch=steps_per_epoch(config),
            step=0,
            non_finite=torch.zeros((), dtype=torch.bool, device=device),
        )

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch in their order, on the device."""
        order = epoch_order(self.config.seed, epoch, len(self.data.train_y))
        if self.device.type == "cuda":
            return order.pin_memory().to(self.device, non_blocking=True)
        return order.to(self.device)

    def advance(self, batch: Tensor) -> None:
        """One optimizer step on the samples `batch`; never waits for the device."""
        config = self.config
        if not self.model.training:  # walking a network's modules costs as much as a small layer
            self.model.train()
        self.generator.manual_seed(seed_of(config.seed, "augment", self.step))
        seed_global(seed_of(config.seed, "dropout", self.step), self.device)
        x = self.data.inputs(self.augment(self.data.pixels(self.data.train_x[batch])))
        loss = cross_entropy(
            self.model(x),
            self.data.train_y[batch],
            label_smoothing=config.regularize.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        total = self.steps_per_epoch * config.epochs
        factor = lr_factor(config.optim.schedule, self.step, self.steps_per_epoch, total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.optimizer.step()
        self.non_finite |= ~loss.detach().isfinite()
        self.step += 1

    def look(self, snapshots: Mapping[int, int]) -> Moment:
        """The moment after the last step, recorded when it is one of `snapshots`."""
        if not self._inspects(snapshots):
            return self._moment(None)
        snapshot = snapshots.get(self.step)
        if bool(self.non_finite):
            return self._moment(None, diverged=True)
        if snapshot is None:
            return self._moment(None)
        return self._record(snapshot)

    def has_ended(self, snapshots: Mapping[int, int]) -> bool:
        """Whether the last step's moment was the last because training diverged."""
        return self._inspects(snapshots) and bool(self.non_finite)

    def _inspects(self, snapshots: Mapping[int, int]) -> bool:
        """Whether divergence is looked for after the last step."""
        return self.step in snapshots or self.step % self.steps_per_epoch == 0

    def _record(self, snapshot: int) -> Moment:
        record = self.config.record.train
        keeps = {"test": True} | ({} if record == "none" else {"train": record == "predictions"})
        # A network that is random even in evaluation mode is at least the same one on resume.
        seed_global(seed_of(self.config.seed, "evaluate", self.step), self.device)
        metrics: dict[str, float] = {}
        log_probs: dict[str, np.ndarray] = {}
        for split, keep in keeps.items():
            found = evaluate(self.model, self.data, split, keep=keep)
            if not found.finite:
                self.non_finite |= True
                return self._moment(None, diverged=True)
            metrics |= {f"{split}_loss": found.loss, f"{split}_accuracy": found.accuracy}
            if found.log_probs is not None:
                log_probs[split] = found.log_probs
        return self._moment(snapshot, metrics, log_probs)

    def _moment(
        self,
        snapshot: int | None,
        metrics: Mapping[str, float] = _NOTHING,
        log_probs: Mapping[str, np.ndarray] = _NOTHING,
        *,
        diverged: bool = False,
    ) -> Moment:
        epoch = self.step / self.steps_per_epoch
        return Moment(self.step, epoch, snapshot, metrics, log_probs, diverged, self.state)

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, besides the configuration."""
        return {
            "trial_id": self.config.trial_id,
            "step": self.step,
            "diverged": bool(self.non_finite),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state of the same trial; `state` is not changed, now or later."""
        try:
            if state["trial_id"] != self.config.trial_id:
                raise CheckpointError(
                    f"trial {self.config.trial_id}",
                    f"the checkpoint is of trial `{state['trial_id']}`",
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            self.step = int(state["step"])
            self.non_finite |= bool(state["diverged"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"trial {self.config.trial_id}",
                f"the checkpoint does not fit the network: {str(error).strip().splitlines()[0]}",
                hint="remove it to train from the beginning",
            ) from error
