"""ImageNet's folders, and anybody's."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.data import describe, load, present
from sweeper.train.sources import folder
from sweeper.train.sources.prepared import Prepared, prepare
from sweeper.train.sources.streamed import ImageFiles
from tests.data_files import WNIDS, forget, tiny_data

IMAGENET = DataConfig(name="imagenet", image_size=28)
PICTURES = DataConfig(name="image_folder", image_size=28, options=(("path", "pictures"),))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with tiny_data(tmp_path_factory.mktemp("data")) as root:
        yield root


@pytest.fixture
def root(shared, tmp_path, monkeypatch):
    """A copy that a test may change."""
    for name in ("imagenet", "pictures"):
        shutil.copytree(shared / name, tmp_path / name)
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def test_imagenet_is_known_without_any_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    forget()
    dataset = describe(DataConfig(name="imagenet"))
    assert (dataset.n_train, dataset.n_test) == (1_281_167, 50_000)
    assert (dataset.shape, dataset.stored) == ((3, 224, 224), (3, 256, 256))
    assert len(set(dataset.class_names)) == 1000
    assert dataset.class_names[:3] == ("tench", "goldfish", "great white shark")
    assert dataset.class_names[-1] == "toilet tissue"
    small = describe(DataConfig(name="imagenet", image_size=64, test_subset=10_000))
    assert (small.shape, small.stored, small.n_test) == ((3, 64, 64), (3, 73, 73), 10_000)
    with pytest.raises(ConfigError, match=r"image-net\.org|is not in") as caught:
        present(DataConfig(name="imagenet"))
    assert str(tmp_path / "imagenet") in caught.value.found
    assert "ILSVRC2012_img_train.tar" in caught.value.hint
    assert "val/<wnid>/ILSVRC2012_val_*.JPEG" in caught.value.hint


def test_validation_images_are_in_the_order_of_their_numbers(root):
    splits = load(IMAGENET)
    assert splits.test_ids.tolist() == list(range(6))
    assert splits.test_y.tolist() == [0, 1, 2, 0, 1, 2]
    (found,) = splits.batches("test", [torch.arange(6)])
    transform = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor()])
    for index, image in enumerate(found):
        wnid = WNIDS[splits.test_y[index]]
        path = root / "imagenet/val" / wnid / f"ILSVRC2012_val_{index + 1:08}.JPEG"
        assert torch.equal(image, transform(Image.open(path).convert("RGB")))


def test_training_images_are_in_order_of_class_and_name(root):
    splits = load(IMAGENET)
    assert splits.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    names = [f"{wnid}/{wnid}_{index}.JPEG".encode() for wnid in WNIDS for index in range(4)]
    assert splits.train_x.names.tolist() == names
    assert splits.class_names == ("tench", "goldfish", "great white shark")


def test_inputs_are_the_middle_of_what_is_stored(root):
    splits = load(IMAGENET)
    (stored,) = splits.batches("train", [torch.arange(3)])
    assert stored.shape == (3, 3, 32, 32)
    inputs = splits.inputs(splits.pixels(stored))
    expected = v2.functional.normalize(
        v2.functional.center_crop(stored, [28, 28]) / 255,
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )
    torch.testing.assert_close(inputs, expected)


def test_chunks_go_through_all_samples_in_order(root):
    splits = load(IMAGENET)
    chunks = list(splits.chunks("train", 5))
    assert [len(x) for x, _ in chunks] == [5, 5, 2]
    assert torch.equal(torch.cat([y for _, y in chunks]), splits.train_y)
    (whole,) = splits.batches("train", [torch.arange(12)])
    assert torch.equal(torch.cat([x for x, _ in chunks]), whole)


def test_a_subset_of_streamed_images_is_those_images_and_labels(root):
    config = DataConfig(name="imagenet", image_size=28, subset=6, test_subset=3, label_noise=0.5)
    splits, whole = load(config), load(IMAGENET)
    assert splits.train_x.shape == (6, 3, 32, 32)
    assert torch.bincount(splits.train_y).tolist() == [2, 2, 2]
    assert torch.equal(splits.train_y, whole.train_y[splits.train_ids])
    assert int((splits.targets != splits.train_y).sum()) == 3
    (found,) = splits.batches("train", [torch.arange(6)])
    (expected,) = whole.batches("train", [splits.train_ids])
    assert torch.equal(found, expected)
    assert torch.bincount(splits.test_y).tolist() == [1, 1, 1]


def test_a_prepared_copy_is_used_and_has_the_same_bytes(root):
    splits = load(IMAGENET)
    assert isinstance(splits.train_x, ImageFiles)
    images = {split: list(splits.chunks(split, 5)) for split in ("train", "test")}
    names = {split: folder.list_imagenet(split).names for split in ("train", "val")}
    prepare(root / "imagenet", 32, names, lambda n: None, lambda: None)
    forget()
    again = load(IMAGENET)
    assert isinstance(again.train_x, Prepared)
    assert isinstance(again.test_x, Prepared)
    for split, chunks in images.items():
        for (x, _), (x_again, _) in zip(chunks, again.chunks(split, 5), strict=True):
            assert torch.equal(x, x_again)
    assert isinstance(load(DataConfig(name="imagenet", image_size=14)).train_x, ImageFiles)


def test_imagenet_with_other_images_is_refused(root):
    path = root / "imagenet/train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    path.rename(path.with_name("gone.txt"))
    with pytest.raises(ConfigError, match="has 11 images in 3 folders; 12 images in 3") as caught:
        load(IMAGENET)
    assert caught.value.where == "data.name"


def test_validation_images_of_other_names_are_refused(root):
    path = root / "imagenet/val" / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG"
    path.rename(path.with_name("ILSVRC2012_val_00000007.JPEG"))
    with pytest.raises(ConfigError, match="are not 1 to 6"):
        load(IMAGENET)
    path.with_name("ILSVRC2012_val_00000007.JPEG").rename(path.with_name("mine.JPEG"))
    with pytest.raises(ConfigError, match=r"mine\.JPEG"):
        load(IMAGENET)


def test_a_folder_of_images_is_listed_when_it_is_planned(root):
    dataset = describe(PICTURES)
    assert (dataset.n_train, dataset.n_test, dataset.class_names) == (12, 6, WNIDS)
    assert (dataset.shape, dataset.stored) == ((3, 28, 28), (3, 32, 32))
    splits = load(PICTURES)
    assert splits.train_ids.tolist() == list(range(12))
    assert splits.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    (found,) = splits.batches("train", [torch.arange(12)])
    (expected,) = load(IMAGENET).batches("train", [torch.arange(12)])
    assert torch.equal(found, expected)


def test_val_does_for_test_and_a_path_may_be_absolute(root, tmp_path):
    (root / "pictures/test").rename(root / "pictures/val")
    options = (("path", str(root / "pictures")),)
    assert describe(DataConfig(name="image_folder", options=options)).n_test == 6


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda place: shutil.rmtree(place), "no folder `.*train`"),
        (lambda place: shutil.rmtree(place / "test"), "no folder `.*val`"),
        (lambda place: shutil.rmtree(place / "test" / WNIDS[2]), f"class `{WNIDS[2]}` is in one"),
        (lambda place: (place / "train/empty").mkdir(), "no images in `.*empty`"),
        (lambda place: [shutil.rmtree(place / "train" / wnid) for wnid in WNIDS], "no folders in"),
    ],
)
def test_a_folder_in_another_layout_is_refused_by_its_option(root, spoil, found):
    spoil(root / "pictures")
    with pytest.raises(ConfigError, match=found) as caught:
        describe(PICTURES)
    assert caught.value.where == "data.path"


def test_hidden_folders_are_no_classes(root):
    (root / "pictures/train/.ipynb_checkpoints").mkdir()
    (root / "pictures/train/.ipynb_checkpoints/one.jpeg").touch()
    assert describe(PICTURES).class_names == WNIDS
