"""How weights are drawn before training.

`kaiming`, `xavier` and `normal` draw the weights of linear and convolutional layers and of
`torch.nn.MultiheadAttention`, and set their biases to zero. Fans are those of the matrix as
stored, so that queries, keys and values packed into one count as one. All else (norms, tokens,
position embeddings) stays as the model's constructor made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn

from sweeper.errors import ConfigError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def torch_default(model: nn.Module, generator: Generator) -> None:
    """What the layers' constructors drew (for PyTorch's own, uniform on ±1/√fan_in)."""


def kaiming(model: nn.Module, generator: Generator) -> None:
    """Normal with variance 2/fan_in.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852, Eq. 10.
    """
    for weight in _prepared(model):
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def xavier(model: nn.Module, generator: Generator) -> None:
    """Uniform on ±√(6/(fan_in + fan_out)).

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010, Eq. 16.
    """
    for weight in _prepared(model):
        nn.init.xavier_uniform_(weight, generator=generator)


def normal(model: nn.Module, generator: Generator, std: float = 0.05) -> None:
    """Normal with standard deviation `std` in every layer.

    Raises
    ------
    ConfigError : `std` is negative.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ConfigError("std", f"`{std}`", "a number at least 0 is needed")
    for weight in _prepared(model):
        nn.init.normal_(weight, std=std, generator=generator)


def _prepared(model: nn.Module) -> Iterator[Tensor]:
    """The weights to draw, their biases set to zero."""
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    if not layers and not attentions:
        raise ConfigError(
            "name", "the model has no linear, convolutional or attention layer to draw", "`torch`"
        )
    for layer in layers:
        _zero(layer.bias)
        yield layer.weight
    for attention in attentions:
        _zero(attention.in_proj_bias)
        weights = (getattr(attention, name) for name in _ATTENTION_WEIGHTS)
        yield from (weight for weight in weights if weight is not None)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        with torch.no_grad():
            bias.zero_()
