"""Images in folders, one folder a class: any, and ImageNet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sweeper.errors import ConfigError
from sweeper.train.data import DataSet, Splits, Streamed
from sweeper.train.sources.on_node import Arrays, once_per_node
from sweeper.train.sources.place import ROOT_VARIABLE, data_root, require
from sweeper.train.sources.prepared import open_prepared
from sweeper.train.sources.streamed import ImageFiles

# The usual numbers of ImageNet's training pixels, used for any photographs; He et al., 2015, and
# github.com/pytorch/examples.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Images of each split of ILSVRC-2012, and classes.
IMAGENET_SIZES = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES = 1000
_LISTED = "1"  # counts up when another list is made of the same files

IMAGENET_REMEDY = (
    "ImageNet may not be passed on: get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "https://image-net.org, unpack them as `train/<wnid>/*.JPEG` and "
    "`val/<wnid>/ILSVRC2012_val_*.JPEG` (torchvision.datasets.ImageNet does that), and put or link "
    "both folders there"
)


@dataclass(frozen=True)
class Listing:
    """The image files of one split: paths below `folder`, and the class of each.

    Parameters
    ----------
    names : (n_samples,) of bytes, `<class folder>/<file>`.
    labels : (n_samples,) int64, an index into `classes`.
    classes : the class folders, ascending.
    """

    folder: Path
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def image_folder(path: str = "", image_size: int | None = None) -> DataSet:
    """Photographs of your own: `<path>/train/<class>/*` and `<path>/test` (or `val`) likewise.

    Classes are the folders' names in order, samples are in order of class and file name, and a
    sample's id is its index in that order. Images are streamed as ImageNet's are. The folders are
    listed when a trial is planned, since nothing else knows how many images there are.

    Parameters
    ----------
    path : below the folder of all data sets, or absolute.
    image_size : height and width of the network's input; None: 224.

    Raises
    ------
    ConfigError : a folder is absent or has no images, or the splits differ in their classes.
    """
    folder = data_root() / path
    held_out = folder / ("test" if (folder / "test").is_dir() else "val")
    for split in (folder / "train", held_out):
        if not split.is_dir():
            raise ConfigError(
                "path",
                f"no folder `{split}`",
                f"`train` and `test` (or `val`) with a folder for each class, below `{folder}`",
                f"data sets are in ${ROOT_VARIABLE}, else in `data` where sweeper is started",
            )
    train, test = (list_images(split, "path") for split in (folder / "train", held_out))
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ConfigError(
            "path", f"class `{differing[0]}` is in one split of `{folder}`", "the same in both"
        )
    stored, side = stored_side(image_size)

    def streamed(listing: Listing) -> Streamed:
        return ImageFiles(listing.folder, listing.names, stored)

    return DataSet(
        shape=(3, side, side),
        stored_shape=(3, stored, stored),
        class_names=train.classes,
        n_train=len(train.names),
        n_test=len(test.names),
        load=lambda: _splits(train, test, streamed, side, train.classes),
    )


def imagenet(image_size: int | None = None) -> DataSet:
    """ILSVRC-2012: 1,281,167 photographs of 1,000 kinds of things; the 50,000 to test are `val`.

    Below `imagenet` in the folder of all data sets: `train/<wnid>/*.JPEG` and
    `val/<wnid>/ILSVRC2012_val_*.JPEG`. Classes are in the order of their wnids, named as
    torchvision's pretrained networks name them. The id of a test image is the number in its file's
    name less 1: the standard validation order, which the samples are in. Russakovsky et al., IJCV
    115, 2015, doi:10.1007/s11263-015-0816-y.

    The short side is resized to 256/224 of `image_size` and the central square stored as uint8;
    the network's input is the central `image_size` of that unless an augmentation crops another.
    A copy made by `sweeper data prepare imagenet` is read instead of the files where there is one:
    it has the same bytes.

    Parameters
    ----------
    image_size : height and width of the network's input; None: 224.
    """
    stored, side = stored_side(image_size)
    return DataSet(
        shape=(3, side, side),
        stored_shape=(3, stored, stored),
        class_names=imagenet_names(),
        n_train=IMAGENET_SIZES["train"],
        n_test=IMAGENET_SIZES["val"],
        load=functools.partial(_load_imagenet, stored, side),
        present=_require_imagenet,
    )


def stored_side(image_size: int | None) -> tuple[int, int]:
    """Sides of the stored square and of the network's input."""
    side = 224 if image_size is None else image_size
    return round(side * 256 / 224), side


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Names of the classes, in the order of their wnids."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"][:IMAGENET_CLASSES])


