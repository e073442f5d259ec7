"""Data sets."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import center_crop

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.data import DataSet, Splits, _agrees, describe, load, present

DIGITS = DataConfig(name="digits")


def test_digits_are_the_source_images_under_their_ids():
    splits, source = load(DIGITS), load_digits()
    for split in ("train", "test"):
        x, y, ids = (getattr(splits, f"{split}_{what}") for what in ("x", "y", "ids"))
        np.testing.assert_array_equal(x[:, 0].numpy(), source.images[ids])
        np.testing.assert_array_equal(y.numpy(), source.target[ids])


def test_every_digit_is_in_one_split_and_each_class_is_tested_equally():
    splits = load(DIGITS)
    everything = torch.cat([splits.train_ids, splits.test_ids]).sort().values
    assert torch.equal(everything, torch.arange(1797))
    assert torch.bincount(splits.test_y).tolist() == [36] * 10


def test_the_split_of_digits_never_changes():
    ids = load(DIGITS).test_ids.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(ids).hexdigest()[:16] == "45bbd4272839e7ea"


def test_inputs_are_centred_and_scaled_and_black_pixels_are_zero():
    splits = load(DIGITS)
    pixels = splits.pixels(splits.train_x)
    assert pixels.min() == 0
    assert pixels.max() == 1
    inputs = splits.inputs(pixels)
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01


def test_channels_are_normalised_each_by_its_own_numbers():
    splits = dataclasses.replace(load(DIGITS), mean=(0.0, 1.0), std=(1.0, 2.0))
    inputs = splits.inputs(torch.ones(3, 2, 4, 4))
    assert torch.equal(inputs[:, 0], torch.ones(3, 4, 4))
    assert torch.equal(inputs[:, 1], torch.zeros(3, 4, 4))


def test_describing_digits_agrees_with_what_is_read():
    dataset, splits = describe(DIGITS), load(DIGITS)
    assert dataset.shape == tuple(splits.train_x.shape[1:]) == tuple(splits.test_x.shape[1:])
    assert (dataset.n_train, dataset.n_test) == (len(splits.train_y), len(splits.test_y))
    assert dataset.class_names == splits.class_names


def test_data_are_read_once():
    assert load(DIGITS) is load(DataConfig(name="digits"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"test_y": torch.zeros(360, dtype=torch.int32)}, "test_y of type torch.int32"),
        ({"test_y": torch.full((360,), 10)}, "labels of test outside 0 to 9"),
        ({"test_x": torch.zeros(360, 1, 8, 9)}, r"test_x of shape \(360, 1, 8, 9\)"),
        ({"test_x": torch.zeros(359, 1, 8, 8)}, r"test_x of shape \(359, 1, 8, 8\)"),
        ({"test_ids": torch.arange(3)}, r"test_ids of shape \(3,\)"),
        ({"class_names": ("a",)}, r"class names \('a',\)"),
    ],
)
def test_samples_other_than_announced_are_refused(change, found):
    splits = dataclasses.replace(load(DIGITS), **change)
    with pytest.raises(ConfigError, match=found):
        _agrees("digits", describe(DIGITS), splits, "test")


def not_a_data_set():
    return Splits


def test_a_plug_in_that_returns_no_data_set_is_named():
    with pytest.raises(ConfigError, match=r"data.name: .*returned a type; a `DataSet`"):
        describe(DataConfig(name=f"{__name__}:not_a_data_set"))


def test_a_data_set_of_float_vectors_needs_no_scaling():
    x, y, ids = torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), torch.arange(4)
    splits = Splits(
        train_x=x,
        train_y=y,
        test_x=x,
        test_y=y,
        train_ids=ids,
        test_ids=ids,
        class_names=("a", "b"),
    )
    dataset = DataSet(shape=(3,), class_names=("a", "b"), n_train=4, n_test=4, load=lambda: splits)
    _agrees("vectors", dataset, splits, "train")
    assert torch.equal(splits.inputs(splits.pixels(x)), x)


def test_a_set_without_files_is_present():
    present(DIGITS)


def vectors(n_train=4, n_announced=4, class_names=("a", "b")):
    x, ids = torch.randn(n_train, 3), torch.arange(n_train)
    splits = Splits(
        train_x=x,
        train_y=ids % len(class_names),
        test_x=x,
        test_y=ids % len(class_names),
        train_ids=ids,
        test_ids=ids,
        class_names=class_names,
    )
    return DataSet(
        shape=(3,),
        class_names=class_names,
        n_train=n_announced,
        n_test=n_train,
        load=lambda: splits,
    )


def too_many():
    return vectors(n_train=5)


def one_class():
    return vectors(class_names=("a",))


def test_more_samples_than_announced_are_refused_not_cut():
    for options in ({}, {"subset": 3}):
        with pytest.raises(ConfigError, match=r"train_x of shape \(5, 3\)"):
            load(DataConfig(name=f"{__name__}:too_many", **options))


def test_noise_needs_a_second_class():
    with pytest.raises(ConfigError, match="has one class; two or more") as caught:
        describe(DataConfig(name=f"{__name__}:one_class", label_noise=0.1))
    assert caught.value.where == "data.label_noise"


def test_what_is_no_image_is_not_resized():
    with pytest.raises(ConfigError, match="samples of shape") as caught:
        describe(DataConfig(name=f"{__name__}:one_class", image_size=8))
    assert caught.value.where == "data.image_size"


def larger_than_the_input():
    return dataclasses.replace(describe(DIGITS), stored_shape=(1, 10, 10))


def test_what_is_stored_larger_than_the_input_is_not_resized():
    with pytest.raises(ConfigError, match="stores other than the network's input") as caught:
        describe(DataConfig(name=f"{__name__}:larger_than_the_input", image_size=4))
    assert caught.value.where == "data.image_size"


@pytest.mark.parametrize("side", [4, 8, 13, 32])
def test_images_are_resized_as_pillow_does_it(side):
    small, whole = load(DataConfig(name="digits", image_size=side)), load(DIGITS)
    assert describe(DataConfig(name="digits", image_size=side)).shape == (1, side, side)
    assert small.train_x.shape == (1437, 1, side, side)
    assert small.train_x.dtype == torch.uint8
    assert torch.equal(small.train_ids, whole.train_ids)
    for split in ("train_x", "test_x"):
        found, original = (getattr(splits, split)[:50, 0] for splits in (small, whole))
        for image, source in zip(found, original, strict=True):
            resized = Image.fromarray(source.float().numpy()).resize(
                (side, side), Image.Resampling.BILINEAR
            )
            np.testing.assert_allclose(image.numpy(), np.asarray(resized), atol=0.5 + 1e-4)


class OnDisk:
    """Streamed samples, kept in memory."""

    def __init__(self, x):
        self.x, self.shape = x, tuple(x.shape)

    def __getitem__(self, positions):
        return OnDisk(self.x[positions])

    def batches(self, batches):
        return (self.x[batch] for batch in batches)


def streamed():
    splits = load(DIGITS)
    on_disk = {name: OnDisk(getattr(splits, name)) for name in ("train_x", "test_x")}
    return dataclasses.replace(
        describe(DIGITS), load=lambda: dataclasses.replace(splits, **on_disk)
    )


def test_streamed_samples_are_used_as_those_in_memory():
    streams, whole = load(DataConfig(name=f"{__name__}:streamed")), load(DIGITS)
    order = torch.randperm(1437).split(500)
    found = list(streams.batches("train", order))
    expected = list(whole.batches("train", order))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    for mine, other in zip(streams.chunks("test", 100), whole.chunks("test", 100), strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])
    assert torch.equal(
        streams.inputs(streams.pixels(found[0])), whole.inputs(whole.pixels(found[0]))
    )


def test_streamed_samples_cannot_be_resized():
    with pytest.raises(ConfigError, match="samples that are streamed"):
        load(DataConfig(name=f"{__name__}:streamed", image_size=4))


@pytest.mark.parametrize(("stored", "side"), [(8, 6), (8, 5), (7, 4), (9, 9)])
def test_the_middle_of_pixels_is_torchvisions_center_crop(stored, side):
    splits = dataclasses.replace(load(DIGITS), side=side, mean=(0.0,), std=(1.0,))
    pixels = torch.rand(3, 1, stored, stored)
    assert torch.equal(splits.inputs(pixels), center_crop(pixels, [side, side]))
