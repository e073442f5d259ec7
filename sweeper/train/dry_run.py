"""Build everything of a trial once, on two samples of nothing, before anything is trained.

What many trials share is built once: checking 100,000 trials costs little more than checking
their distinct parts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.sections import (
    AugmentConfig,
    CornerConfig,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    ScheduleConfig,
)
from sweeper.train.average import Average
from sweeper.train.build import build_model, build_optimizer, draw_weights
from sweeper.train.data import describe
from sweeper.train.length import phases
from sweeper.train.lr import schedule_factor
from sweeper.train.mixing import mixing
from sweeper.train.plug_in import call, naming

T = TypeVar("T")

_ANY_SCHEDULE, _NO_CORNER = ScheduleConfig(), CornerConfig()


def check(config: TrialConfig) -> None:
    """Refuse a trial that could not be trained, as far as can be known without its data.

    Raises
    ------
    ConfigError : naming the key whose entry fails or does not fit the others.
    """
    phases(config)
    forward_flops(config)
    _check_init(config.data, config.model, dataclasses.replace(config.init, corner=_NO_CORNER))
    alone = dataclasses.replace(config.optim, batch_size=1, clip=None, schedule=_ANY_SCHEDULE)
    decay = RegularizeConfig(
        weight_decay=config.regularize.weight_decay, decay=config.regularize.decay
    )
    _check_optim(alone, decay)
    _check_schedule(config.optim.schedule)
    _check_augment(config.data, config.augment)
    _check_mix(config.data, config.regularize)


def forward_flops(config: TrialConfig) -> float:
    """Floating point operations of the network for one sample; a product and a sum are two.

    Counted on the pass that checks the network; where that cannot be, two for each parameter.

    Raises
    ------
    ConfigError : the network cannot be built or trained.
    """
    n_rows, network = min(config.optim.batch_size, 2), network_of(config.regularize)
    return _check_model(config.data, config.model, network, n_rows, config.channels_last)


def network_of(regularize: RegularizeConfig) -> RegularizeConfig:
    """What of it the network itself depends on."""
    return RegularizeConfig(
        dropout=regularize.dropout,
        stochastic_depth=regularize.stochastic_depth,
        ema=regularize.ema,
    )


@dataclass(frozen=True)
class _Refusal:
    """What a `ConfigError` is made of."""

    parts: tuple[str, ...]


def _remembered(made: Callable[..., T]) -> Callable[..., T]:
    """A check made once for what it is given: its refusal is kept as well as its result."""

    @functools.cache
    def outcome(*parts: Hashable) -> T | _Refusal:
        try:
            return made(*parts)
        except ConfigError as error:
            return _Refusal(error.args)

    @functools.wraps(made)
    def checked(*parts: Hashable) -> T:
        found = outcome(*parts)
        if isinstance(found, _Refusal):
            raise ConfigError(*found.parts)
        return found

    return checked


@_remembered
def _check_model(
    data: DataConfig,
    model: ModelConfig,
    regularize: RegularizeConfig,
    n_rows: int,
    channels_last: bool,
) -> float:
    """A pass in either mode gives logits that can be trained; average and layout can be had.

    Returns the floating point operations of a sample.
    """
    dataset = describe(data)
    built = build_model(data, model, regularize, seed=0)
    with naming("model", model.name), torch.random.fork_rng(devices=[]):
        logits, flops = _logits(built, torch.zeros(n_rows, *dataset.shape))
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
    if regularize.ema:
        Average(built, regularize.ema)
    # Without filters to lay out the trial would be the one without the layout, by another name.
    if channels_last and not any(parameter.ndim == 4 for parameter in built.parameters()):
        raise ConfigError(
            "channels_last",
            f"`true`, but model `{model.name}` has no filters of images",
            "`false`, which is the same to it",
        )
    return flops / n_rows or 2.0 * sum(parameter.numel() for parameter in built.parameters())


def _logits(model: nn.Module, x: Tensor) -> tuple[list[Any], int]:
    """What a network gives in either mode, on the meta device where nothing needs a value.

    There shapes are passed on and nothing is computed, which spares seconds for a large network.
    The second result are the floating point operations of the pass, 0 where they are not known.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second, which slots spare

    weights = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad)
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers())
    }
    try:
        trained = functional_call(model.train(), weights, x.to("meta"))
        with FlopCounterMode(display=False) as counter:  # no block is left out by chance here
            evaluated = functional_call(model.eval(), weights, x.to("meta"))
        return [trained, evaluated], counter.get_total_flops()
    except Exception:  # a plug-in may look at values, or have tensors that are no buffers
        return [mode()(x) for mode in (model.train, model.eval)], 0


@_remembered
def _check_init(data: DataConfig, model: ModelConfig, init: InitConfig) -> None:
    draw_weights(build_model(data, model, RegularizeConfig(), seed=0), init, seed=0)


@_remembered
def _check_optim(optim: OptimConfig, regularize: RegularizeConfig) -> None:
    """The optimizer takes a step."""
    model = nn.Linear(2, 2)
    built = build_optimizer(optim, regularize, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with naming("optim", optim.name):
        built.step()


@_remembered
def _check_schedule(schedule: ScheduleConfig) -> None:
    for progress in (0.0, 1.0):
        schedule_factor(schedule, progress)


@_remembered
def _check_augment(data: DataConfig, augment: AugmentConfig) -> None:
    """A batch keeps its shape, or gets that of the network's input."""
    dataset = describe(data)
    x = torch.zeros(2, *dataset.stored)
    generator = torch.Generator().manual_seed(0)
    found = call("augment", augment.name, augment.options, x, generator)
    if not isinstance(found, Tensor) or found.shape not in (x.shape, (2, *dataset.shape)):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            "augment.name",
            f"augment `{augment.name}` makes `{shape}` of a batch of shape {tuple(x.shape)}",
            f"the shape must stay, or become {(2, *dataset.shape)}",
            f"`augment.size: {dataset.shape[-1]}`" if "size" in dict(augment.options) else "",
        )


def _check_mix(data: DataConfig, regularize: RegularizeConfig) -> None:
    try:
        mixing(0, (2, *describe(data).shape), regularize.mixup, regularize.cutmix)
    except ConfigError as error:
        where = f"regularize.{error.where}"
        raise ConfigError(where, error.found, error.allowed, error.hint) from error
