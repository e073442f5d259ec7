"""Sets of small images, from tiny files in the real formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.data import describe, load, present
from sweeper.train.sources import small
from tests.data_files import SMALL, forget, samples, tiny_data

PUBLISHED = dict(small.SOURCES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with tiny_data(tmp_path_factory.mktemp("data")) as root:
        yield root


@pytest.fixture
def own_root(tmp_path):
    """A copy that a test may damage."""
    with tiny_data(tmp_path) as root:
        yield root


@pytest.mark.parametrize("name", SMALL)
def test_samples_are_those_of_the_files_in_their_order(root, name):
    splits = load(DataConfig(name=name))
    for split, is_train in (("train", True), ("test", False)):
        images, labels = samples(name, is_train)
        x, y, ids = (getattr(splits, f"{split}_{what}") for what in ("x", "y", "ids"))
        assert x.dtype == torch.uint8
        assert x.is_contiguous()
        np.testing.assert_array_equal(x.numpy(), images)
        np.testing.assert_array_equal(y.numpy(), labels)
        assert torch.equal(ids, torch.arange(len(labels)))


@pytest.mark.parametrize("name", SMALL)
def test_what_is_announced_is_what_is_read(root, name):
    dataset, splits = describe(DataConfig(name=name)), load(DataConfig(name=name))
    assert dataset.shape == tuple(splits.train_x.shape[1:])
    assert dataset.class_names == splits.class_names
    assert len(splits.mean) == len(splits.std) == dataset.shape[0]
    assert splits.scale == 255


@pytest.mark.parametrize(
    ("name", "n_train", "n_test", "n_classes"),
    [
        ("cifar10", 50_000, 10_000, 10),
        ("cifar100", 50_000, 10_000, 100),
        ("fashion_mnist", 60_000, 10_000, 10),
        ("mnist", 60_000, 10_000, 10),
        ("svhn", 73_257, 26_032, 10),
    ],
)
def test_published_sizes_are_known_without_any_file(monkeypatch, name, n_train, n_test, n_classes):
    monkeypatch.setattr(small, "SOURCES", PUBLISHED)
    forget()
    dataset = describe(DataConfig(name=name))
    assert (dataset.n_train, dataset.n_test) == (n_train, n_test)
    assert len(set(dataset.class_names)) == n_classes
    forget()


def test_class_names_that_torchvision_knows_are_ours():
    kind = small.torchvision_class("fashion_mnist")
    assert small.SOURCES["fashion_mnist"].class_names == tuple(kind.classes)
    spoken = small.torchvision_class("mnist").classes
    assert small.SOURCES["mnist"].class_names == tuple(name[0] for name in spoken)


@pytest.mark.parametrize("name", SMALL)
def test_an_absent_set_names_the_place_and_the_command(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    forget()
    for look in (present, load):
        with pytest.raises(ConfigError) as caught:
            look(DataConfig(name=name))
        assert caught.value.where == "data.name"
        assert f"`{tmp_path / name}`" in caught.value.found
        assert caught.value.hint == f"`sweeper data get {name} --root {tmp_path}`"


def test_a_relative_or_absent_root_is_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, expected in (("here", "here"), ("", "data")):
        monkeypatch.setenv("SWEEPER_DATA", value)
        forget()
        with pytest.raises(ConfigError, match=f"not in `{tmp_path / expected / 'mnist'}`"):
            present(DataConfig(name="mnist"))


def test_a_set_that_lacks_one_file_is_absent(own_root):
    present(DataConfig(name="cifar10"))
    (own_root / "cifar10/cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(ConfigError, match="without `cifar-10-batches-py/data_batch_3`"):
        present(DataConfig(name="cifar10"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_2"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/test"),
        ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("svhn", "test_32x32.mat"),
    ],
)
def test_a_damaged_file_is_named(own_root, name, path):
    content = bytearray((own_root / name / path).read_bytes())
    content[len(content) // 2] ^= 1
    (own_root / name / path).write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        load(DataConfig(name=name))
    assert f"`{own_root / name / path}`" in caught.value.found
