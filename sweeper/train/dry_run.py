"""Build everything of a trial once, on two samples of nothing, before anything is trained.

What many trials share is built once: checking 100,000 trials costs little more than checking
their distinct parts.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.sections import (
    AugmentConfig,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)
from sweeper.train.build import build_model, build_optimizer, draw_weights
from sweeper.train.data import describe
from sweeper.train.length import steps_per_epoch
from sweeper.train.lr import schedule_factor
from sweeper.train.plug_in import call, naming

_ANY_SCHEDULE = ScheduleConfig()


def check(config: TrialConfig) -> None:
    """Refuse a trial that could not be trained, as far as can be known without its data.

    Raises
    ------
    ConfigError : naming the key whose entry fails or does not fit the others.
    """
    steps_per_epoch(config)
    _check_model(
        config.data, config.model, config.regularize.dropout, min(config.optim.batch_size, 2)
    )
    _check_init(config.data, config.model, config.init)
    alone = dataclasses.replace(config.optim, batch_size=1, schedule=_ANY_SCHEDULE)
    _check_optim(alone, config.regularize.weight_decay)
    _check_schedule(config.optim.schedule)
    _check_augment(config.data, config.augment)


@functools.cache
def _check_model(data: DataConfig, model: ModelConfig, dropout: float, n_rows: int) -> None:
    """A pass in either mode gives logits of the right shape that can be trained."""
    dataset = describe(data)
    built = build_model(data, model, dropout, seed=0)
    x = torch.zeros(n_rows, *dataset.shape)
    with naming("model", model.name), torch.random.fork_rng(devices=[]):
        logits = [built.train()(x), built.eval()(x)]
    for found in logits:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (n_rows, len(dataset.class_names)):
            raise ConfigError(
                "model.name",
                f"model `{model.name}` gives `{shape}` for {n_rows} samples",
                f"logits of shape {(n_rows, len(dataset.class_names))} are needed",
            )
    if not logits[0].requires_grad:
        raise ConfigError(
            "model.name", f"model `{model.name}` has nothing to train", "parameters are needed"
        )


@functools.cache
def _check_init(data: DataConfig, model: ModelConfig, init: InitConfig) -> None:
    draw_weights(build_model(data, model, 0.0, seed=0), init, seed=0)


@functools.cache
def _check_optim(optim: OptimConfig, weight_decay: float) -> None:
    """The optimizer takes a step."""
    parameter = nn.Parameter(torch.ones(2))
    built = build_optimizer(optim, weight_decay, [parameter])
    parameter.grad = torch.zeros(2)
    with naming("optim", optim.name):
        built.step()


@functools.cache
def _check_schedule(schedule: ScheduleConfig) -> None:
    for progress in (0.0, 1.0):
        schedule_factor(schedule, progress)


@functools.cache
def _check_augment(data: DataConfig, augment: AugmentConfig) -> None:
    """A batch keeps its shape."""
    x = torch.zeros(2, *describe(data).shape)
    generator = torch.Generator().manual_seed(0)
    found = call("augment", augment.name, augment.options, x, generator)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            "augment.name",
            f"augment `{augment.name}` makes `{shape}` of a batch of shape {tuple(x.shape)}",
            "the shape must stay",
        )
