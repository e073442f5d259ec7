"""Random transformations of a training batch, on its device, all samples at once.

An augmentation sees pixels before the mean is taken off: float32 in [0, 1], 0 is black. It draws
for each sample on its own, from its generator alone, and never makes the host wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, pad

from sweeper.errors import ConfigError
from sweeper.train.images import image_shape
from sweeper.train.policies import randaugment


def none(x: Tensor, generator: Generator) -> Tensor:
    """The batch as it is."""
    return x


def flip(x: Tensor, generator: Generator) -> Tensor:
    """Each image mirrored left to right with probability ½.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    generator : on the device of `x`.

    Raises
    ------
    ConfigError : there is no image.
    """
    mirrored = _half(image_shape(x)[0], generator)
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def _half(batch: int, generator: Generator) -> Tensor:
    """(batch,) bool, each true with probability ½."""
    return torch.rand(batch, generator=generator, device=generator.device) < 0.5


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
    return _moved(x, generator, "pixels", pixels)


def crop_flip(x: Tensor, generator: Generator, padding: int = 4) -> Tensor:
    """A crop of each image with a black frame around it, as large as the image, then `flip`.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    generator : on the device of `x`.
    padding : width of the frame in pixels; all crops are equally likely.

    Raises
    ------
    ConfigError : `padding` is negative or not less than the image's sides, or there is no image.
    """
    return flip(_moved(x, generator, "padding", padding), generator)


def _moved(x: Tensor, generator: Generator, option: str, pixels: int) -> Tensor:
    batch, _, height, width = image_shape(x)
    if not 0 <= pixels < min(height, width):
        allowed = f"a whole number from 0 to {min(height, width) - 1}"
        raise ConfigError(option, f"`{pixels}`", allowed)
    top, left = torch.randint(2 * pixels + 1, (2, batch), generator=generator, device=x.device)
    windows = pad(x, (pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=x.device), :, top, left]


def cutout(x: Tensor, generator: Generator, side: int = 16) -> Tensor:
    """Black out one square of each image; its centre is uniform, so the border may cut it.

    The authors' zeros come after the mean is taken off, so their square is grey, not black.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    generator : on the device of `x`.
    side : of the square, in pixels.

    Raises
    ------
    ConfigError : `side` is not from 1 to the image's shorter side, or there is no image.

    References
    ----------
    DeVries & Taylor, arXiv:1708.04552; 16 pixels is their side for CIFAR-10.
    """
    batch, _, height, width = image_shape(x)
    if not 1 <= side <= min(height, width):
        raise ConfigError("side", f"`{side}`", f"a whole number from 1 to {min(height, width)}")
    is_hit = []
    for length, shape in ((height, (1, 1, -1, 1)), (width, (1, 1, 1, -1))):
        centre = torch.randint(length, (batch, 1, 1, 1), generator=generator, device=x.device)
        offset = torch.arange(length, device=x.device).view(shape) - (centre - side // 2)
        is_hit.append((offset >= 0) & (offset < side))
    return x.masked_fill(is_hit[0] & is_hit[1], 0.0)


def full(x: Tensor, generator: Generator, num_ops: int = 2, magnitude: int = 12) -> Tensor:
    """The paper's full recipe: `flip`, then `randaugment`.

    The authors' recipe has a crop, a colour jitter and an erasing as well, which its configuration
    turns off (scale 1, jitter 0, probability 0). A later version of their code has the operations
    of RandAugment commented out and so is `flip` alone; this is the earlier one, that of the name.

    Parameters
    ----------
    x : (batch, 1 or 3, height, width).
    generator : on the device of `x`.
    num_ops, magnitude : as in `randaugment`; the defaults are the authors' configuration.

    Raises
    ------
    ConfigError : as `randaugment`.

    References
    ----------
    Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121; `get_data` and
    `configs/data/cifar10-full.yaml` in github.com/grasp-lyrl/low-dimensional-deepnets.
    """
    return randaugment(flip(x, generator), generator, num_ops, magnitude)


def resized_crop_flip(x: Tensor, generator: Generator, size: int = 224) -> Tensor:
    """ImageNet's standard recipe: a box of each image, of random area and aspect, then `flip`.

    The box has a share of the area uniform on [0.08, 1] and an aspect log-uniform on [3/4, 4/3].
    It is resampled bilinearly and without antialiasing, which is the same where the box is smaller
    than `size`, and nearly so else: stored images are 256 pixels for 224, so that no box shrinks
    by more than 1.14. torchvision takes its box from the image as it is in the file; here it is
    from the stored square.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    generator : on the device of `x`.
    size : height and width of the result, in pixels.

    Returns
    -------
    x : (batch, n_channels, size, size).

    Raises
    ------
    ConfigError : `size` is less than 1, or there is no image.

    References
    ----------
    Szegedy et al., arXiv:1409.4842, §6; torchvision's `RandomResizedCrop`.
    """
    batch, _, height, width = image_shape(x)
    if size < 1:
        raise ConfigError("size", f"`{size}`", "a whole number from 1")
    boxes = draw_boxes(batch, height, width, generator)
    return resample(x, boxes, size, _half(batch, generator))


def draw_boxes(batch: int, height: int, width: int, generator: Generator) -> Tensor:
    """Top, left, height and width of a random box for each sample, whole pixels.

    The first of ten candidates that fits into the image; if none does, the largest centred box
    whose aspect is in the range. torchvision draws its boxes so, one after another.

    Returns
    -------
    boxes : (4, batch) float32 on the generator's device.
    """
    device, bound = generator.device, math.log(4 / 3)
    share, tilt = torch.rand(2, batch, 10, generator=generator, device=device)
    down, across = torch.rand(2, batch, generator=generator, device=device)
    area = height * width * (0.08 + 0.92 * share)
    aspect = torch.exp((2 * tilt - 1) * bound)  # width / height
    heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    widest, highest = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    found = fits.any(1)
    high = torch.where(found, heights.gather(1, first)[:, 0], highest)
    wide = torch.where(found, widths.gather(1, first)[:, 0], widest)
    top = torch.where(found, ((height - high + 1) * down).floor(), (height - highest) // 2)
    left = torch.where(found, ((width - wide + 1) * across).floor(), (width - widest) // 2)
    return torch.stack((top, left, high, wide))


def resample(x: Tensor, boxes: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """A box of each image resampled bilinearly to `size` × `size`, and mirrored or not.

    The same as cutting the box out and then resizing: nothing outside it is seen.

    Parameters
    ----------
    x : (batch, n_channels, height, width).
    boxes : (4, batch): top, left, height and width, whole pixels inside the image.
    size : height and width of the result, in pixels.
    mirrored : (batch,) bool.
    """
    steps = (torch.arange(size, device=x.device) + 0.5) / size
    axes = []
    for start, extent, length in zip(boxes[:2], boxes[2:], x.shape[-2:], strict=True):
        start, extent = start[:, None], extent[:, None]
        # Pixel i covers i … i + 1 and stands for its middle, which is what `align_corners=False`
        # means too: there −1 and 1 are the outer edges of the image, so that images of every size
        # cover the same square.
        position = (start + steps * extent).clamp(start + 0.5, start + extent - 0.5)
        axes.append(position * (2 / length) - 1)
    rows, columns = axes
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    # Each coordinate in a block of its own, which is faster to write and as fast to read.
    grid = x.new_empty(len(x), 2, size, size)
    grid[:, 0], grid[:, 1] = columns[:, None, :], rows[:, :, None]
    grid = grid.permute(0, 2, 3, 1)
    return grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
