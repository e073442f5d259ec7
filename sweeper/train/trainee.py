"""A network in training: all that changes from step to step, and what changes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from sweeper.config import TrialConfig
from sweeper.errors import CheckpointError, first_line
from sweeper.registry import entry
from sweeper.train.average import Average
from sweeper.train.build import build_model, build_optimizer, draw_weights
from sweeper.train.corner import Fitted, check_reached, fitted
from sweeper.train.data import Splits, load
from sweeper.train.evaluate import Evaluation, evaluate
from sweeper.train.length import Phase, phases
from sweeper.train.lr import lr_factor
from sweeper.train.mixing import mixing
from sweeper.train.optim import clip_gradients
from sweeper.train.precision import Precision, compile_network
from sweeper.train.randomness import epoch_order, seed_global, seed_of


@dataclass
class Trainee:
    """A network, its optimizer and its data on one device, after `step` steps.

    Parameters
    ----------
    augment : a batch of pixels to another, drawing from `generator`.
    average : the average of the weights, when predictions are to be those of it.
    phase, fit : the phase of the next step (of the last, at the end), and what it fits.
    non_finite : () bool on the device, whether any training loss or prediction was not finite;
        kept there so that a step need not wait.
    """

    config: TrialConfig
    device: torch.device
    data: Splits
    model: nn.Module
    precision: Precision
    average: Average | None
    optimizer: Optimizer
    augment: Callable[[Tensor], Tensor]
    generator: torch.Generator
    phase: Phase
    fit: Fitted
    step: int
    non_finite: Tensor

    @classmethod
    def build(cls, config: TrialConfig, device: torch.device) -> Trainee:
        """A network before its first step; built on the CPU, so that it is the same everywhere."""
        first = phases(config)[0]
        regularize, data = config.regularize, load(config.data, device)
        model = build_model(config.data, config.model, regularize, config.seed)
        draw_weights(model, config.init, config.seed)
        precision = Precision(config.precision, config.channels_last, device)
        precision.prepare(model.train())  # whatever its constructor left its parts in
        average = Average(model, regularize.ema) if regularize.ema else None
        if config.compile:
            compile_network(model)
        augment, options = entry("augment", config.augment.name).build, dict(config.augment.options)
        generator = torch.Generator(device)
        return cls(
            config=config,
            device=device,
            data=data,
            model=model,
            precision=precision,
            average=average,
            optimizer=build_optimizer(config.optim, regularize, model),
            augment=lambda x: augment(x, generator, **options),
            generator=generator,
            phase=first,
            fit=fitted(config.init.corner, first, data),
            step=0,
            non_finite=torch.zeros((), dtype=torch.bool, device=device),
        )

    def enter_phase(self) -> None:
        """Begin the phase of the next step with an optimizer that has no past."""
        self.phase = next(phase for phase in phases(self.config) if self.step < phase.last)
        self.fit = fitted(self.config.init.corner, self.phase, self.data)
        self.optimizer = build_optimizer(self.config.optim, self.config.regularize, self.model)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the present epoch: positions and stored samples of each batch."""
        epoch, done = divmod(self.step - self.phase.first, self.phase.steps_per_epoch)
        index = epoch - self.phase.epochs if self.phase.is_corner else epoch
        order = epoch_order(self.config.seed, index, self.phase.n_samples)
        if self.fit.positions is not None:
            order = self.fit.positions[order]
        left = slice(done, self.phase.steps_per_epoch)
        on_device = self._on_device(order).split(self.phase.batch_size)[left]
        source = on_device
        if not isinstance(self.data.train_x, Tensor):  # what reads files wants positions here
            source = order.split(self.phase.batch_size)[left]
        yield from zip(on_device, self.data.batches("train", source), strict=True)

    def _on_device(self, order: Tensor) -> Tensor:
        if self.device.type == "cuda":  # the copy from pinned memory is not waited for
            return order.pin_memory().to(self.device, non_blocking=True)
        return order.to(self.device)

    def advance(self, batch: Tensor, stored: Tensor) -> None:
        """One optimizer step on the samples at positions `batch`; never waits for the device."""
        if not self.model.training:  # walking a network's modules costs as much as a small layer
            self.model.train()
        self._set_lr()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch, stored)
        self.precision.backward(loss)
        if self.config.optim.clip is not None:
            self.precision.unscale(self.optimizer)
            clip_gradients(self.model.parameters(), self.config.optim.clip)
        self.precision.step(self.optimizer)
        if self.average is not None:
            self.average.update()
        self.non_finite |= ~loss.detach().isfinite()
        self.step += 1

    def _loss(self, batch: Tensor, stored: Tensor) -> Tensor:
        """The loss on a batch, () float32, all its randomness following from the step."""
        seed, regularize = self.config.seed, self.config.regularize
        self.generator.manual_seed(seed_of(seed, "augment", self.step))
        seed_global(seed_of(seed, "dropout", self.step), self.device)
        x = self.data.inputs(self.augment(self.data.pixels(stored)))
        labels, smoothing = self.fit.labels[batch], regularize.label_smoothing
        if not (regularize.mixup or regularize.cutmix):
            logits = self.precision.logits(self.model, x)
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        mix_seed = seed_of(seed, "mix", self.step)
        mix = mixing(mix_seed, x.shape, regularize.mixup, regularize.cutmix)
        logits = self.precision.logits(self.model, mix.apply(x))
        own = cross_entropy(logits, labels, label_smoothing=smoothing)
        other = cross_entropy(logits, mix.partner(labels), label_smoothing=smoothing)
        return mix.weight * own + (1 - mix.weight) * other

    def _set_lr(self) -> None:
        phase = self.phase
        step = self.step - phase.first
        factor = lr_factor(self.config.optim.schedule, step, phase.steps_per_epoch, phase.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def evaluate(self, split: str, *, keep: bool, fit: bool = False) -> Evaluation:
        """Predictions on a split, of the average if there is one; see `_evaluate`."""
        model = self.model if self.average is None else self.average.network()
        return self._evaluate(model, split, keep=keep, fit=fit)

    def _evaluate(self, model: nn.Module, split: str, *, keep: bool, fit: bool) -> Evaluation:
        """A network's predictions on a split; remembers when one is not finite.

        In evaluation mode: batch norm has the running statistics of the trained network.
        """
        # A network that is random even in evaluation mode is at least the same one on resume.
        seed_global(seed_of(self.config.seed, "evaluate", self.step), self.device)
        model.eval()
        found = evaluate(
            lambda x: self.precision.logits(model, x),
            self.data,
            split,
            keep=keep,
            fit=self.fit if fit else None,
        )
        self.non_finite |= not found.finite
        return found

    def check_corner(self) -> None:
        """At the end of a corner, refuse a network that has not reached it, unless it diverged.

        What counts is the trained network, from which training goes on, not its average.

        Raises
        ------
        ConfigError : its accuracy on what it was to fit is too low.
        """
        if self.phase.is_corner and self.step == self.phase.last and not self.non_finite:
            found = self._evaluate(self.model, "train", keep=False, fit=True)
            if found.finite:
                check_reached(self.config.init.corner, found.fit_accuracy or 0.0)

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, besides the configuration."""
        return {
            "trial_id": self.config.trial_id,
            "step": self.step,
            "diverged": bool(self.non_finite),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
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
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.precision.load_state_dict(state["precision"])
            self.step = int(state["step"])
            self.non_finite |= bool(state["diverged"])
            self.phase = next(found for found in phases(self.config) if self.step <= found.last)
            self.fit = fitted(self.config.init.corner, self.phase, self.data)
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise CheckpointError(
                where,
                f"the checkpoint does not fit the network: {reason}",
                hint="remove it to train from the beginning",
            ) from error