def _require_imagenet() -> None:
    place = data_root() / "imagenet"
    absent = [split for split in IMAGENET_SIZES if not (place / split).is_dir()]
    require("imagenet", place, absent, IMAGENET_REMEDY)


def _load_imagenet(stored: int, side: int) -> Splits:
    train, test = (list_imagenet(split) for split in ("train", "val"))
    folder = data_root() / "imagenet"
    prepared = open_prepared(folder, stored, {"train": train.names, "val": test.names})

    def streamed(listing: Listing) -> Streamed:
        files = ImageFiles(listing.folder, listing.names, stored)
        return files if prepared is None else prepared[listing.folder.name]

    return _splits(train, test, streamed, side, imagenet_names())


def list_imagenet(split: str) -> Listing:
    """The files of `train` in order of class and name, or of `val` in the standard order.

    They are listed once on each node, until a folder changes.

    Raises
    ------
    ConfigError : the folder is absent, or has other images than ILSVRC-2012.
    """
    _require_imagenet()
    folder = data_root() / "imagenet" / split
    read = functools.partial(_read_listing, folder)
    found = once_per_node(f"imagenet-{split}", _LISTED, folder, lambda: _inner(folder), read)
    classes = tuple(os.fsdecode(name) for name in found["classes"].tolist())
    return Listing(folder, found["names"], found["labels"], classes)


def _inner(folder: Path) -> list[str]:
    """The folder and those in it, whose times change when a file is added or removed."""
    return [".", *(entry.name for entry in os.scandir(folder) if entry.is_dir())]


def _read_listing(folder: Path) -> Arrays:
    found = list_images(folder, "name")
    n_expected = IMAGENET_SIZES[folder.name]
    if (len(found.names), len(found.classes)) != (n_expected, IMAGENET_CLASSES):
        raise ConfigError(
            "name",
            f"`{folder}` has {len(found.names):,} images in {len(found.classes):,} folders",
            f"{n_expected:,} images in {IMAGENET_CLASSES:,}",
            IMAGENET_REMEDY,
        )
    order = np.arange(n_expected) if folder.name == "train" else _standard_order(found)
    return {
        "names": found.names[order],
        "labels": found.labels[order],
        "classes": np.array([os.fsencode(name) for name in found.classes]),
    }


def _standard_order(found: Listing) -> np.ndarray:
    """Where each image of the standard order is, (n_samples,) int64."""
    numbers = np.array([_number(found.folder, name) for name in found.names])
    order = np.argsort(numbers)
    if not np.array_equal(numbers[order], np.arange(1, len(numbers) + 1)):
        raise ConfigError(
            "name",
            f"the numbers in the names of `{found.folder}` are not 1 to {len(numbers):,}",
            "each once",
        )
    return order


def _number(folder: Path, name: bytes) -> int:
    """The number in `ILSVRC2012_val_00000001.JPEG`."""
    digits = name.rpartition(b"_")[2].partition(b".")[0]
    if not digits.isdigit():
        raise ConfigError(
            "name", f"`{folder / os.fsdecode(name)}`", "`ILSVRC2012_val_<number>.JPEG`"
        )
    return int(digits)


def list_images(folder: Path, where: str) -> Listing:
    """The image files of a folder of classes, by class and then by name; hidden folders are none.

    Parameters
    ----------
    where : the option that an error names.

    Raises
    ------
    ConfigError : there are none, or a class has none.
    """
    folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    classes = tuple(sorted(name for name in folders if not name.startswith(".")))
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inner = sorted(f for f in os.listdir(folder / name) if f.lower().endswith(_SUFFIXES))
        if not inner:
            raise ConfigError(where, f"no images in `{folder / name}`", ", ".join(_SUFFIXES))
        names += [os.fsencode(f"{name}/{file}") for file in inner]
        labels += [label] * len(inner)
    if not classes:
        raise ConfigError(where, f"no folders in `{folder}`", "one for each class")
    return Listing(folder, np.array(names), np.array(labels, dtype=np.int64), classes)


def _splits(
    train: Listing,
    test: Listing,
    streamed: Callable[[Listing], Streamed],
    side: int,
    class_names: tuple[str, ...],
) -> Splits:
    return Splits(
        train_x=streamed(train),
        train_y=torch.from_numpy(train.labels),
        test_x=streamed(test),
        test_y=torch.from_numpy(test.labels),
        train_ids=torch.arange(len(train.labels)),
        test_ids=torch.arange(len(test.labels)),
        class_names=class_names,
        scale=255.0,
        mean=_MEAN,
        std=_STD,
        side=side,
    )
