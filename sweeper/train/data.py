"""Data sets, resident in memory: a fixed test set, fixed sample ids, no loading in the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweeper.errors import ConfigError
from sweeper.sections import DataConfig
from sweeper.train.plug_in import call


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The samples of a data set, in a fixed order.

    Images are stored as the source has them (uint8 keeps a large set on a GPU) and become the
    network's input where they are used: `pixels`, then augmentation, then `inputs`.

    Parameters
    ----------
    train_x, test_x : (n_samples, *shape) uint8 or float32.
    train_y, test_y : (n_samples,) int64, the clean labels.
    train_ids, test_ids : (n_samples,) int64, each sample's index in the source.
    class_names : one name a class.
    scale : the stored value that means 1, such as 255.
    mean, std : one number a channel (or one for all), in units of `scale`.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    train_ids: Tensor
    test_ids: Tensor
    class_names: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def pixels(self, x: Tensor) -> Tensor:
        """Stored values as float32 in units of `scale`: what an augmentation sees, 0 is black."""
        return x.to(torch.float32) / self.scale

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels as the network sees them: each channel minus its mean, over its deviation."""
        mean, std = self._per_channel
        return (pixels - mean) / std

    @functools.cached_property
    def _per_channel(self) -> tuple[Tensor, Tensor]:
        """`mean` and `std`, kept on the samples' device so that no step copies them there."""
        shape = (-1,) + (1,) * (self.train_x.ndim - 2)
        mean, std = (torch.tensor(values).view(shape) for values in (self.mean, self.std))
        return mean.to(self.train_x.device), std.to(self.train_x.device)

    def to(self, device: torch.device) -> Splits:
        """The same samples in the memory of `device`."""
        tensors: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is known of a data set without reading it, and how to read it.

    Parameters
    ----------
    shape : of one sample, (n_channels, height, width) for images.
    class_names : one name a class.
    n_train, n_test : numbers of samples.
    load : reads the samples; called once per process.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    n_train: int
    n_test: int
    load: Callable[[], Splits]


@functools.cache
def describe(config: DataConfig) -> DataSet:
    """The data set of that name and options, nothing of it read yet.

    Raises
    ------
    ConfigError : the entry refuses its options, fails, or returns something else.
    """
    found = call("data", config.name, config.options)
    if not isinstance(found, DataSet):
        raise ConfigError(
            "data.name", f"`{config.name}` returned a {type(found).__name__}", "a `DataSet`"
        )
    return found


def load(config: DataConfig, device: torch.device | None = None) -> Splits:
    """The samples in the memory of `device` (default: the CPU), read once per process.

    They are shared between callers: do not change them.

    Raises
    ------
    ConfigError : what was read is not what the data set announced.
    """
    if device is None or device.type == "cpu":
        return _read(config)
    return _resident(config, device)


@functools.lru_cache(maxsize=2)
def _resident(config: DataConfig, device: torch.device) -> Splits:
    """A copy in a device's memory: two of them at most, since that memory is scarce."""
    return _read(config).to(device)


@functools.lru_cache(maxsize=4)
def _read(config: DataConfig) -> Splits:
    dataset = describe(config)
    splits = dataset.load()
    for name in ("train", "test"):
        _agrees(config.name, dataset, splits, name)
    return splits


def _agrees(name: str, dataset: DataSet, splits: Splits, split: str) -> None:
    """Refuse samples that are not as announced."""
    x, y, ids = (getattr(splits, f"{split}_{what}") for what in ("x", "y", "ids"))
    n_samples, n_classes = getattr(dataset, f"n_{split}"), len(dataset.class_names)
    wrong = {
        f"{split}_x of shape {tuple(x.shape)}": tuple(x.shape) != (n_samples, *dataset.shape),
        f"{split}_y of shape {tuple(y.shape)}": tuple(y.shape) != (n_samples,),
        f"{split}_ids of shape {tuple(ids.shape)}": tuple(ids.shape) != (n_samples,),
        f"{split}_y of type {y.dtype}": y.dtype != torch.int64,
        f"labels of {split} outside 0 to {n_classes - 1}": bool(((y < 0) | (y >= n_classes)).any()),
        f"class names {splits.class_names}": splits.class_names != dataset.class_names,
    }
    for found, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                "data.name",
                f"`{name}` has {found}",
                f"announced: {n_samples} samples of shape {dataset.shape} in {n_classes} classes",
            )


# --- digits ---------------------------------------------------------------------------------

_DIGITS_TEST_PER_CLASS = 36
_DIGITS_SPLIT_SEED = 0


def digits() -> DataSet:
    """8×8 images of handwritten digits, 16 grey levels: 1,437 to train on, 360 to test.

    The 1,797 images of scikit-learn's `load_digits`, from Alpaydin & Kaynak, "Optical Recognition
    of Handwritten Digits", UCI Machine Learning Repository, 1998, doi:10.24432/C50P49. The test
    set has 36 images of each class; writers are in both sets, since their names are not known.
    """
    return DataSet(
        shape=(1, 8, 8),
        class_names=tuple(str(digit) for digit in range(10)),
        n_train=1437,
        n_test=360,
        load=_load_digits,
    )


def _load_digits() -> Splits:
    from sklearn.datasets import load_digits  # half a second: only those who train pay it

    source = load_digits()
    train_ids, test_ids = _stratified(source.target, _DIGITS_TEST_PER_CLASS, _DIGITS_SPLIT_SEED)
    x = torch.from_numpy(source.images.astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(source.target.astype(np.int64))
    return Splits(
        train_x=x[train_ids],
        train_y=y[train_ids],
        test_x=x[test_ids],
        test_y=y[test_ids],
        train_ids=train_ids,
        test_ids=test_ids,
        class_names=tuple(str(name) for name in source.target_names),
        scale=16.0,
        mean=(0.305,),  # of the training set's pixels
        std=(0.376,),
    )


def _stratified(labels: np.ndarray, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of the training and test samples, each ascending, `per_class` of each class to test.

    Only raw PCG64 output is used: NumPy promises that stream for ever, but no shuffle made of it.
    """
    keys = np.random.PCG64(seed).random_raw(len(labels))
    test = np.concatenate(
        [
            members[np.argsort(keys[members], kind="stable")[:per_class]]
            for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
        ]
    )
    is_test = np.isin(np.arange(len(labels)), test)
    return torch.from_numpy(np.flatnonzero(~is_test)), torch.from_numpy(np.flatnonzero(is_test))
