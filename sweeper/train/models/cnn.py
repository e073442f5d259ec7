"""Small all-convolutional networks."""

from __future__ import annotations

from torch import nn

from sweeper.train.models.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    check_affine,
    check_images,
    check_widths,
    image_norm,
)


def cnn(
    shape: tuple[int, ...],
    n_classes: int,
    widths: tuple[int, ...] = (16, 16, 32, 32),
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """3×3 convolution → norm → ReLU, every second one with stride 2; mean; linear.

    In the spirit of All-CNN: strides in the place of pooling, and a mean over the image in the
    place of hidden linear layers. Springenberg et al., "Striving for Simplicity", ICLR 2015
    workshop, arXiv:1412.6806. Dropout acts on the means, before the linear layer.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample, any size.
    widths : channels of each convolution, at least one.
    norm : with `none`, convolutions have biases.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    check_images(shape)
    check_widths(widths)
    check_affine(norm, affine, usual=True)
    layers: list[nn.Module] = []
    n_in = shape[0]
    for index, width in enumerate(widths):
        # No bias before a norm, whose own shift takes its place.
        stride, bias = 1 + index % 2, norm == "none"
        layers.append(nn.Conv2d(n_in, width, 3, stride=stride, padding=1, bias=bias))
        layers += [*image_norm(norm, width, affine), ACTIVATIONS[activation]()]
        n_in = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(n_in, n_classes)]
    return nn.Sequential(*layers, *head)
