"""Augmentations."""

import pytest
import torch

from sweeper.errors import ConfigError
from sweeper.train.augment import none, shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
