"""Colour jitter, against torchvision's functions and its distribution."""

import colorsys
import itertools

import pytest
import torch
from scipy.stats import chisquare, kstest, uniform
from torchvision.transforms.v2 import functional

from sweeper.errors import ConfigError
from sweeper.train import colour
from sweeper.train.colour import color_jitter, jitter, turn_hue

OFF = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ADJUST = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n_images=48, shape=(3, 7, 10), seed=0):
    """Noise, and some pixels without hue, black or white."""
    x = torch.rand(n_images, *shape, generator=generator(seed))
    x[:, :, 0, :3] = x[:, :1, 0, :3]
    x[:, :, 1, 0], x[:, :, 1, 1] = 0.0, 1.0
    return x


@pytest.mark.parametrize("has_hue", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_changed_as_torchvision_changes_it_in_every_order(channels, has_hue):
    orders = list(itertools.permutations(range(4)))  # orders[i][k] is what comes k-th
    x = images(2 * len(orders), (channels, 7, 10))
    source = generator(1)
    factors = 2 * torch.rand(3, len(x), generator=source)
    if channels == 1:  # grey images have neither
        factors[2], has_hue = 1.0, False
    turn = torch.rand(len(x), generator=source) - 0.5
    when = torch.tensor([[order.index(kind) for order in orders] * 2 for kind in range(4)]).float()
    found = jitter(x, factors, turn if has_hue else None, when)
    for i, image in enumerate(x):
        amounts = [*factors[:, i].tolist(), turn[i].item() if has_hue else 0.0]
        for kind in orders[i % len(orders)]:
            if kind < 3 or has_hue:
                image = ADJUST[kind](image, amounts[kind])
        torch.testing.assert_close(found[i], image, atol=3e-6, rtol=0)


def test_hue_is_turned_by_the_share_of_a_circle_that_is_asked_for():
    x = images(20, (3, 2, 2), seed=2)
    turn = torch.linspace(-0.5, 0.5, 20)
    found = turn_hue(x, turn)
    for before, by, after in zip(x, turn.tolist(), found, strict=True):
        for rgb, result in zip(before.flatten(1).T, after.flatten(1).T, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb.tolist())
            expected = colorsys.hsv_to_rgb((h + by) % 1.0, s, v)
            assert result.tolist() == pytest.approx(expected, abs=2e-6)


def drawn(monkeypatch, n_images, **options):
    """What `color_jitter` draws: factors, turn and when."""
    seen = []
    monkeypatch.setattr(colour, "jitter", lambda x, *parameters: seen.append(parameters))
    color_jitter(torch.zeros(n_images, 3, 1, 1), generator(3), **options)
    return seen[0]


def test_factors_and_turns_are_uniform_on_torchvisions_ranges(monkeypatch):
    amounts = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.1, "hue": 0.3}
    factors, turn, _ = drawn(monkeypatch, 4000, **amounts)
    ranges = [(0.6, 1.4), (0.0, 2.5), (0.9, 1.1), (-0.3, 0.3)]
    for values, (low, high) in zip([*factors, turn], ranges, strict=True):
        assert kstest(values.numpy(), uniform(low, high - low).cdf).pvalue > 1e-3


def test_every_order_is_equally_likely_and_no_draw_tells_of_another(monkeypatch):
    n_images = 6000
    factors, turn, when = drawn(monkeypatch, n_images)
    _, counts = when.argsort(0).unique(dim=1, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3
    rows = torch.cat((factors, turn[None], when))
    others = torch.corrcoef(torch.cat((rows[:, :-1], rows[:, 1:])))  # each image and the next
    others.fill_diagonal_(0)
    assert others.abs().max() < 4.5 / n_images**0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_no_amount_leaves_the_bits(channels):
    x = images(5, (channels, 6, 4))
    assert torch.equal(color_jitter(x, generator(), **OFF), x)


def test_grey_images_have_neither_saturation_nor_hue():
    x = images(5, (1, 6, 4))
    only_those = OFF | {"saturation": 0.9, "hue": 0.5}
    assert torch.equal(color_jitter(x, generator(), **only_those), x)


@pytest.mark.parametrize("option", ["brightness", "contrast", "saturation", "hue"])
def test_each_option_changes_images_and_keeps_them_in_range(option):
    x = images()
    changed = color_jitter(x, generator(), **(OFF | {option: 0.5}))
    assert (changed - x).abs().amax((1, 2, 3)).min() > 1e-4
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"brightness": -0.1}, "brightness: `-0.1`; a number from 0"),
        ({"contrast": float("nan")}, "contrast: `nan`; a number from 0"),
        ({"saturation": -1.0}, "saturation: `-1.0`; a number from 0"),
        ({"hue": 0.6}, "hue: `0.6`; a number from 0 to 0.5"),
    ],
)
def test_bad_options_are_refused(options, refusal):
    with pytest.raises(ConfigError, match=refusal):
        color_jitter(images(), generator(), **options)


def test_only_grey_and_rgb_images_will_do():
    with pytest.raises(ConfigError, match="name: images of 4 channels; grey or RGB"):
        color_jitter(torch.rand(2, 4, 8, 8), generator())
