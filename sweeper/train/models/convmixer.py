"""ConvMixer."""

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


def convmixer(
    shape: tuple[int, ...],
    n_classes: int,
    dim: int = 256,
    depth: int = 8,
    kernel: int = 5,
    patch: int = 2,
    activation: Activation = "gelu",
    norm: Norm = "batch",
    affine: bool = True,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Patches mixed in space by depthwise convolutions and in channels by 1×1 ones; mean; linear.

    Trockman & Kolter, "Patches Are All You Need?", TMLR 2023, arXiv:2201.09792, Eqs. 1–3. By
    default the `convmixer` of Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121:
    594,186 parameters on CIFAR-10. Dropout, which the paper does not have, acts on the means,
    before the linear layer; stochastic depth on the depthwise branch, the only one with a way
    around it.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample; what a patch does not fill is cut off.
    dim : channels everywhere.
    depth : number of blocks.
    kernel : side of a depthwise convolution in patches, odd.
    patch : side of a patch in pixels, at most that of the image.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    check_images(shape)
    check_at_least(1, dim=dim, depth=depth, kernel=kernel, patch=patch)
    check_affine(norm, affine, usual=True)
    if kernel % 2 == 0:
        raise ConfigError("kernel", f"`{kernel}`", "an odd number, so that it has a middle")
    if patch > min(shape[1:]):
        raise ConfigError("patch", f"`{patch}`", f"at most the image's side, {min(shape[1:])}")

    def after(convolution: nn.Conv2d) -> list[nn.Module]:
        return [convolution, ACTIVATIONS[activation](), *image_norm(norm, dim, affine)]

    layers = after(nn.Conv2d(shape[0], dim, patch, stride=patch))
    for chance in depth_chances(stochastic_depth, depth):
        depthwise = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        layers.append(Residual(nn.Sequential(*after(depthwise)), chance=chance))
        layers += after(nn.Conv2d(dim, dim, 1))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(dim, n_classes)]
    return nn.Sequential(*layers, *head)
