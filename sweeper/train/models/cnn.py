"""Small all-convolutional networks."""

from __future__ import annotations

from torch import nn

from sweeper.errors import ConfigError


def cnn(
    shape: tuple[int, ...],
    n_classes: int,
    widths: tuple[int, ...] = (16, 16, 32, 32),
    dropout: float = 0.0,
) -> nn.Module:
    """3×3 convolution → batch norm → ReLU, every second one with stride 2; mean; linear.

    In the spirit of All-CNN: strides in the place of pooling, and a mean over the image in the
    place of hidden linear layers. Springenberg et al., "Striving for Simplicity", ICLR 2015
    workshop, arXiv:1412.6806. Dropout acts on the means, before the linear layer.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample, any size.
    widths : channels of each convolution, at least one.

    Raises
    ------
    ConfigError : samples are not images; there is no width, or one below 1.
    """
    if len(shape) != 3:
        raise ConfigError("name", f"samples of shape `{shape}`", "images are needed")
    if not widths or any(width < 1 for width in widths):
        raise ConfigError("widths", f"`{list(widths)}`", "whole numbers at least 1 are needed")
    layers: list[nn.Module] = []
    n_in = shape[0]
    for index, width in enumerate(widths):
        # No bias: the norm would take it off again.
        convolution = nn.Conv2d(n_in, width, 3, stride=1 + index % 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        n_in = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(n_in, n_classes)]
    return nn.Sequential(*layers, *head)
