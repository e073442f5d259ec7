"""Random transformations of a training batch, on its device, all samples at once.

An augmentation sees pixels before the mean is taken off: float32, 0 is black.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from sweeper.errors import ConfigError


def none(x: Tensor, generator: Generator) -> Tensor:
    """The batch as it is."""
    return x


def shift(x: Tensor, generator: Generator, pixels: int = 1) -> Tensor:
    """Move each image by its own whole offset, what comes in from outside being black.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    generator : on the device of `x`.
    pixels : the largest move; each of the two offsets is uniform on −pixels … pixels.

    Raises
    ------
    ConfigError : `pixels` is negative or not less than the image's sides, or there is no image.
    """
    if x.ndim != 4:
        raise ConfigError("name", f"samples of shape `{tuple(x.shape[1:])}`", "images are needed")
    batch, channels, height, width = x.shape
    if not 0 <= pixels < min(height, width):
        allowed = f"a whole number from 0 to {min(height, width) - 1}"
        raise ConfigError("pixels", f"`{pixels}`", allowed)
    offset = torch.randint(
        2 * pixels + 1, (2, batch, 1, 1, 1), generator=generator, device=x.device
    )
    across = torch.arange(width, device=x.device)
    rows = offset[0] + torch.arange(height, device=x.device).view(-1, 1)
    columns = offset[1] + across
    sample = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(-1, 1, 1)
    return pad(x, (pixels,) * 4)[sample, channel, rows, columns]
