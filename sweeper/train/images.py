"""What the augmentations ask of a batch: that its samples are images."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor

from sweeper.errors import ConfigError


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
