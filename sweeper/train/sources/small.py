"""Sets of small images that fit in memory, as torchvision reads them.

Each lies in a folder of its name, laid out as torchvision lays it out. Its files are compared with
their published MD5 sums before any of them is read, once on each node.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweeper.errors import ConfigError
from sweeper.train.data import DataSet, Splits
from sweeper.train.sources.on_node import Arrays, once_per_node
from sweeper.train.sources.place import data_root, require

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
_DIGITS = tuple(str(digit) for digit in range(10))

_READER = 1  # counts up when `_read` makes something else of the same files
_TENSORS = ("train_x", "train_y", "test_x", "test_y")
_CLASSES = "class_names"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a data set before it is read.

    Parameters
    ----------
    reader : its class in `torchvision.datasets`.
    shape : of an image, (n_channels, height, width).
    mean, std : of the training set's pixels, one number a channel, in units of 255.
    """

    reader: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    n_train: int
    n_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Means and deviations are the usual published ones: of CIFAR-10 as in github.com/KellerJordan/
# cifar10-airbench, of CIFAR-100 as in github.com/weiaicunzai/pytorch-cifar100, of MNIST as in
# github.com/pytorch/examples, of Fashion-MNIST and SVHN as widely used, to four digits.
SOURCES: dict[str, Source] = {
    "cifar10": Source(
        reader="CIFAR10",
        shape=(3, 32, 32),
        class_names=tuple(_CIFAR10.split()),
        n_train=50_000,
        n_test=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Source(
        reader="CIFAR100",
        shape=(3, 32, 32),
        class_names=tuple(_CIFAR100.split()),
        n_train=50_000,
        n_test=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "fashion_mnist": Source(
        reader="FashionMNIST",
        shape=(1, 28, 28),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        n_train=60_000,
        n_test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "mnist": Source(
        reader="MNIST",
        shape=(1, 28, 28),
        class_names=_DIGITS,
        n_train=60_000,
        n_test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "svhn": Source(
        reader="SVHN",
        shape=(3, 32, 32),
        class_names=_DIGITS,
        n_train=73_257,
        n_test=26_032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
}


def cifar10() -> DataSet:
    """32×32 colour photographs of 10 kinds of things: 50,000 to train on, 10,000 to test.

    Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return _data_set("cifar10")


def cifar100() -> DataSet:
    """32×32 colour photographs of 100 kinds of things: 50,000 to train on, 10,000 to test.

    The fine labels. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return _data_set("cifar100")


def mnist() -> DataSet:
    """28×28 grey images of handwritten digits: 60,000 to train on, 10,000 to test.

    LeCun et al., Proc. IEEE 86(11), 1998, doi:10.1109/5.726791.
    """
    return _data_set("mnist")


def fashion_mnist() -> DataSet:
    """28×28 grey images of 10 kinds of clothing: 60,000 to train on, 10,000 to test.

    Xiao et al., 2017, arXiv:1708.07747.
    """
    return _data_set("fashion_mnist")


def svhn() -> DataSet:
    """32×32 colour images of house numbers' digits: 73,257 to train on, 26,032 to test.

    The core training set, without the 531,131 easier `extra` images. Netzer et al., "Reading
    digits in natural images with unsupervised feature learning", 2011.
    """
    return _data_set("svhn")


def _data_set(name: str) -> DataSet:
    source = SOURCES[name]
    return DataSet(
        shape=source.shape,
        class_names=source.class_names,
        n_train=source.n_train,
        n_test=source.n_test,
        load=functools.partial(_load, name),
        present=functools.partial(_require, name),
    )


def _require(name: str) -> None:
    folder = data_root() / name
    require(name, folder, absent(name, folder))


def _load(name: str) -> Splits:
    source, folder = SOURCES[name], data_root() / name
    version = f"{_READER} {metadata.version('torchvision')}"
    listed, read = functools.partial(_listed, name), functools.partial(_read, name, folder)
    found = once_per_node(name, version, folder, listed, read)
    tensors: dict[str, Any] = {key: torch.from_numpy(found[key]) for key in _TENSORS}
    # Cifar's files have the names of their classes; those of others are ours.
    class_names = found.get(_CLASSES)
    return Splits(
        **tensors,
        train_ids=torch.arange(len(tensors["train_y"])),
        test_ids=torch.arange(len(tensors["test_y"])),
        class_names=source.class_names if class_names is None else tuple(class_names.tolist()),
        scale=255.0,
        mean=source.mean,
        std=source.std,
    )


def _listed(name: str) -> list[str]:
    """The files that are read, all of them there."""
    _require(name)
    return [path for path, _ in _files(name)]


def _read(name: str, folder: Path) -> Arrays:
    """What the files hold, verified: images and labels of both splits, and names of classes."""
    _require(name)
    bad = damaged(name, folder)
    if bad is not None:
        raise ConfigError(
            "name",
            f"`{folder / bad}` is damaged",
            "the file that was published",
            f"remove `{folder}`, then `sweeper data get {name} --root {folder.parent}`",
        )
    train, test = (reader(name, folder, is_train) for is_train in (True, False))
    tensors = dict(zip(_TENSORS, (*_samples(train), *_samples(test)), strict=True))
    found = {key: tensor.numpy() for key, tensor in tensors.items()}
    return found | {_CLASSES: np.array(train.classes)} if name.startswith("cifar") else found


def reader(name: str, folder: Path, is_train: bool, *, download: bool = False) -> Any:
    """Torchvision's object that has read one split; with `download`, after fetching both."""
    which: dict[str, Any] = {"train": is_train}
    if name == "svhn":
        which = {"split": "train" if is_train else "test"}
    return torchvision_class(name)(folder, **which, download=download)


def torchvision_class(name: str) -> Any:
    """The class in `torchvision.datasets` that reads it and knows its URLs and MD5 sums."""
    import torchvision.datasets  # a second: only those who read files pay it

    return getattr(torchvision.datasets, SOURCES[name].reader)


def _samples(read: Any) -> tuple[Tensor, Tensor]:
    """Images (n, n_channels, height, width) uint8 and labels (n,) int64."""
    x, y = torch.as_tensor(read.data), read.labels if hasattr(read, "labels") else read.targets
    if x.ndim == 3:  # grey
        x = x.unsqueeze(1)
    elif x.shape[-1] == 3:  # torchvision holds Cifar with channels last
        x = x.permute(0, 3, 1, 2)
    return x.contiguous(), torch.as_tensor(y, dtype=torch.int64)


def absent(name: str, folder: Path) -> list[str]:
    """The files of a data set that are not there; nothing is read."""
    return [path for path, _ in _files(name) if not (folder / path).exists()]


def damaged(name: str, folder: Path) -> str | None:
    """The first file that is not what was published, None when all are; reads them all."""
    for path, md5 in _files(name):
        with (folder / path).open("rb") as file:
            if md5 and hashlib.file_digest(file, "md5").hexdigest() != md5:
                return path
    return next(_damaged_idx(folder, name), None)


def _files(name: str) -> list[tuple[str, str]]:
    """Path and MD5 sum of each file of a data set, without a sum where none is published."""
    kind = torchvision_class(name)
    if name == "svhn":
        return [(kind.split_list[split][1], kind.split_list[split][2]) for split in _SPLITS]
    if name.startswith("cifar"):
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        return [(f"{kind.base_folder}/{path}", md5) for path, md5 in listed]
    raw = f"{SOURCES[name].reader}/raw"
    packed = [(f"{raw}/{path}", md5) for path, md5 in kind.resources]
    return packed + [(path.removesuffix(".gz"), "") for path, _ in packed]


_SPLITS = ("train", "test")


def _damaged_idx(folder: Path, name: str) -> Iterator[str]:
    """Unpacked files of MNIST that differ from the archives beside them, whose sums are known."""
    for path, _ in _files(name):
        if path.endswith(".gz"):
            unpacked = path.removesuffix(".gz")
            content = (folder / unpacked).read_bytes()
            with gzip.open(folder / path) as packed:
                if zlib.crc32(packed.read()) != zlib.crc32(content):
                    yield unpacked
