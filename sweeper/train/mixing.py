"""Mixup and cutmix: a batch mixed with itself, each sample with its partner.

What is mixed with what is drawn on the host from a seed, so that it reaches the device as plain
numbers and no step waits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from sweeper.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed. The loss is weight · loss(y) + (1 − weight) · loss(partner(y)).

    Parameters
    ----------
    weight : the sample's own share, in [0, 1]; 1 leaves the batch as it is.
    box : top, left, bottom and right in pixels, where the partner is pasted; None: all of both is
        averaged.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None

    def apply(self, x: Tensor) -> Tensor:
        """The mixed batch; `x` is not changed.

        Parameters
        ----------
        x : (batch, *shape), the shape that the mix was drawn for.
        """
        if self.weight == 1.0:
            return x
        if self.box is None:
            return torch.lerp(self.partner(x), x, self.weight)
        top, left, bottom, right = self.box
        mixed = x.clone()
        mixed[..., top:bottom, left:right] = self.partner(x[..., top:bottom, left:right])
        return mixed

    def partner(self, x: Tensor) -> Tensor:
        """What each sample is mixed with: the one before it, so one at random in a shuffled batch.

        Parameters
        ----------
        x : (batch, ...), such as samples or labels.
        """
        return x.roll(1, 0)


def mixing(seed: int, shape: tuple[int, ...], mixup: float, cutmix: float) -> Mix:
    """The mix of one batch; of both kinds, either by turns with equal chance.

    The weight λ is of Beta(α, α). Cutmix pastes a box of a share 1 − λ of the image, its centre
    uniform, so that the border may cut it; its weight is then the share that is really left.

    Parameters
    ----------
    seed : of this batch alone.
    shape : (batch, *shape) of the batch; alone in it, a sample stays as it is.
    mixup, cutmix : α of each, at least 0; 0 is off.

    Raises
    ------
    ConfigError : `cutmix` is not 0 and the samples are no images.

    References
    ----------
    Zhang et al., mixup, arXiv:1710.09412. Yun et al., CutMix, arXiv:1905.04899, Eq. 1–2. One of
    the two a batch: Wightman, timm, `timm.data.Mixup` with its default `switch_prob` of 0.5.
    """
    if cutmix and len(shape) != 4:
        raise ConfigError("cutmix", f"samples of shape `{tuple(shape[1:])}`", "images are needed")
    if shape[0] == 1 or not (mixup or cutmix):
        return Mix(1.0)
    source = random.Random(seed)
    cuts = bool(cutmix) and (not mixup or source.random() < 0.5)
    alpha = cutmix if cuts else mixup
    weight = source.betavariate(alpha, alpha)
    return _cut(source, weight, shape[-2], shape[-1]) if cuts else Mix(weight)


def _cut(source: random.Random, weight: float, height: int, width: int) -> Mix:
    """A box whose half sides are whole numbers of pixels, as in the authors' code."""
    row, column = source.randrange(height), source.randrange(width)
    half = 0.5 * (1.0 - weight) ** 0.5
    down, across = int(half * height), int(half * width)
    top, bottom = max(row - down, 0), min(row + down, height)
    left, right = max(column - across, 0), min(column + across, width)
    share = (bottom - top) * (right - left) / (height * width)
    return Mix(1.0 - share, (top, left, bottom, right))
