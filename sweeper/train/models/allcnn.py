"""The all-convolutional network of the training-manifold study."""

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


def allcnn(
    shape: tuple[int, ...],
    n_classes: int,
    widths: tuple[int, ...] = (96, 96, 144, 144),
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """Convolution → ReLU → norm, every second one with stride 2; the last to the classes; mean.

    Convolutions are 3×3 and padded by 1; the last is 1×1 and, with its ReLU and norm, makes one
    channel a class, so that logits are means over the image. All have biases. Dropout acts before
    each stride. By default the `allcnn` of Mao et al., PNAS 121(12), 2024,
    doi:10.1073/pnas.2310002121: 399,486 parameters on CIFAR-10. After Springenberg et al.,
    "Striving for Simplicity", ICLR 2015 workshop, arXiv:1412.6806.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample, any size.
    widths : channels of each 3×3 convolution, at least one.

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
        if index % 2:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Conv2d(n_in, width, 3, stride=1 + index % 2, padding=1))
        layers += [ACTIVATIONS[activation](), *image_norm(norm, width, affine)]
        n_in = width
    layers += [nn.Conv2d(n_in, n_classes, 1), ACTIVATIONS[activation]()]
    layers += image_norm(norm, n_classes, affine)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
