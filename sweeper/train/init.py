"""How weights are drawn before training.

`kaiming`, `xavier`, `orthogonal`, `normal` and `uniform` draw the weights of linear and
convolutional layers and of `torch.nn.MultiheadAttention`, and set their biases to zero. Fans are
those of the matrix as stored, so that queries, keys and values packed into one count as one. All
else (norms, tokens, position embeddings, transposed convolutions) stays as the model's constructor
made it.

`perturbed` and `checkpoint` change everything that is trained.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sweeper.errors import CheckpointError, ConfigError
from sweeper.train.checkpoint import load
from sweeper.train.randomness import seed_of

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
    _at_least_zero("std", std)
    for weight in _prepared(model):
        nn.init.normal_(weight, std=std, generator=generator)


def uniform(model: nn.Module, generator: Generator, scale: float = 0.05) -> None:
    """Uniform on ±`scale` in every layer.

    Raises
    ------
    ConfigError : `scale` is negative.
    """
    _at_least_zero("scale", scale)
    for weight in _prepared(model):
        nn.init.uniform_(weight, -scale, scale, generator=generator)


def orthogonal(model: nn.Module, generator: Generator, gain: float = 1.0) -> None:
    """`gain` times a random matrix of orthonormal rows or columns, whichever are fewer.

    A convolution's matrix has a row for each output channel. Saxe, McClelland & Ganguli, "Exact
    solutions to the nonlinear dynamics of learning", ICLR 2014, arXiv:1312.6120.

    Raises
    ------
    ConfigError : `gain` is negative.
    """
    _at_least_zero("gain", gain)
    for weight in _prepared(model):
        nn.init.orthogonal_(weight, gain, generator=generator)


def perturbed(model: nn.Module, generator: Generator, std: float = 1.0, seed: int = 0) -> None:
    """What the constructors drew, plus `std` times standard normal numbers drawn from `seed`.

    Every parameter is perturbed, biases and norms included, in the order of the model. The
    perturbation does not depend on the trial's own seed: all trials of one architecture that name
    the same `seed` share it. It is `perturbed_normal` of Mao et al., PNAS 121(12), 2024,
    doi:10.1073/pnas.2310002121, whose standard deviation is 1.

    Raises
    ------
    ConfigError : `std` or `seed` is negative.
    """
    _at_least_zero("std", std)
    _at_least_zero("seed", seed)
    shared = Generator().manual_seed(seed_of(seed, "perturbation", 0))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=shared, dtype=parameter.dtype)
            parameter.add_(noise, alpha=std)


def checkpoint(model: nn.Module, generator: Generator, path: str = "", sha256: str = "") -> None:
    """The weights and buffers in a file: `torch.save(model.state_dict(), …)`, or a checkpoint.

    A path may hold something else tomorrow, so the trial names the file's content too.

    Parameters
    ----------
    path : the file, as the machine that trains sees it.
    sha256 : at least the first 12 hex digits of the SHA-256 of the file.

    Raises
    ------
    ConfigError : the file cannot be read, is another one, or does not fit the model.
    """
    weights = _weights_in(path, sha256)
    present = model.state_dict()
    for name, tensor in present.items():
        if name not in weights:
            raise ConfigError("path", f"`{path}` has no `{name}`", "the model needs it")
        found = weights[name]
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != tuple(tensor.shape):
            raise ConfigError(
                "path",
                f"`{name}` in `{path}` is `{shape}`",
                f"the model's has shape {tuple(tensor.shape)}",
            )
    for name in weights:
        if name not in present:
            raise ConfigError("path", f"`{path}` has `{name}`", "the model has nothing like it")
    model.load_state_dict(weights)


def _weights_in(path: str, sha256: str) -> Mapping[str, Any]:
    """The state dict in the file, whose content is checked."""
    if not path:
        raise ConfigError("path", "missing", "the file that holds the weights")
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _check_digest(path, sha256, digest)
        content = load(file)
    except OSError as error:
        raise ConfigError("path", f"cannot read `{path}`: {error.strerror}") from error
    except CheckpointError as error:
        hint = "`torch.save(model.state_dict(), path)` writes such a file"
        raise ConfigError("path", f"`{path}` is {error.found}", hint=hint) from error
    state = content.get("state")  # of a checkpoint of ours
    weights = state["model"] if isinstance(state, dict) and "model" in state else content
    if not isinstance(weights, dict):
        kind = type(weights).__name__
        raise ConfigError("path", f"`{path}` holds a {kind} in the place of weights")
    return weights


def _check_digest(path: str, given: str, digest: str) -> None:
    """Refuse a file that is not the one the trial names."""
    if not given:
        raise ConfigError(
            "sha256",
            "missing",
            "the trial is told apart by the content of its weights, which a path is not",
            f'for this file write `init.sha256: "{digest[:16]}"`',
        )
    if not re.fullmatch("[0-9a-f]{12,64}", given):
        raise ConfigError("sha256", f"`{given}`", "12 to 64 hex digits, lower case, are needed")
    if not digest.startswith(given):
        raise ConfigError(
            "sha256",
            f"`{given}`, but `{path}` has `{digest[:16]}`",
            "the file that the trial was made for",
        )


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


def _at_least_zero(option: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(option, f"`{value}`", "a number at least 0 is needed")


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        with torch.no_grad():
            bias.zero_()
