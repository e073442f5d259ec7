"""Random changes of an image's colours, all samples of a batch at once."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sweeper.errors import ConfigError
from sweeper.train.images import image_shape, in_parts

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def color_jitter(
    x: Tensor,
    generator: Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    As torchvision's `ColorJitter` on float images, called once a sample. Grey images have neither
    saturation nor hue.

    Parameters
    ----------
    x : (batch, 1 or 3, height, width) in [0, 1].
    generator : on the device of `x`.
    brightness, contrast, saturation : each factor is uniform on max(0, 1 − value) … 1 + value.
    hue : the shift is uniform on −hue … hue, in turns of the colour circle.

    Raises
    ------
    ConfigError : a value is negative, `hue` is above ½, or there is no grey or RGB image.

    References
    ----------
    The defaults are those of Chen et al., SimCLR, arXiv:2002.05709, App. A, for CIFAR-10
    (strength 0.5).
    """
    batch, channels, _, _ = image_shape(x, (1, 3))
    values = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(name, f"`{value}`", "a number from 0")
    if not 0 <= hue <= 0.5:
        raise ConfigError("hue", f"`{hue}`", "a number from 0 to 0.5")
    if channels == 1:
        values["saturation"] = hue = 0.0
    u = torch.rand(8, batch, generator=generator, device=x.device)
    low_high = [(max(0.0, 1 - value), 1 + value) for value in values.values()]
    factors = torch.stack([low + (high - low) * u[i] for i, (low, high) in enumerate(low_high)])

    def change(part: Tensor, factors: Tensor, turn: Tensor, when: Tensor) -> Tensor:
        return jitter(part, factors.T, turn if hue else None, when.T)

    return in_parts(change, x, factors.T, (2 * u[3] - 1) * hue, u[4:].T)


def jitter(x: Tensor, factors: Tensor, turn: Tensor | None, when: Tensor) -> Tensor:
    """Change the colours of each image by its own amounts, in its own order.

    Parameters
    ----------
    x : (batch, 1 or 3, height, width) in [0, 1].
    factors : (3, batch) on brightness, contrast and saturation; 1 changes nothing.
    turn : (batch,) of the hue, in turns; None: no change of hue, as for grey images.
    when : (4, batch), of brightness, contrast, saturation and hue; the least comes first.
    """
    order = when[:3].argsort(0)
    factors, when_factor = factors.gather(0, order), when[:3].gather(0, order)
    if turn is None:
        for kind, factor in zip(order, factors, strict=True):
            x = _adjust(x, kind, factor)
        return x
    # Hue is by far the dearest, so it is done once, and each other change either before or after.
    is_before = when_factor < when[3]
    for kind, factor, now in zip(order, factors, is_before, strict=True):
        x = _adjust(x, kind, torch.where(now, factor, 1.0))
    x = turn_hue(x, turn)
    for kind, factor, now in zip(order, factors, is_before, strict=True):
        x = _adjust(x, kind, torch.where(now, 1.0, factor))
    return x


def _adjust(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Each image moved away from black, its mean grey or its own grey, whichever is its `kind`."""
    kind, factor = kind.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    own = grey(x)
    target = own * (kind == _SATURATION) + own.mean((1, 2, 3), keepdim=True) * (kind == _CONTRAST)
    return (x * factor).add_(target * (1 - factor)).clamp_(0, 1)


def grey(x: Tensor) -> Tensor:
    """The luma of each pixel, (batch, 1, height, width), with torchvision's weights."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """The same saturation and value at another hue.

    Parameters
    ----------
    x : (batch, 3, height, width) in [0, 1].
    turn : (batch,), in turns of the colour circle; from red, ⅓ is green.

    References
    ----------
    Smith, SIGGRAPH 1978, doi:10.1145/800248.807361; the way back is the closed form
    V − C · max(0, min(k, 4 − k, 1)), k = (n + 6 H) mod 6 with n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = x.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)  # grey has no hue; any will do, since C is 0
    from_red = (green - blue) / divisor
    from_green = (blue - red) / divisor + 2
    from_blue = (red - green) / divisor + 4
    sixths = torch.where(value == green, from_green, from_blue)
    sixths = torch.where(value == red, from_red, sixths) + 6 * turn.view(-1, 1, 1, 1)
    n = 5 - 2 * torch.arange(3, device=x.device).view(-1, 1, 1)
    k = (sixths + n).remainder_(6)
    share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # min(k, 4 − k), cut off
    return value - share.mul_(chroma)
