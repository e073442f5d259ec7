"""RandAugment and TrivialAugment: operations of a list, drawn for each image on its own.

Both see an image as torchvision does, as whole levels from 0 to 255: pixels are rounded to them
first, which changes nothing in images stored as bytes, and others by 1/510 at most. Each operation
is computed for the whole batch and changes the images that drew it. Most are tables from level to
level, so that all of these together cost one look-up.
"""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from sweeper.errors import ConfigError
from sweeper.train.colour import grey
from sweeper.train.images import image_shape, in_parts

# In torchvision's order and by its names.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
N_LEVELS = 31  # of strength, from none to the largest
_SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(1, 6)
_BRIGHTNESS, _COLOR, _CONTRAST, _SHARPNESS = range(6, 10)
_POSTERIZE, _SOLARIZE, _AUTOCONTRAST, _EQUALIZE = range(10, 14)


def randaugment(x: Tensor, generator: Generator, num_ops: int = 2, magnitude: int = 9) -> Tensor:
    """A few operations on each image, one after another, all of one strength.

    As torchvision's `RandAugment` on uint8 images with its defaults (31 strengths, nearest pixel,
    black outside), called once a sample.

    Parameters
    ----------
    x : (batch, 1 or 3, height, width) in [0, 1].
    generator : on the device of `x`.
    num_ops : how many operations, each of the 14 equally likely.
    magnitude : strength of those that have one, from 0 to 30; half of the signed ones are negative.

    Raises
    ------
    ConfigError : an option is out of its range, or there is no grey or RGB image.

    References
    ----------
    Cubuk et al., arXiv:1909.13719.
    """
    batch, _, height, width = image_shape(x, (1, 3))
    if num_ops < 0:
        raise ConfigError("num_ops", f"`{num_ops}`", "a whole number from 0")
    if not 0 <= magnitude < N_LEVELS:
        allowed = f"a whole number from 0 to {N_LEVELS - 1}"
        raise ConfigError("magnitude", f"`{magnitude}`", allowed)
    largest = (0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, 4.0)
    table = magnitudes(largest, x.device)
    strength = torch.full((batch,), magnitude, device=x.device)
    pixels = _levels(x)
    for _ in range(num_ops):
        pixels = transform(pixels, *draw_operations(strength, table, generator))
    return pixels.div_(255)


def trivialaugment(x: Tensor, generator: Generator) -> Tensor:
    """One operation on each image, its strength drawn as well.

    As torchvision's `TrivialAugmentWide` on uint8 images with its defaults (31 strengths, nearest
    pixel, black outside), called once a sample.

    Parameters
    ----------
    x : (batch, 1 or 3, height, width) in [0, 1].
    generator : on the device of `x`.

    Raises
    ------
    ConfigError : there is no grey or RGB image.

    References
    ----------
    Müller & Hutter, arXiv:2103.10158; the wide set of strengths.
    """
    batch = image_shape(x, (1, 3))[0]
    strength = torch.randint(N_LEVELS, (batch,), generator=generator, device=x.device)
    table = magnitudes((0.99, 32.0, 32.0, 135.0, 0.99, 6.0), x.device)
    return transform(_levels(x), *draw_operations(strength, table, generator)).div_(255)


def _levels(x: Tensor) -> Tensor:
    """Whole levels; cut off at both ends, since a level outside the tables would stop a GPU."""
    return x.mul(255).round_().clamp_(0, 255)


