"""Tiny data sets in the real on-disk formats, for tests that read, stream or train on them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sweeper.train import data
from sweeper.train.sources import folder, small
from sweeper.train.sources.on_node import NODE_TMP_VARIABLE
from sweeper.train.sources.place import ROOT_VARIABLE

SMALL = ("cifar10", "cifar100", "fashion_mnist", "mnist", "svhn")
WNIDS = ("n01440764", "n01443537", "n01484850")
N_PER_CLASS = {"train": 4, "val": 2}


@contextmanager
def tiny_data(root: Path, n_train: int = 200, n_test: int = 100) -> Iterator[Path]:
    """All data sets below `root`, which is where `load` looks meanwhile; its copies are there too.

    The small ones have `n_train` and `n_test` seeded random images, as many of each class (so both
    must be multiples of 100 for cifar100), and are announced with these sizes and the MD5 sums of
    these files. ImageNet has three classes, with four images of each to train on and two to test,
    and `image_folder` with `path: pictures` the same. This process alone knows the sizes: trials
    on them run under the `local` executor.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(root))
        patch.setenv(NODE_TMP_VARIABLE, str(root))
        for name in SMALL:
            announce(name, patch, n_train, n_test)
            write_small(name, root / name, patch)
        write_photographs(root / "imagenet", "val")
        write_photographs(root / "pictures", "test")
        for split, n in N_PER_CLASS.items():
            patch.setitem(folder.IMAGENET_SIZES, split, n * len(WNIDS))
        patch.setattr(folder, "IMAGENET_CLASSES", len(WNIDS))
        forget()
        try:
            yield root
        finally:
            forget()


def forget() -> None:
    """Make the next `describe` and `load` look again."""
    for cached in (data.describe, data._read, data._resident, folder.imagenet_names):
        cached.cache_clear()


def announce(name: str, patch: pytest.MonkeyPatch, n_train: int, n_test: int) -> None:
    """Let a data set of small images have these sizes."""
    source = dataclasses.replace(small.SOURCES[name], n_train=n_train, n_test=n_test)
    patch.setitem(small.SOURCES, name, source)


def samples(name: str, is_train: bool) -> tuple[np.ndarray, np.ndarray]:
    """What is written: images (n, n_channels, height, width) uint8, labels (n,) int64."""
    source = small.SOURCES[name]
    n = source.n_train if is_train else source.n_test
    random = np.random.default_rng([*name.encode(), is_train])
    images = random.integers(0, 256, (n, *source.shape), dtype=np.uint8)
    return images, random.permutation(np.arange(n) % len(source.class_names))


def write_small(name: str, place: Path, patch: pytest.MonkeyPatch) -> None:
    """Write a data set of small images, and let torchvision expect its sums."""
    write = {"cifar10": _cifar, "cifar100": _cifar, "svhn": _svhn}.get(name, _idx)
    write(name, place, small.torchvision_class(name), patch)


def _cifar(name: str, place: Path, kind: Any, patch: pytest.MonkeyPatch) -> None:
    """Python pickles, in five training batches for CIFAR-10, and the archive of them all."""
    inner = place / kind.base_folder
    inner.mkdir(parents=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    for attribute, is_train in (("train_list", True), ("test_list", False)):
        images, labels = samples(name, is_train)
        files = [path for path, _ in getattr(kind, attribute)]
        parts = (np.array_split(what, len(files)) for what in (images, labels))
        for path, x, y in zip(files, *parts, strict=True):
            content = {"data": x.reshape(len(x), -1), key: y.tolist()}
            (inner / path).write_bytes(pickle.dumps(content, protocol=2))
        patch.setattr(kind, attribute, [[path, _md5(inner / path)] for path in files])
    meta = inner / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: list(small.SOURCES[name].class_names)}, 2))
    patch.setattr(kind, "meta", kind.meta | {"md5": _md5(meta)})


def _svhn(name: str, place: Path, kind: Any, patch: pytest.MonkeyPatch) -> None:
    """Matlab files whose last axis is the sample, with the digit 0 labelled 10."""
    place.mkdir(parents=True)
    listed = dict(kind.split_list)
    for split in ("train", "test"):
        images, labels = samples(name, split == "train")
        url, path, _ = listed[split]
        x, y = images.transpose(2, 3, 1, 0), np.where(labels == 0, 10, labels)[:, None]
        savemat(place / path, {"X": x, "y": y.astype(np.uint8)})
        listed[split] = [url, path, _md5(place / path)]
    patch.setattr(kind, "split_list", listed)


def _idx(name: str, place: Path, kind: Any, patch: pytest.MonkeyPatch) -> None:
    """The IDX format, each file beside its gzip archive."""
    raw = place / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    sums = []
    for path, _ in kind.resources:
        images, labels = samples(name, path.startswith("train"))
        array = images[:, 0] if "images" in path else labels.astype(np.uint8)
        magic = struct.pack(">BBBB", 0, 0, 8, array.ndim)
        content = magic + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        (raw / path.removesuffix(".gz")).write_bytes(content)
        (raw / path).write_bytes(gzip.compress(content, mtime=0))
        sums.append((path, _md5(raw / path)))
    patch.setattr(kind, "resources", sums)


def serve(name: str, place: Path, served: Path, url: str, patch: pytest.MonkeyPatch) -> None:
    """Put what was written into `served`, the folder at `url`, and point torchvision there."""
    kind = small.torchvision_class(name)
    served.mkdir(parents=True, exist_ok=True)
    if name.startswith("cifar"):
        with tarfile.open(served / kind.filename, "w:gz") as archive:
            archive.add(place / kind.base_folder, kind.base_folder)
        patch.setattr(kind, "url", f"{url}/{kind.filename}")
        patch.setattr(kind, "tgz_md5", _md5(served / kind.filename))
    elif name == "svhn":
        listed = {
            split: [f"{url}/{path}", path, md5] for split, (_, path, md5) in kind.split_list.items()
        }
        patch.setattr(kind, "split_list", listed)
        for path in place.iterdir():
            (served / path.name).write_bytes(path.read_bytes())
    else:
        patch.setattr(kind, "mirrors", [f"{url}/"])
        for path in (place / kind.__name__ / "raw").glob("*.gz"):
            (served / path.name).write_bytes(path.read_bytes())


def write_photographs(place: Path, held_out: str) -> None:
    """JPEG files of several shapes in a folder for each class, named as ImageNet's are.

    A held-out file's number goes round the classes, so that the order of numbers is not that of
    the folders; one image is grey.
    """
    random = np.random.default_rng(0)
    for split, n in (("train", N_PER_CLASS["train"]), (held_out, N_PER_CLASS["val"])):
        for label, wnid in enumerate(WNIDS):
            inner = place / split / wnid
            inner.mkdir(parents=True)
            for index in range(n):
                name = f"{wnid}_{index}.JPEG"
                if split != "train":
                    name = f"ILSVRC2012_val_{index * len(WNIDS) + label + 1:08}.JPEG"
                coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                height, width = (60, 80) if index % 2 else (75, 50)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                if index == label == 1:
                    image = image.convert("L")
                image.save(inner / name, quality=90)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
