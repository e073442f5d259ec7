"""RandAugment and TrivialAugment, operation by operation and draw by draw, against torchvision."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from sweeper.errors import ConfigError
from sweeper.train import policies
from sweeper.train.policies import (
    N_LEVELS,
    OPERATIONS,
    draw_operations,
    magnitudes,
    randaugment,
    transform,
    trivialaugment,
)

CPU = torch.device("cpu")
SHAPES = [(3, 32, 32), (1, 13, 9), (3, 20, 31)]
SPACES = {
    "rand": (v2.RandAugment, lambda h, w: (0.3, 150 / 331 * w, 150 / 331 * h, 30.0, 0.9, 4.0)),
    "wide": (v2.TrivialAugmentWide, lambda h, w: (0.99, 32.0, 32.0, 135.0, 0.99, 6.0)),
}
EXACT = {"Identity", "TranslateX", "TranslateY", "Brightness"}
EXACT |= {"Posterize", "Solarize", "AutoContrast", "Equalize"}
MOVED = {"ShearX", "ShearY", "Rotate"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(n_images, shape, seed=0):
    """Images of noise, and smooth ones of few levels, as uint8."""
    noise = torch.randint(0, 256, (n_images, *shape), generator=generator(seed), dtype=torch.uint8)
    smooth = functional.gaussian_blur(noise, [5, 5]) // 3 + 40
    return torch.where(torch.arange(n_images).view(-1, 1, 1, 1) % 2 == 0, noise, smooth)


def operate(image, name, m):
    """One operation of torchvision on one uint8 image."""
    if name.startswith("Shear"):
        angle = math.degrees(math.atan(m))
        shear = [angle, 0.0] if name == "ShearX" else [0.0, angle]
        return functional.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])
    if name.startswith("Translate"):
        by = [int(m), 0] if name == "TranslateX" else [0, int(m)]
        return functional.affine(image, 0.0, by, 1.0, [0.0, 0.0])
    return {
        "Identity": lambda: image,
        "Rotate": lambda: functional.rotate(image, m),
        "Brightness": lambda: functional.adjust_brightness(image, 1 + m),
        "Color": lambda: functional.adjust_saturation(image, 1 + m),
        "Contrast": lambda: functional.adjust_contrast(image, 1 + m),
        "Sharpness": lambda: functional.adjust_sharpness(image, 1 + m),
        "Posterize": lambda: functional.posterize(image, int(m)),
        "Solarize": lambda: functional.solarize(image, 255.0 * m),
        "AutoContrast": lambda: functional.autocontrast(image),
        "Equalize": lambda: functional.equalize(image),
    }[name]()


def strengths(space, name, shape):
    """Every magnitude of torchvision's table, both signs where it is signed."""
    make, is_signed = SPACES[space][0]._AUGMENTATION_SPACE[name]
    table = make(N_LEVELS, *shape[1:])
    values = [0.0] if table is None else [float(value) for value in table]
    return values + [-value for value in values if is_signed]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvisions_at_every_strength(space, name, shape):
    values = strengths(space, name, shape)
    images = levels(max(len(values), 8), shape)
    values = (values * 8)[: len(images)]
    operation = torch.full((len(images),), OPERATIONS.index(name))
    magnitude = torch.tensor(values, dtype=torch.float64)
    if name.startswith("Translate"):
        magnitude = magnitude.trunc()
    found = transform(images.float(), operation, magnitude)
    pairs = zip(images, values, strict=True)
    expected = torch.stack([operate(image, name, m) for image, m in pairs]).float()
    off = (found - expected).abs()
    # Rounding in float32 decides between two pixels, or between two whole levels.
    assert (off > 0).float().mean() <= (0 if name in EXACT else 0.005)
    assert name in MOVED or off.max() <= 1


@pytest.mark.parametrize("space", SPACES)
def test_the_magnitudes_are_torchvisions(space):
    height, width = 20, 31
    theirs, largest = SPACES[space]
    assert list(theirs._AUGMENTATION_SPACE) == list(OPERATIONS)
    table = magnitudes(largest(height, width), CPU)
    for name, row in zip(OPERATIONS, table, strict=True):
        expected = strengths(space, name, (3, height, width))[:N_LEVELS]
        if name.startswith("Translate"):
            expected = [int(value) for value in expected]
        assert row.tolist() == (expected if len(expected) > 1 else [0.0] * N_LEVELS)


@pytest.mark.parametrize("space", SPACES)
def test_operations_strengths_and_signs_are_drawn_as_torchvision_draws_them(space):
    n_draws, strength = 3000, 11
    image = levels(2, (3, 10, 10), seed=3)[1:]  # smooth, so that no two operations agree
    if space == "rand":
        theirs = v2.RandAugment(num_ops=1, magnitude=strength)
        used = [strength]
        batch = image.float().div(255).expand(n_draws, -1, -1, -1)
        ours = randaugment(batch, generator(1), num_ops=1, magnitude=strength)
    else:
        theirs, used = v2.TrivialAugmentWide(), range(N_LEVELS)
        ours = trivialaugment(image.float().div(255).expand(n_draws, -1, -1, -1), generator(1))
    torch.manual_seed(0)
    outcomes = possible(image, space, used)
    counts = [
        Counter(outcomes[nearest(result, outcomes)] for result in results)
        for results in (
            ours.mul(255).round().to(torch.uint8),
            [theirs(image[0]) for _ in range(n_draws)],
        )
    ]
    names = sorted(set(counts[0]) | set(counts[1]), key=str)
    assert len(names) > (20 if space == "rand" else 14)
    assert chi2_contingency([[count[name] for name in names] for count in counts]).pvalue > 1e-3