@functools.lru_cache(maxsize=8)
def magnitudes(largest: tuple[float, ...], device: torch.device) -> Tensor:
    """The magnitude of each operation at each strength; made once, so that no step copies it.

    Parameters
    ----------
    largest : at strength 30 of a shear, TranslateX and TranslateY (pixels), Rotate (degrees), a
        colour (change of the factor), and the bits that Posterize takes away.

    Returns
    -------
    table : (14, 31) float64, since torchvision has Python's numbers here, but of float32 values,
        since its own come from there. Of Posterize the bits that stay, of Solarize the threshold
        in [0, 1], 0 for what has no magnitude.
    """
    shear, *moves, colour, bits = largest
    table = torch.zeros(len(OPERATIONS), N_LEVELS)
    scales = (shear, shear, *moves, colour, colour, colour, colour)
    for operation, scale in enumerate(scales, start=_SHEAR_X):
        table[operation] = torch.linspace(0.0, scale, N_LEVELS)
    table[_TRANSLATE_X : _TRANSLATE_Y + 1].trunc_()  # by whole pixels
    table[_POSTERIZE] = (8 - torch.arange(N_LEVELS) / ((N_LEVELS - 1) / bits)).round()
    table[_SOLARIZE] = torch.linspace(1.0, 0.0, N_LEVELS)
    return table.to(device, torch.float64)


