"""RandAugment and TrivialAugment: operations of a list, drawn for each image on its own.

Both see an image as torchvision does, as whole levels from 0 to 255: pixels are rounded to them
first, which changes nothing in images that were stored so. Each operation is computed for the
whole batch and changes the images that drew it. Most are tables from level to level, so that all
of these together cost one look-up.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

from sweeper.errors import ConfigError
from sweeper.train.colour import grey
from sweeper.train.images import image_shape

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
_SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE, _BRIGHTNESS, _COLOR, _CONTRAST = range(
    1, 9
)
_SHARPNESS, _POSTERIZE, _SOLARIZE, _AUTOCONTRAST, _EQUALIZE = range(9, 14)


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
    largest = (0.3, 0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, 4.0)
    strength = torch.full((batch,), magnitude, device=x.device)
    pixels = x.mul(255).round_()
    for _ in range(num_ops):
        pixels = transform(pixels, *draw_operations(strength, largest, generator))
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
    largest = (0.99, 0.99, 32.0, 32.0, 135.0, 0.99, 6.0)
    pixels = x.mul(255).round_()
    return transform(pixels, *draw_operations(strength, largest, generator)).div_(255)


def draw_operations(
    strength: Tensor, largest: tuple[float, ...], generator: Generator
) -> tuple[Tensor, Tensor]:
    """An operation for each sample and its magnitude, in the operation's own unit.

    Parameters
    ----------
    strength : (batch,) whole numbers from 0 to 30.
    largest : magnitude at strength 30 of ShearX, ShearY, TranslateX, TranslateY (pixels), Rotate
        (degrees), the four of colour (change of the factor), and bits that Posterize takes away.

    Returns
    -------
    operation : (batch,) int64, index in `OPERATIONS`.
    magnitude : (batch,) float64, since torchvision has Python's numbers here; of Posterize the
        bits that stay, of Solarize the threshold in [0, 1], 0 for what has no magnitude.
    """
    batch, device = len(strength), strength.device
    operation = torch.randint(len(OPERATIONS), (batch,), generator=generator, device=device)
    is_negative = torch.rand(batch, generator=generator, device=device) < 0.5
    share = strength.to(torch.float64) / (N_LEVELS - 1)
    sign = torch.where(is_negative, -1.0, 1.0).to(torch.float64)
    magnitude = torch.zeros_like(share)
    for kind, scale in zip(range(_SHEAR_X, _COLOR), largest, strict=False):
        magnitude += (operation == kind) * scale
    magnitude += ((operation >= _COLOR) & (operation <= _SHARPNESS)) * largest[5]
    magnitude *= share * sign
    is_translation = (operation == _TRANSLATE_X) | (operation == _TRANSLATE_Y)
    magnitude = torch.where(is_translation, magnitude.trunc(), magnitude)
    bits = 8 - (largest[6] * share).round()
    magnitude = torch.where(operation == _POSTERIZE, bits, magnitude)
    return operation, torch.where(operation == _SOLARIZE, 1 - share, magnitude)


def transform(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Each image changed by its own operation.

    Equals torchvision's function of that name on uint8, up to one level where rounding in float32
    falls on the other side of a whole number.

    Parameters
    ----------
    pixels : (batch, 1 or 3, height, width) float32, whole levels from 0 to 255.
    operation, magnitude : (batch,) as `draw_operations` gives them.
    """
    pixels = _move(pixels, operation, magnitude)
    is_colour = (operation >= _BRIGHTNESS) & (operation <= _SHARPNESS)
    factor = torch.where(is_colour, 1 + magnitude, 1.0).view(-1, 1, 1, 1)
    own = grey(pixels).floor()
    looked_up = _look_up(pixels, own, operation, magnitude, factor)
    kind = operation.view(-1, 1, 1, 1)
    if pixels.shape[1] == 3:
        looked_up = _blend(looked_up, own, torch.where(kind == _COLOR, factor, 1.0))
    return _sharpen(looked_up, torch.where(kind == _SHARPNESS, factor, 1.0))


def _blend(levels: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """`factor` times the one and 1 − `factor` times the other, cut off to a level."""
    there = (other * (1 - factor)).to(torch.float32)
    return (levels * factor.to(torch.float32)).add_(there).clamp_(0, 255).floor_()


def _sharpen(pixels: Tensor, factor: Tensor) -> Tensor:
    """Moved away from a blurred image, whose border is not blurred."""
    if min(pixels.shape[-2:]) < 3:
        return pixels
    inner = pixels[..., 1:-1, 1:-1]
    # The kernel is 1 all round a 5, over 13: a mean of nine and four times the middle.
    blurred = (avg_pool2d(pixels, 3, 1) * 9).round_().add_(inner, alpha=4).div_(13).round_()
    change = blurred.sub_(inner).mul_((1 - factor).to(torch.float32))
    return (pixels + pad(change, (1,) * 4)).clamp_(0, 255).floor_()


def _move(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Shear, translate or rotate; what comes in from outside is black."""
    _, _, height, width = pixels.shape

    def of(kind: int) -> Tensor:
        return torch.where(operation == kind, magnitude, 0.0)

    # From a pixel of the result to where it comes from, in pixels from the middle; both shears
    # hold the upper left corner.
    angle = torch.deg2rad(of(_ROTATE))
    cosine, sine, along, down = angle.cos(), angle.sin(), of(_SHEAR_X), of(_SHEAR_Y)
    to_x = torch.stack((cosine, along - sine, along * height / 2 - of(_TRANSLATE_X)))
    to_y = torch.stack((down + sine, cosine, down * width / 2 - of(_TRANSLATE_Y)))
    to = torch.stack((to_x * (2 / width), to_y * (2 / height))).permute(2, 1, 0)
    across = torch.arange(width, device=pixels.device) - (width - 1) / 2
    along_height = torch.arange(height, device=pixels.device) - (height - 1) / 2
    y, x = torch.meshgrid(along_height, across, indexing="ij")
    here = torch.stack((x, y, torch.ones_like(x)), dim=-1).view(1, -1, 3)
    grid = (here @ to.to(torch.float32)).view(-1, height, width, 2)
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
    low, high = torch.aminmax(pixels.flatten(2), dim=2, keepdim=True)
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
