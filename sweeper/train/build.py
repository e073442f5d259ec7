"""From a trial's configuration to its network and its optimizer."""

from __future__ import annotations

import torch
from torch import Generator, nn
from torch.optim import Optimizer

from sweeper.errors import ConfigError
from sweeper.registry import entry
from sweeper.sections import DataConfig, InitConfig, ModelConfig, OptimConfig, RegularizeConfig
from sweeper.train.data import describe
from sweeper.train.optim import parameter_groups
from sweeper.train.plug_in import call
from sweeper.train.randomness import seed_of


def build_model(
    data: DataConfig, model: ModelConfig, regularize: RegularizeConfig, seed: int
) -> nn.Module:
    """The network on the CPU as its constructor draws it; the global generator is left as it was.

    Raises
    ------
    ConfigError : the entry refuses its options, fails, or returns something else.
    """
    dataset = describe(data)
    supplied = entry("model", model.name).supplied
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "init", 0))
        built = call(
            "model",
            model.name,
            model.options,
            dataset.shape,
            len(dataset.class_names),
            **{name: getattr(regularize, name) for name in sorted(supplied)},
        )
    if not isinstance(built, nn.Module):
        raise ConfigError(
            "model.name",
            f"model `{model.name}` returned a {type(built).__name__}",
            "a `torch.nn.Module`",
        )
    return built


def draw_weights(model: nn.Module, init: InitConfig, seed: int) -> None:
    """Draw the weights of a network on the CPU anew, as `init` says.

    Raises
    ------
    ConfigError : the entry refuses its options or fails.
    """
    generator = Generator().manual_seed(seed_of(seed, "init", 1))
    call("init", init.name, init.options, model, generator)


def build_optimizer(
    optim: OptimConfig, regularize: RegularizeConfig, model: nn.Module
) -> Optimizer:
    """The optimizer of a network's parameters; each group keeps its peak rate as `initial_lr`.

    The entry is given the parameters, or two groups of them if only weights decay.

    Raises
    ------
    ConfigError : the entry refuses its options, fails, or returns something else; weights alone
        are to decay and there are none.
    """
    params = parameter_groups(model, regularize.weight_decay, regularize.decay)
    built = call("optim", optim.name, optim.options, params, optim.lr, regularize.weight_decay)
    if not isinstance(built, Optimizer):
        raise ConfigError(
            "optim.name",
            f"optim `{optim.name}` returned a {type(built).__name__}",
            "a `torch.optim.Optimizer`",
        )
    for group in built.param_groups:
        group["initial_lr"] = group["lr"]
    return built