def draw_operations(strength: Tensor, table: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """An operation for each sample and its magnitude; half of the signed ones are negative.

    Parameters
    ----------
    strength : (batch,) whole numbers from 0 to 30.
    table : (14, 31) of `magnitudes`.

    Returns
    -------
    operation : (batch,) int64, index in `OPERATIONS`.
    magnitude : (batch,) float64.
    """
    batch, device = len(strength), strength.device
    operation = torch.randint(len(OPERATIONS), (batch,), generator=generator, device=device)
    is_negative = torch.rand(batch, generator=generator, device=device) < 0.5
    magnitude = table[operation, strength]
    is_signed = (operation >= _SHEAR_X) & (operation <= _SHARPNESS)
    return operation, torch.where(is_signed & is_negative, -magnitude, magnitude)


def transform(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Each image changed by its own operation.

    Equals torchvision's function of that name on uint8, up to one level where rounding in float32
    falls on the other side of a whole number.

    Parameters
    ----------
    pixels : (batch, 1 or 3, height, width) float32, whole levels from 0 to 255.
    operation, magnitude : (batch,) as `draw_operations` gives them.
    """
    return in_parts(_transform, pixels, operation, magnitude)


def _transform(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    pixels = _move(pixels, operation, magnitude)
    is_colour = (operation >= _BRIGHTNESS) & (operation <= _SHARPNESS)
    factor = torch.where(is_colour, 1 + magnitude, 1.0).view(-1, 1, 1, 1)
    own = grey(pixels).floor()
    looked_up = _look_up(pixels, own, operation, magnitude, factor)
    kind = operation.view(-1, 1, 1, 1)
    if pixels.shape[1] == 3:
        looked_up = _blend(looked_up, own, torch.where(kind == _COLOR, factor, 1.0))
    return _sharpen(looked_up, torch.where(kind == _SHARPNESS, factor, 1.0))


def _blend(levels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`factor` times the one and 1 − `factor` times the other, cut off to a level."""
    there = other * (1 - factor).to(torch.float32)
    return (levels * factor.to(torch.float32)).add_(there).clamp_(0, 255).floor_()


def _sharpen(pixels: Tensor, factor: Tensor) -> Tensor:
    """Moved away from a blurred image, whose border is not blurred."""
    if min(pixels.shape[-2:]) < 3:
        return pixels
    inner = pixels[..., 1:-1, 1:-1]
    # The kernel is 1 all round a 5, over 13: the sum of nine and four times the middle.
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :]
    rows += pixels[..., 2:, :]
    total = torch.add(rows[..., 1:-1], inner, alpha=4)
    total.add_(rows[..., :-2]).add_(rows[..., 2:])
    change = total.div_(13).round_().sub_(inner).mul_((1 - factor).to(torch.float32))
    sharp = pixels.clone()
    sharp[..., 1:-1, 1:-1] += change
    return sharp.clamp_(0, 255).floor_()


def _move(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Shear, translate or rotate; what comes in from outside is black."""
    _, _, height, width = pixels.shape

    def of(kind: int) -> Tensor:
        return torch.where(operation == kind, magnitude, 0.0)

    # From a pixel of the result to where it comes from, in pixels from the middle; both shears
    # hold the upper left corner.
    angle = torch.deg2rad(of(_ROTATE))
    cosine, sine, along, down = angle.cos(), angle.sin(), of(_SHEAR_X), of(_SHEAR_Y)
    to_x = (cosine, along - sine, along * height / 2 - of(_TRANSLATE_X))
    to_y = (down + sine, cosine, down * width / 2 - of(_TRANSLATE_Y))
    x = torch.arange(width, device=pixels.device) - (width - 1) / 2
    y = torch.arange(height, device=pixels.device) - (height - 1) / 2
    # Each coordinate in a block of its own, which is faster to write and as fast to read.
    grid = pixels.new_empty(len(pixels), 2, height, width)
    for axis, (matrix, length) in enumerate(((to_x, width), (to_y, height))):
        # Where a position is halfway between two pixels, rounding decides; so this is done in
        # torchvision's order and precision.
        of_x, of_y, constant = (
            part.to(torch.float32).view(-1, 1, 1) / (0.5 * length) for part in matrix
        )
        torch.add(of_x * x, of_y * y[:, None], out=grid[:, axis])
        grid[:, axis] += constant
    grid = grid.permute(0, 2, 3, 1)
    return grid_sample(pixels, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _look_up(
    pixels: Tensor, own: Tensor, operation: Tensor, magnitude: Tensor, factor: Tensor
) -> Tensor:
    """The operations that change a level the same way wherever it is in a channel."""
    batch, channels = pixels.shape[:2]
    index = pixels.long().flatten(2)
    kind, strength = operation.view(-1, 1, 1), magnitude.view(-1, 1, 1)
    levels = torch.arange(256, device=pixels.device)
    level = levels.to(torch.float32)
    table = level.expand(batch, channels, 256)
    mean = torch.where(kind == _CONTRAST, own.mean((2, 3)).view(-1, 1, 1), 0.0)
    is_blend = (kind == _BRIGHTNESS) | (kind == _CONTRAST)
    table = torch.where(is_blend, _blend(level, mean, factor.view(-1, 1, 1)), table)
    step = torch.exp2(8 - strength).to(torch.float32)
    table = torch.where(kind == _POSTERIZE, (level / step).floor() * step, table)
    is_over = (kind == _SOLARIZE) & (level >= (255 * strength).to(torch.float32))
    table = torch.where(is_over, 255 - level, table)
    table = torch.where(kind == _AUTOCONTRAST, _stretch(pixels, level), table)
    table = torch.where(kind == _EQUALIZE, _equalize(index, levels), table)
    return table.gather(2, index).view(pixels.shape)


def _stretch(pixels: Tensor, level: Tensor) -> Tensor:
    """Tables that map a channel's least level to 0 and its largest to 255."""
    channels = pixels.flatten(2)
    low, high = channels.amin(2, keepdim=True), channels.amax(2, keepdim=True)
    scale = (high - low) * (1 / 255)
    stretched = ((level - low) / scale).clamp_(0, 255).floor_()
    return torch.where(low == high, level, stretched)


def _equalize(index: Tensor, levels: Tensor) -> Tensor:
    """Tables that make a channel's levels equally frequent, in Pillow's whole numbers.

    lut[k] = (⌊step / 2⌋ + how many pixels are below k) // step, where 255 steps are all pixels but
    those of the largest level; unchanged where that makes a step of 0.
    """
    ones = torch.ones_like(index, dtype=torch.int32)
    counts = torch.zeros((*index.shape[:2], 256), dtype=torch.int32, device=index.device)
    counts.scatter_add_(2, index, ones)
    n_largest = counts.gather(2, index.amax(2, keepdim=True))
    step = (index.shape[2] - n_largest) // 255
    n_below = counts.cumsum(2) - counts
    equal = ((n_below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    return torch.where(step == 0, levels, equal).to(torch.float32)
