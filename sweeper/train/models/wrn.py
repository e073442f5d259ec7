"""Wide residual networks."""

from __future__ import annotations

from torch import nn

from sweeper.errors import ConfigError
from sweeper.train.models.layers import (
    ACTIVATIONS,
    Activation,
    Norm,
    Residual,
    check_affine,
    check_at_least,
    check_images,
    depth_chances,
    image_norm,
)


def wrn(
    shape: tuple[int, ...],
    n_classes: int,
    depth: int = 16,
    widen: int = 4,
    base: int = 16,
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = False,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Three stages of pre-activation blocks; norm → ReLU → mean; linear.

    Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146, Table 1. As in
    Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121, norms have no weights by default,
    a block strides in its second convolution, and its way around is the identity, or a 1×1
    convolution with bias of what came in where shapes change. Dropout acts between a block's two
    convolutions.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample, any size.
    depth : 6 n + 4, for n blocks a stage.
    widen : factor on the channels of all blocks.
    base : channels of the first convolution; stages have 1, 2 and 4 times `widen` · `base`.
    norm : with `none`, 3×3 convolutions have biases.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    check_images(shape)
    check_at_least(1, widen=widen, base=base)
    check_affine(norm, affine, usual=False)
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError("depth", f"`{depth}`", "6 n + 4 is needed: 10, 16, 22, 28, 40, …")

    def before(channels: int) -> list[nn.Module]:
        return [*image_norm(norm, channels, affine), ACTIVATIONS[activation]()]

    def convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
        # No bias before a norm, as in the paper, even where the norm has no shift either.
        return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=norm == "none")

    n_blocks = (depth - 4) // 6
    chances = depth_chances(stochastic_depth, 3 * n_blocks)
    layers: list[nn.Module] = [convolution(shape[0], base)]
    n_in = base
    for index, chance in enumerate(chances):
        stage, first = index // n_blocks, index % n_blocks == 0
        width, stride = base * widen * 2**stage, 2 if stage and first else 1
        branch = [*before(n_in), convolution(n_in, width), nn.Dropout(dropout)]
        branch += [*before(width), convolution(width, width, stride)]
        changes = stride != 1 or width != n_in
        around = nn.Conv2d(n_in, width, 1, stride=stride) if changes else None
        layers.append(Residual(nn.Sequential(*branch), around, chance))
        n_in = width
    layers += before(n_in)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


def wrn_10_4_8(
    shape: tuple[int, ...],
    n_classes: int,
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = False,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """`wrn` of depth 10, widened 4 times from 8 channels: 300,226 parameters on CIFAR-10.

    The small wide residual network of Mao et al., PNAS 121(12), 2024,
    doi:10.1073/pnas.2310002121.

    Raises
    ------
    ConfigError : as `wrn`.
    """
    kept = (activation, norm, affine, dropout, stochastic_depth)
    return wrn(shape, n_classes, 10, 4, 8, *kept)


def wrn_16_4_64(
    shape: tuple[int, ...],
    n_classes: int,
    activation: Activation = "relu",
    norm: Norm = "batch",
    affine: bool = False,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """`wrn` of depth 16, widened 4 times from 64 channels: 43,890,122 parameters on CIFAR-10.

    The large wide residual network of Mao et al., PNAS 121(12), 2024,
    doi:10.1073/pnas.2310002121.

    Raises
    ------
    ConfigError : as `wrn`.
    """
    kept = (activation, norm, affine, dropout, stochastic_depth)
    return wrn(shape, n_classes, 16, 4, 64, *kept)
