"""A network in training: all that changes from step to step, and what changes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from sweeper.config import TrialConfig
from sweeper.errors import CheckpointError
from sweeper.registry import entry
from sweeper.train.build import build_model, build_optimizer, draw_weights
from sweeper.train.data import Splits, load
from sweeper.train.evaluate import Evaluation, evaluate
from sweeper.train.length import steps_per_epoch
from sweeper.train.lr import lr_factor
from sweeper.train.randomness import epoch_order, seed_global, seed_of


@dataclass
class Trainee:
    """A network, its optimizer and its data on one device, after `step` steps.

    Parameters
    ----------
    augment : a batch of pixels to another, drawing from `generator`.
    non_finite : () bool on the device, whether any training loss or prediction was not finite;
        kept there so that a step need not wait.
    """

    config: TrialConfig
    device: torch.device
    data: Splits
    model: nn.Module
    optimizer: Optimizer
    augment: Callable[[Tensor], Tensor]
    generator: torch.Generator
    steps_per_epoch: int
    step: int
    non_finite: Tensor

    @classmethod
    def build(cls, config: TrialConfig, device: torch.device) -> Trainee:
        """A network before its first step; built on the CPU, so that it is the same everywhere."""
        n_steps = steps_per_epoch(config)
        model = build_model(config.data, config.model, config.regularize.dropout, config.seed)
        draw_weights(model, config.init, config.seed)
        model.to(device)
        optimizer = build_optimizer(
            config.optim, config.regularize.weight_decay, model.parameters()
        )
        augment, options = entry("augment", config.augment.name).build, dict(config.augment.options)
        generator = torch.Generator(device)
        return cls(
            config=config,
            device=device,
            data=load(config.data, device),
            model=model,
            optimizer=optimizer,
            augment=lambda x: augment(x, generator, **options),
            generator=generator,
            steps_per_epoch=n_steps,
            step=0,
            non_finite=torch.zeros((), dtype=torch.bool, device=device),
        )

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch in their order, (n_samples,) int64 on the device."""
        order = epoch_order(self.config.seed, epoch, len(self.data.train_y))
        if self.device.type == "cuda":  # the copy from pinned memory is not waited for
            return order.pin_memory().to(self.device, non_blocking=True)
        return order.to(self.device)

    def advance(self, batch: Tensor) -> None:
        """One optimizer step on the samples `batch`; never waits for the device."""
        if not self.model.training:  # walking a network's modules costs as much as a small layer
            self.model.train()
        self.generator.manual_seed(seed_of(self.config.seed, "augment", self.step))
        seed_global(seed_of(self.config.seed, "dropout", self.step), self.device)
        x = self.data.inputs(self.augment(self.data.pixels(self.data.train_x[batch])))
        smoothing = self.config.regularize.label_smoothing
        loss = cross_entropy(self.model(x), self.data.train_y[batch], label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._set_lr()
        self.optimizer.step()
        self.non_finite |= ~loss.detach().isfinite()
        self.step += 1

    def _set_lr(self) -> None:
        n_steps = self.steps_per_epoch * self.config.epochs
        schedule = self.config.optim.schedule
        factor = lr_factor(schedule, self.step, self.steps_per_epoch, n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def evaluate(self, split: str, *, keep: bool) -> Evaluation:
        """Predictions on a split; remembers when one is not finite."""
        # A network that is random even in evaluation mode is at least the same one on resume.
        seed_global(seed_of(self.config.seed, "evaluate", self.step), self.device)
        found = evaluate(self.model, self.data, split, keep=keep)
        self.non_finite |= not found.finite
        return found

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
        """Take up a state of the same trial; `state` is not changed, now or later.

        Raises
        ------
        CheckpointError : it is of another trial, or does not fit the network or optimizer.
        """
        where = f"trial {self.config.trial_id}"
        try:
            if state["trial_id"] != self.config.trial_id:
                raise CheckpointError(where, f"the checkpoint is of trial `{state['trial_id']}`")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            self.step = int(state["step"])
            self.non_finite |= bool(state["diverged"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                where,
                f"the checkpoint does not fit the network: {reason}",
                hint="remove it to train from the beginning",
            ) from error
