"""Data sets: a fixed test set, fixed sample ids, samples in memory or streamed from disk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sweeper.errors import ConfigError
from sweeper.registry import entry
from sweeper.sections import DataConfig
from sweeper.train.plug_in import call
from sweeper.train.subset import noisy, permuted, stratified

# The subset of the test set is the same whatever the seeds, so that trials can be compared.
_TEST_SUBSET_SEED = 0


class Streamed(Protocol):
    """Samples that stay on disk: an (n_samples, *stored_shape) uint8 tensor, read in batches."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, *stored_shape)."""

    def __getitem__(self, positions: Tensor) -> Streamed:
        """The samples at these positions, still on disk."""

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The samples of each batch of positions, in order, read ahead; uint8, pinned for a GPU."""


Images = Tensor | Streamed


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The samples of a data set, in a fixed order.

    Images are stored as the source has them (uint8 keeps a large set on a GPU) and become the
    network's input where they are used: `pixels`, then augmentation, then `inputs`.

    Parameters
    ----------
    train_x, test_x : (n_samples, *stored_shape) uint8 or float32, or streamed.
    train_y, test_y : (n_samples,) int64, the clean labels.
    train_ids, test_ids : (n_samples,) int64, each sample's index in the source.
    class_names : one name a class.
    scale : the stored value that means 1, such as 255.
    mean, std : one number a channel (or one for all), in units of `scale`.
    side : height and width of the network's input, cut from the middle; None: as stored.
    targets : (n_samples,) int64, the labels that are trained on; None: `train_y`.
    """

    train_x: Images
    train_y: Tensor
    test_x: Images
    test_y: Tensor
    train_ids: Tensor
    test_ids: Tensor
    class_names: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    side: int | None = None
    targets: Tensor | None = None

    @property
    def train_targets(self) -> Tensor:
        """The labels that are trained on, (n_samples,) int64."""
        return self.train_y if self.targets is None else self.targets

    def batches(self, split: str, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The stored samples of each batch of positions, on the labels' device."""
        x: Images = getattr(self, f"{split}_x")
        if isinstance(x, Tensor):
            return (x[batch] for batch in batches)
        device = self.train_y.device
        return (read.to(device, non_blocking=True) for read in x.batches(batches))

    def chunks(self, split: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All stored samples of a split and their clean labels, `size` at a time, in order."""
        x: Images = getattr(self, f"{split}_x")
        labels = getattr(self, f"{split}_y").split(size)
        if isinstance(x, Tensor):
            return zip(x.split(size), labels, strict=True)
        positions = torch.arange(x.shape[0]).split(size)
        return zip(self.batches(split, positions), labels, strict=True)

    def pixels(self, x: Tensor) -> Tensor:
        """Stored values as float32 in units of `scale`: what an augmentation sees, 0 is black."""
        return x.to(torch.float32) / self.scale

    def inputs(self, pixels: Tensor) -> Tensor:
        """The middle of pixels, each channel less its mean and over its deviation."""
        mean, std = self._per_channel
        return (_middle(pixels, self.side) - mean) / std

    @functools.cached_property
    def _per_channel(self) -> tuple[Tensor, Tensor]:
        """`mean` and `std`, kept on the samples' device so that no step copies them there."""
        shape = (-1,) + (1,) * (len(self.train_x.shape) - 2)
        mean, std = (torch.tensor(values).view(shape) for values in (self.mean, self.std))
        return mean.to(self.train_y.device), std.to(self.train_y.device)

    def to(self, device: torch.device) -> Splits:
        """The same samples in the memory of `device`; streamed ones stay where they are."""
        tensors: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


def _middle(x: Tensor, side: int | None) -> Tensor:
    """The central square of that side, as torchvision's `center_crop` takes it."""
    if side is None or x.shape[-2:] == (side, side):
        return x
    top, left = (round((length - side) / 2) for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is known of a data set without reading it, and how to read it.

    Parameters
    ----------
    shape : of the network's input, (n_channels, height, width) for images.
    class_names : one name a class.
    n_train, n_test : numbers of samples.
    load : reads the samples; called once per process.
    present : refuses, by a ConfigError, when the files that `load` reads are not there; reads none.
    stored_shape : of a stored sample where that is larger than the input; an augmentation may
        return either. None: `shape`.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    n_train: int
    n_test: int
    load: Callable[[], Splits]
    present: Callable[[], None] = lambda: None
    stored_shape: tuple[int, ...] | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of a stored sample."""
        return self.stored_shape or self.shape


@functools.cache
def describe(config: DataConfig) -> DataSet:
    """The data set of that name and options, nothing of it read yet.

    Raises
    ------
    ConfigError : the entry refuses its options, fails, or returns something else; a subset has
        more samples than there are, or fewer than classes; there are no images to resize, or
        ones that are stored in another size than the network's.
    """
    given = {"image_size": config.image_size, "seed": config.seed}
    supplied = {name: given[name] for name in entry("data", config.name).supplied}
    found = call("data", config.name, config.options, **supplied)
    if not isinstance(found, DataSet):
        raise ConfigError(
            "data.name", f"`{config.name}` returned a {type(found).__name__}", "a `DataSet`"
        )
    n_train = _n_subset("data.subset", config.subset, found.n_train, len(found.class_names))
    # Not 1, which is what `1.0` is read as, and who writes that means all of them.
    n_test = _n_subset("data.test_subset", config.test_subset, found.n_test, 2)
    resized = found.shape
    if config.image_size is not None and "image_size" not in supplied:
        if len(found.shape) != 3:
            raise ConfigError(
                "data.image_size", f"`{config.name}` has samples of shape `{found.shape}`", "images"
            )
        if found.stored_shape is not None:  # resizing would make one size of the two
            raise ConfigError(
                "data.image_size",
                f"`{config.image_size}`, but `{config.name}` stores other than the network's input",
                "null, or a data set whose function has a keyword `image_size`",
            )
        resized = (found.shape[0], config.image_size, config.image_size)
    if config.label_noise and len(found.class_names) < 2:
        raise ConfigError("data.label_noise", f"`{config.name}` has one class", "two or more")
    made = dataclasses.replace(found, n_train=n_train, n_test=n_test, shape=resized)
    return dataclasses.replace(made, load=functools.partial(_made, config, made, found))


def _n_subset(where: str, asked: float | None, n_samples: int, at_least: int) -> int:
    """How many samples are asked for: all, a number, or a fraction below 1."""
    if asked is None:
        return n_samples
    n_asked = asked if isinstance(asked, int) else round(asked * n_samples)
    if (isinstance(asked, float) and asked >= 1) or not at_least <= n_asked <= n_samples:
        raise ConfigError(
            where,
            f"`{asked}`",
            f"a whole number from {at_least} to {n_samples}, or a fraction below 1",
        )
    return n_asked


def _made(config: DataConfig, announced: DataSet, source: DataSet) -> Splits:
    """What the source holds, reduced, resized and relabelled as the configuration says."""
    with _in_section():
        splits = source.load()
    for split in ("train", "test"):
        _agrees(config.name, source, splits, split)
    train = test = None
    if announced.n_train < source.n_train:
        train = stratified(splits.train_y, announced.n_train, config.seed)
    if announced.n_test < source.n_test:
        test = stratified(splits.test_y, announced.n_test, _TEST_SUBSET_SEED)
    splits = _select(_select(splits, "train", train), "test", test)
    if announced.stored != tuple(splits.train_x.shape[1:]):
        splits = _resize(splits, announced.shape[-1])
    targets = splits.train_targets
    if config.shuffle_labels:
        targets = permuted(targets, config.seed)
    if config.label_noise:
        targets = noisy(targets, config.label_noise, len(announced.class_names), config.seed)
    return splits if targets is splits.train_y else dataclasses.replace(splits, targets=targets)


def _select(splits: Splits, split: str, positions: Tensor | None) -> Splits:
    if positions is None:
        return splits
    names = [f"{split}_{what}" for what in ("x", "y", "ids")]
    found = {name: getattr(splits, name)[positions] for name in names}
    if split == "train" and splits.targets is not None:
        found["targets"] = splits.targets[positions]
    return dataclasses.replace(splits, **found)


def _resize(splits: Splits, side: int) -> Splits:
    """Images in memory, resized once."""
    if not isinstance(splits.train_x, Tensor) or not isinstance(splits.test_x, Tensor):
        raise ConfigError(
            "data.image_size", f"`{side}` for samples that are streamed", "the size that they have"
        )
    return dataclasses.replace(
        splits, train_x=_resized(splits.train_x, side), test_x=_resized(splits.test_x, side)
    )


def _resized(x: Tensor, side: int) -> Tensor:
    """Torchvision's bilinear with antialiasing, in float32 and rounded back.

    Its own arithmetic for uint8 depends on the processor.
    """
    from torchvision.transforms.v2.functional import resize

    parts = []
    for part in x.split(1000):
        found = resize(part.float(), [side, side], antialias=True)
        parts.append(found if x.is_floating_point() else found.round().to(x.dtype))
    return torch.cat(parts)


def present(config: DataConfig) -> None:
    """Refuse a data set whose files are not where `load` looks for them; nothing is read.

    Raises
    ------
    ConfigError : it says where it looked, and how to get them there.
    """
    with _in_section():
        describe(config).present()


@contextmanager
def _in_section() -> Iterator[None]:
    """An entry names its own option or file; the key is `data.` and that."""
    try:
        yield
    except ConfigError as error:
        where = f"data.{error.where}"
        raise ConfigError(where, error.found, error.allowed, error.hint) from error


def load(config: DataConfig, device: torch.device | None = None) -> Splits:
    """The samples in the memory of `device` (default: the CPU), read once per process.

    They are shared between callers: do not change them.

    Raises
    ------
    ConfigError : what was read is not what the data set announced; a file is absent or damaged.
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
    return describe(config).load()


def _agrees(name: str, dataset: DataSet, splits: Splits, split: str) -> None:
    """Refuse samples that are not as announced."""
    x, y, ids = (getattr(splits, f"{split}_{what}") for what in ("x", "y", "ids"))
    n_samples, n_classes = getattr(dataset, f"n_{split}"), len(dataset.class_names)
    wrong = {
        f"{split}_x of shape {tuple(x.shape)}": tuple(x.shape) != (n_samples, *dataset.stored),
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
                f"announced: {n_samples} samples of shape {dataset.stored} in {n_classes} classes",
            )
