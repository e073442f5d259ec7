"""What the augmentations share: a batch must be of images, and may be worked on in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Container

import torch
from torch import Tensor

from sweeper.errors import ConfigError

# Values in a part: on the CPU few enough for its cache, elsewhere so many that a step still starts
# few kernels.
_ON_CPU, _ELSEWHERE = 2**20, 2**23


def image_shape(x: Tensor, n_channels: Container[int] | None = None) -> tuple[int, int, int, int]:
    """Batch size, number of channels, height and width of a batch of images.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    n_channels : the numbers of channels that will do; None: any.

    Raises
    ------
    ConfigError : the samples are no images, or have another number of channels.
    """
    if x.ndim != 4:
        raise ConfigError("name", f"samples of shape `{tuple(x.shape[1:])}`", "images are needed")
    batch, channels, height, width = x.shape
    if n_channels is not None and channels not in n_channels:
        raise ConfigError("name", f"images of {channels} channels", "grey or RGB images are needed")
    return batch, channels, height, width


def in_parts(change: Callable[..., Tensor], x: Tensor, *drawn: Tensor) -> Tensor:
    """What `change` makes of a batch, a few samples at a time: it needs less memory in between.

    Parameters
    ----------
    change : of samples, each on its own, and what was drawn for them; keeps their shape.
    x : (batch, n_channels, height, width).
    drawn : (batch, ...) each.
    """
    n_values = _ON_CPU if x.device.type == "cpu" else _ELSEWHERE
    n_samples = max(1, n_values // math.prod(x.shape[1:]))
    if len(x) <= n_samples:
        return change(x, *drawn)
    changed = torch.empty_like(x)
    parts = zip(*(one.split(n_samples) for one in (changed, x, *drawn)), strict=True)
    for into, part, *its in parts:
        into.copy_(change(part, *its))
    return changed
