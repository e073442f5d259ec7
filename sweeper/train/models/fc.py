"""Fully connected networks."""

from __future__ import annotations

import math

from torch import nn

from sweeper.train.models.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    check_affine,
    check_widths,
    vector_norm,
)


def fc(
    shape: tuple[int, ...],
    n_classes: int,
    widths: tuple[int, ...] = (128, 64),
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Layers of linear → ReLU → norm → dropout, then a linear one to the classes.

    Norms have no weights by default. With widths 1024, 512, 256, 128 and batch norm it is the
    `fc` of Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121: 3,837,066 parameters on
    CIFAR-10.

    Parameters
    ----------
    shape : of one sample; flattened.
    widths : units of each hidden layer; may be empty, which leaves a linear classifier.

    Raises
    ------
    ConfigError : an option does not fit.
    """
    check_widths(widths, at_least_one=False)
    check_affine(norm, affine, usual=False)
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = math.prod(shape)
    for width in widths:
        layers += [nn.Linear(n_in, width), ACTIVATIONS[activation]()]
        layers += [*vector_norm(norm, width, affine), nn.Dropout(dropout)]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_classes))
