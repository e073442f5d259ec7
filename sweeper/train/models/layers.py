"""What several architectures share: activations, norms, stochastic depth, checks of options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from torch import Tensor, nn

from sweeper.errors import ConfigError

Activation = Literal["relu", "gelu", "silu", "tanh"]
Norm = Literal["batch", "layer", "group", "none"]

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def image_norm(norm: Norm, width: int, affine: bool) -> list[nn.Module]:
    """The norm of (batch, width, height, width) features, an empty list for `none`.

    `batch` is over the batch and the image (Ioffe & Szegedy, arXiv:1502.03167), `layer` over all
    channels of one image (Ba et al., arXiv:1607.06450), `group` over 16 channels of one image, or
    all of them where 16 does not divide their number (Wu & He, arXiv:1803.08494, Table 3).

    Parameters
    ----------
    width : number of channels.
    affine : whether each channel is then scaled and shifted by weights of its own.
    """
    if norm == "none":
        return []
    if norm == "batch":
        return [nn.BatchNorm2d(width, affine=affine)]
    return [nn.GroupNorm(1 if norm == "layer" else _n_groups(width), width, affine=affine)]


def vector_norm(norm: Norm, width: int, affine: bool) -> list[nn.Module]:
    """The norm of (batch, width) features, as `image_norm`."""
    if norm == "none":
        return []
    if norm == "batch":
        return [nn.BatchNorm1d(width, affine=affine)]
    if norm == "layer":
        return [nn.LayerNorm(width, elementwise_affine=affine)]
    return [nn.GroupNorm(_n_groups(width), width, affine=affine)]


def _n_groups(width: int) -> int:
    return 1 if width % 16 else width // 16


class StochasticDepth(nn.Module):
    """In training, a residual branch that is 0 for some samples of the batch, drawn each time.

    What is left is divided by the chance of being left, so that its mean stays. Huang et al.,
    "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382, where it is instead
    multiplied by that chance in evaluation, and a whole batch shares its draw; per sample as in
    torchvision's `StochasticDepth` of mode `row`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        """The branch (batch, ...), or 0 for some of its samples."""
        if not self.training or self.p == 0.0:
            return branch
        shape = [len(branch)] + [1] * (branch.ndim - 1)
        return branch * branch.new_empty(shape).bernoulli_(1.0 - self.p).div_(1.0 - self.p)

    def extra_repr(self) -> str:
        """The chance of a zero, in a printed model."""
        return f"p={self.p}"


class Residual(nn.Module):
    """A branch, and the way around it, added.

    Parameters
    ----------
    branch : what stochastic depth may drop.
    around : the identity if None.
    chance : of dropping the branch, for each sample.
    """

    def __init__(
        self, branch: nn.Module, around: nn.Module | None = None, chance: float = 0.0
    ) -> None:
        super().__init__()
        self.branch = branch
        self.around = nn.Identity() if around is None else around
        self.stochastic_depth = StochasticDepth(chance)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, (batch, ...)."""
        return self.around(x) + self.stochastic_depth(self.branch(x))


def depth_chances(stochastic_depth: float, n_blocks: int) -> list[float]:
    """The chance of dropping each block: linear in its number, up to `stochastic_depth`.

    Huang et al., arXiv:1603.09382, Eq. 4.
    """
    return [stochastic_depth * (index + 1) / n_blocks for index in range(n_blocks)]


def check_images(shape: tuple[int, ...]) -> None:
    """Refuse samples that are no images.

    Raises
    ------
    ConfigError : `shape` is not (n_channels, height, width).
    """
    if len(shape) != 3:
        raise ConfigError("name", f"samples of shape `{shape}`", "images are needed")


def check_at_least(least: int, **options: int) -> None:
    """Refuse whole numbers that are too small.

    Raises
    ------
    ConfigError : naming the first option below `least`.
    """
    for option, found in options.items():
        if found < least:
            raise ConfigError(option, f"`{found}`", f"a whole number at least {least}")


def check_widths(widths: Iterable[int], at_least_one: bool = True) -> None:
    """Refuse widths that no layer can have.

    Raises
    ------
    ConfigError : one is below 1, or there is none and one is needed.
    """
    widths = list(widths)
    if (at_least_one and not widths) or any(width < 1 for width in widths):
        raise ConfigError("widths", f"`{widths}`", "whole numbers at least 1 are needed")


def check_affine(norm: str, affine: bool, usual: bool) -> None:
    """Refuse an `affine` that nothing depends on: it would name one network twice.

    Raises
    ------
    ConfigError : there is no norm, and `affine` is not its default.
    """
    if norm == "none" and affine != usual:
        raise ConfigError(
            "affine",
            f"`{str(affine).lower()}`, but `norm` is `none`",
            "leave it out where there is no norm",
        )
