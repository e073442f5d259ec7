"""The four residual networks of the deep-frequency study."""

from __future__ import annotations

from typing import Literal

from torch import nn

from sweeper.train.models.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    Residual,
    check_affine,
    check_at_least,
    check_images,
    image_norm,
)


def residual(
    shape: tuple[int, ...],
    n_classes: int,
    blocks: Literal[6, 4, 2, 0] = 6,
    width: int = 64,
    hidden: int = 1024,
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """A 3×3 convolution, stages of two residual blocks, 4×4 means, two hidden linear layers.

    Each stage but the first doubles the channels and halves the image. Every convolution has a
    bias, a norm and a ReLU; a block's branch has its own ReLU before it is added, and another one
    follows. Where a block strides, the way around it is a 1×1 convolution with norm and ReLU.
    Dropout (0.1 in the study) acts after the first convolution, each stage and the means.

    Xu & Zhou, "Deep frequency principle towards understanding why deeper learning is faster",
    AAAI 2021, arXiv:2007.14313: its ResNet18-1 to -4 have 6, 4, 2 and 0 blocks; 4,886,794,
    3,834,378, 5,405,322 and 5,257,098 parameters on CIFAR-10. It draws weights as `init: xavier`
    does. Norms here are PyTorch's; those of the study, Keras', have momentum 0.01 and epsilon
    1e-3 in the terms of PyTorch, and its strides start one pixel later.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample, any size; means are of the whole image
        where it is smaller than 4×4 by then.
    width : channels of the first stage.
    hidden : units of each hidden linear layer.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    check_images(shape)
    check_at_least(1, width=width, hidden=hidden)
    check_affine(norm, affine, usual=True)

    def convolution(n_in: int, n_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        filters = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=kernel // 2)
        return [filters, *image_norm(norm, n_out, affine), ACTIVATIONS[activation]()]

    layers = [*convolution(shape[0], width, 3), nn.Dropout(dropout)]
    n_in, sides = width, list(shape[1:])
    for stage in range(blocks // 2):
        n_out, stride = width * 2**stage, 1 if stage == 0 else 2
        for step in (stride, 1):
            branch = [*convolution(n_in, n_out, 3, step), *convolution(n_out, n_out, 3)]
            around = nn.Sequential(*convolution(n_in, n_out, 1, step)) if step != 1 else None
            layers += [Residual(nn.Sequential(*branch), around), ACTIVATIONS[activation]()]
            n_in = n_out
        layers.append(nn.Dropout(dropout))
        sides = [-(-side // stride) for side in sides]
    window = [min(4, side) for side in sides]
    n_flat = n_in * (sides[0] // window[0]) * (sides[1] // window[1])
    layers += [nn.AvgPool2d((window[0], window[1])), nn.Dropout(dropout), nn.Flatten()]
    for n_units in (n_flat, hidden):
        layers += [nn.Linear(n_units, hidden), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(hidden, n_classes))