def possible(image, space, used):
    """What one operation may make of an image, and whether by which, in which half of strength."""
    outcomes = {}
    height, width = image.shape[-2:]
    table = magnitudes(SPACES[space][1](height, width), CPU)
    for kind, name in enumerate(OPERATIONS):
        is_signed = SPACES[space][0]._AUGMENTATION_SPACE[name][1]
        for strength in used:
            for sign in (1, -1) if is_signed else (1,):
                m = sign * table[kind, strength].item()
                made = tuple(operate(image[0], name, m).flatten().tolist())
                label = (name, sign, strength > 15)
                outcomes[made] = label if outcomes.get(made, label) == label else "several"
    return outcomes


def nearest(result, outcomes):
    """The outcome that equals a result up to one level."""
    made = tuple(result.flatten().tolist())
    if made in outcomes:
        return made
    table = torch.tensor(list(outcomes), dtype=torch.int16)
    off = (table - result.flatten().to(torch.int16)).abs().amax(1)
    assert off.min() <= 1
    return list(outcomes)[int(off.argmin())]


def test_all_operations_are_equally_likely_and_every_sample_draws_its_own():
    n_draws = 14_000
    table = magnitudes(SPACES["wide"][1](32, 32), CPU)
    operation, magnitude = draw_operations(torch.full((n_draws,), 9), table, generator())
    assert chisquare(torch.bincount(operation, minlength=14).numpy()).pvalue > 1e-3
    for drawn in (operation.double(), magnitude.sign()):
        pairs = torch.stack((drawn[:-1], drawn[1:]))
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / n_draws**0.5
    signed = magnitude[(operation >= 1) & (operation <= 9)]
    assert abs((signed > 0).double().mean() - 0.5) < 2 / len(signed) ** 0.5


def test_two_operations_are_one_after_another():
    x = levels(50, (3, 12, 12)).float() / 255
    largest, source = SPACES["rand"][1](12, 12), generator(4)
    expected = x * 255
    for _ in range(2):
        drawn = draw_operations(torch.full((50,), 9), magnitudes(largest, CPU), source)
        expected = transform(expected.round(), *drawn)
    assert torch.equal(randaugment(x, generator(4)), expected / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_operation_and_the_identity_leave_the_bits_of_images_stored_as_bytes(channels):
    x = torch.arange(256).repeat(channels).view(1, channels, 16, 16) / 255
    assert torch.equal(randaugment(x, generator(), num_ops=0), x)
    pixels = x.mul(255).round()
    for name in OPERATIONS[:10]:  # those at whose strength of 0 nothing happens
        operation = torch.tensor([OPERATIONS.index(name)])
        same = transform(pixels, operation, torch.zeros(1, dtype=torch.float64))
        assert torch.equal(same / 255, x), name


def test_images_of_one_level_and_smaller_than_a_kernel_are_as_torchvisions():
    small = torch.randint(0, 256, (3, 2, 5), generator=generator(), dtype=torch.uint8)
    for image in (torch.full((3, 6, 6), 77, dtype=torch.uint8), small):
        for kind, name in enumerate(OPERATIONS):
            m = {"Posterize": 5.0, "Solarize": 0.2, "TranslateX": 1.0, "TranslateY": 1.0}
            value = m.get(name, 0.5)
            magnitude = torch.tensor([value], dtype=torch.float64)
            found = transform(image[None].float(), torch.tensor([kind]), magnitude)[0]
            expected = operate(image, name, value).float()
            assert (found - expected).abs().max() <= 1, name


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"num_ops": -1}, "num_ops: `-1`; a whole number from 0"),
        ({"magnitude": 31}, "magnitude: `31`; a whole number from 0 to 30"),
        ({"magnitude": -1}, "magnitude: `-1`; a whole number from 0 to 30"),
    ],
)
def test_bad_options_are_refused(options, refusal):
    with pytest.raises(ConfigError, match=refusal):
        randaugment(torch.rand(2, 3, 8, 8), generator(), **options)


@pytest.mark.parametrize("policy", [randaugment, trivialaugment])
def test_values_outside_the_range_of_pixels_are_cut_off(policy):
    x = 3 * torch.rand(40, 3, 8, 8, generator=generator()) - 1
    assert torch.equal(policy(x, generator()), policy(x.clamp(0, 1), generator()))


@pytest.mark.parametrize("policy", [randaugment, trivialaugment])
def test_only_grey_and_rgb_images_will_do(policy):
    with pytest.raises(ConfigError, match="name: images of 2 channels; grey or RGB"):
        policy(torch.rand(2, 2, 8, 8), generator())


def test_the_table_of_magnitudes_is_made_once():
    policies.magnitudes.cache_clear()
    for seed in range(5):
        randaugment(torch.rand(2, 3, 8, 8), generator(seed))
    assert policies.magnitudes.cache_info().misses == 1
