"""Augmentations."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import transforms
from torchvision.transforms.v2 import functional

from sweeper.errors import ConfigError
from sweeper.registry import BUILT_IN, entry
from sweeper.train import images as images_module
from sweeper.train.augment import (
    crop_flip,
    cutout,
    draw_boxes,
    flip,
    full,
    none,
    resample,
    resized_crop_flip,
    shift,
)
from sweeper.train.policies import randaugment
from tests.no_sync import no_syncs

# Every augmentation, with options that suit images of 12 × 10 pixels.
ALL = {
    "color-jitter": {},
    "crop-flip": {},
    "cutout": {"side": 5},
    "flip": {},
    "full": {},
    "none": {},
    "randaugment": {},
    "resized-crop-flip": {"size": 9},
    "shift": {"pixels": 3},
    "trivialaugment": {},
}
RANDOM = [name for name in ALL if name != "none"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n_images=40, shape=(3, 12, 10), seed=0):
    """Bytes over 255, as the image sets have them."""
    levels = torch.randint(0, 256, (n_images, *shape), generator=generator(seed))
    return levels.float() / 255


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest result of any operation, views left out."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for found in tree_leaves(made):
            if isinstance(found, torch.Tensor) and found._base is None:
                self.n_bytes = max(self.n_bytes, found.untyped_storage().nbytes())
        return made


def augment(name, x, source):
    return entry("augment", name).build(x, source, **ALL[name])


def by_hand(image, down, right):
    """The image rolled, and what came round the edge blackened."""
    moved = image.roll((down, right), dims=(1, 2))
    for size, offset, dim in ((image.shape[1], down, 1), (image.shape[2], right, 2)):
        came_round = range(offset) if offset >= 0 else range(size + offset, size)
        moved.index_fill_(dim, torch.tensor(list(came_round), dtype=torch.int64), 0.0)
    return moved


@pytest.mark.parametrize("pixels", [1, 2])
def test_each_image_is_moved_whole_and_all_moves_are_equally_likely(pixels):
    images = torch.rand(900, 2, 5, 6)
    moved = shift(images, generator(), pixels=pixels)
    offsets = range(-pixels, pixels + 1)
    counts = dict.fromkeys(((down, right) for down in offsets for right in offsets), 0)
    for image, found in zip(images, moved, strict=True):
        matches = [move for move in counts if torch.equal(by_hand(image, *move), found)]
        assert len(matches) == 1
        counts[matches[0]] += 1
    expected = len(images) / len(counts)
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2 < len(counts) + 4 * (2 * len(counts)) ** 0.5


def test_shift_draws_from_its_generator_alone():
    images = torch.rand(20, 1, 8, 8)
    torch.manual_seed(1)
    first = shift(images, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, shift(images, generator(3)))
    assert not torch.equal(first, shift(images, generator(4)))


def test_nothing_moves_by_zero_pixels_or_under_none():
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(shift(images, generator(), pixels=0), images)
    assert torch.equal(none(images, generator()), images)


@pytest.mark.parametrize("pixels", [-1, 8])
def test_a_move_off_the_image_is_refused(pixels):
    with pytest.raises(ConfigError, match=f"pixels: `{pixels}`; a whole number from 0 to 7"):
        shift(torch.rand(4, 1, 8, 8), generator(), pixels=pixels)


def test_vectors_cannot_be_shifted():
    with pytest.raises(ConfigError, match="images are needed"):
        shift(torch.rand(4, 64), generator())


# --- all of them ------------------------------------------------------------------------------


def test_no_augmentation_is_left_out_here():
    assert ALL.keys() == BUILT_IN["augment"].keys()


@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 12, 10), (3, 9, 15)])
@pytest.mark.parametrize("name", ALL)
def test_an_augmentation_makes_images_of_the_right_shape_and_never_waits(name, shape):
    x = images(shape=shape)
    before, source = x.clone(), generator(1)
    augment(name, x, generator())  # what is made once per process may be made by waiting
    with no_syncs():
        made = augment(name, x, source)
    side = ALL[name].get("size")
    assert made.shape == (x.shape if side is None else (len(x), shape[0], side, side))
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", RANDOM)
def test_an_augmentation_follows_from_its_generator_alone(name):
    x = images(seed=2)
    torch.manual_seed(1)
    first = augment(name, x, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(name, x, generator(3)))
    assert not torch.equal(first, augment(name, x, generator(4)))


@pytest.mark.parametrize("name", RANDOM)
def test_the_samples_of_a_batch_are_augmented_independently(name):
    n_images = 3000
    x = images(1, seed=5).expand(n_images, -1, -1, -1)
    made = augment(name, x, generator(6)).flatten(1)
    weights = torch.rand(made.shape[1], generator=generator(7))
    tells = made @ weights  # one number an image, which follows from its draw
    assert len(tells.unique()) > 1
    for lag in (1, 2, 3):
        pairs = torch.stack((tells[:-lag], tells[lag:]))
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / n_images**0.5


@pytest.mark.parametrize("name", RANDOM)
def test_what_the_other_images_of_a_batch_are_does_not_matter(name):
    x, others = images(30, seed=8), images(30, seed=9)
    others[10] = x[10]
    made, beside = augment(name, x, generator(2))[10], augment(name, others, generator(2))[10]
    torch.testing.assert_close(made, beside, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["color-jitter", "randaugment", "trivialaugment"])
@pytest.mark.parametrize("n_values", [1, 3 * 40 * 50 * 16])
def test_what_needs_much_memory_is_done_in_parts_and_comes_out_the_same(
    monkeypatch, name, n_values
):
    x = images(40, (3, 40, 50))
    whole = augment(name, x, generator(5))
    monkeypatch.setattr(images_module, "_ON_CPU", n_values)
    largest = LargestTensor()
    with largest:
        made = augment(name, x, generator(5))
    torch.testing.assert_close(made, whole, atol=1e-6, rtol=0)
    # Indices are twice as wide as pixels, and the batch itself is there whole.
    assert largest.n_bytes <= x.nbytes


@pytest.mark.parametrize("name", RANDOM)
def test_vectors_cannot_be_augmented(name):
    with pytest.raises(ConfigError, match=r"name: samples of shape `\(64,\)`; images are needed"):
        augment(name, torch.rand(4, 64), generator())


# --- one by one -------------------------------------------------------------------------------


def counted(made, image, outcomes):
    """How often each outcome came out, each result being exactly one of them."""
    table = torch.stack(outcomes).flatten(1)
    assert len(table.unique(dim=0)) == len(table)
    is_outcome = (made.flatten(1)[:, None] == table[None]).all(2)
    assert (is_outcome.sum(1) == 1).all()
    return is_outcome.sum(0).numpy()


def test_half_of_the_images_are_mirrored():
    image = images(1, (2, 3, 4))
    made = flip(image.expand(2000, -1, -1, -1), generator())
    counts = counted(made, image, [image[0], functional.horizontal_flip(image[0])])
    assert chisquare(counts).pvalue > 1e-3


def test_all_crops_of_the_framed_image_are_equally_likely_mirrored_or_not():
    image, padding = images(1, (3, 5, 7)), 2
    framed = functional.pad(image[0], [padding])
    crops = [
        functional.crop(framed, top, left, 5, 7)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    outcomes = crops + [functional.horizontal_flip(crop) for crop in crops]
    made = crop_flip(image.expand(4000, -1, -1, -1), generator(), padding=padding)
    assert chisquare(counted(made, image, outcomes)).pvalue > 1e-3


def test_a_crop_without_a_frame_is_a_flip():
    x = images()
    both = zip(crop_flip(x, generator(), padding=0), x, strict=True)
    assert all(torch.equal(made, a) or torch.equal(made, a.flip(-1)) for made, a in both)


@pytest.mark.parametrize("side", [1, 4])
def test_cutout_blacks_out_one_square_whose_centre_is_uniform(side):
    image, outcomes = images(1, (2, 6, 8)).clamp(min=0.1), []
    for row in range(6):
        for column in range(8):  # as in the authors' code, for even sides and 1
            top, left = max(row - side // 2, 0), max(column - side // 2, 0)
            hole = image[0].clone()
            hole[:, top : row - side // 2 + side, left : column - side // 2 + side] = 0.0
            outcomes.append(hole)
    made = cutout(image.expand(5000, -1, -1, -1), generator(), side=side)
    assert chisquare(counted(made, image, outcomes)).pvalue > 1e-3


def test_the_full_recipe_is_a_flip_and_two_strong_operations():
    x = images(60)
    source = generator(3)
    expected = randaugment(flip(x, source), source, num_ops=2, magnitude=12)
    assert torch.equal(full(x, generator(3)), expected)


# --- resized crops ----------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 28), (20, 31, 24), (31, 20, 40)])
def test_a_box_is_resampled_as_torchvision_crops_and_resizes(height, width, size):
    x = images(60, (3, height, width))
    boxes = draw_boxes(60, height, width, generator(4))
    mirrored = torch.arange(60) % 3 == 0
    made = resample(x, boxes, size, mirrored)
    made = torch.where(mirrored.view(-1, 1, 1, 1), functional.horizontal_flip(made), made)
    for image, (top, left, high, wide), found in zip(x, boxes.T.int().tolist(), made, strict=True):
        # Antialiasing changes nothing where the box is smaller than the result.
        is_enlarged = max(high, wide) <= size
        expected = functional.resized_crop(
            image, top, left, high, wide, [size, size], antialias=is_enlarged
        )
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_whole_image_at_its_own_size_is_itself():
    x = images(3, (3, 16, 16))
    whole = torch.tensor([[0.0], [0.0], [16.0], [16.0]]).expand(4, 3)
    made = resample(x, whole, 16, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(made, x, atol=1e-5, rtol=0)


def test_a_resized_crop_is_mirrored_as_flip_would_do_it():
    x, source = images(50, (3, 20, 31)), generator(3)
    boxes = draw_boxes(50, 20, 31, source)
    expected = flip(resample(x, boxes, 17, torch.zeros(50, dtype=torch.bool)), source)
    assert torch.equal(resized_crop_flip(x, generator(3), size=17), expected)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (64, 96), (40, 150), (200, 30)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width):
    """Into the last two, few boxes fit, and the fallback is taken at times."""
    n_draws, x = 3000, torch.zeros(3, height, width)
    torch.manual_seed(0)
    draw = transforms.RandomResizedCrop.get_params
    expected = np.array([draw(x, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n_draws)])
    found = draw_boxes(n_draws, height, width, generator()).T.double().numpy()
    assert (found == found.round()).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (found, expected)]
    aspect = [boxes[:, 3] / boxes[:, 2] for boxes in (found, expected)]
    middle = [boxes[:, :2] + boxes[:, 2:] / 2 for boxes in (found, expected)]
    down, across = ([one[:, axis] for one in middle] for axis in (0, 1))
    for ours, theirs in (area, aspect, down, across):
        assert ks_2samp(ours, theirs).pvalue > 1e-3


def test_the_fallback_is_taken_when_ten_candidates_do_not_fit():
    height, width, n_draws = 40, 150, 20_000
    rng = np.random.default_rng(0)
    area = height * width * rng.uniform(0.08, 1, 10**6)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 10**6))
    high, wide = np.sqrt(area / aspect).round(), np.sqrt(area * aspect).round()
    share = np.mean((high > height) | (wide > width)) ** 10
    found = draw_boxes(n_draws, height, width, generator())
    is_fallback = (found == torch.tensor([0, 48, 40, 53]).view(4, 1)).all(0)
    assert abs(is_fallback.double().mean().item() - share) < 4 * (share / n_draws) ** 0.5


def test_an_image_too_narrow_for_any_box_gives_torchvisions_fallback():
    x, draw = torch.zeros(3, 6, 200), transforms.RandomResizedCrop.get_params
    expected = draw(x, [0.08, 1.0], [3 / 4, 4 / 3])
    found = draw_boxes(50, 6, 200, generator())
    assert found.T.unique(dim=0).tolist() == [list(map(float, expected))]


@pytest.mark.parametrize(
    ("function", "options", "refusal"),
    [
        (crop_flip, {"padding": -1}, "padding: `-1`; a whole number from 0 to 9"),
        (crop_flip, {"padding": 10}, "padding: `10`; a whole number from 0 to 9"),
        (cutout, {"side": 0}, "side: `0`; a whole number from 1 to 10"),
        (cutout, {"side": 11}, "side: `11`; a whole number from 1 to 10"),
        (resized_crop_flip, {"size": 0}, "size: `0`; a whole number from 1"),
    ],
)
def test_bad_options_are_refused(function, options, refusal):
    with pytest.raises(ConfigError, match=refusal):
        function(images(), generator(), **options)
