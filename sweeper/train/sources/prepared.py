"""A copy of streamed images, decoded and resized once: read instead of the files where it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from sweeper.errors import ConfigError
from sweeper.train.sources.place import made, only_one
from sweeper.train.sources.streamed import ImageFiles, ahead, pinned

_FORMAT = 1
_HEADER = "prepared.json"
_CHUNK = 512  # images read or written at a time while it is made or checked


def place_of(folder: Path, side: int) -> Path:
    """Where the copy of the images below `folder`, `side` pixels high and wide, is."""
    return folder / f"prepared-{side}"


class Prepared:
    """Images in one file as a `sweeper.train.data.Streamed`, (n_samples, 3, side, side) uint8.

    Parameters
    ----------
    path : the images one after another, without a header.
    positions : (n_samples,) int64, where each is in the file.
    """

    def __init__(self, path: Path, positions: np.ndarray, side: int) -> None:
        self.path, self.positions, self.side = path, positions, side

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, 3, side, side)."""
        return (len(self.positions), 3, self.side, self.side)

    def __getitem__(self, positions: Tensor) -> Prepared:
        """The images at these positions."""
        return Prepared(self.path, self.positions[positions.cpu().numpy()], self.side)

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of positions, in order, read ahead; pinned for a GPU.

        Raises
        ------
        OSError : the file cannot be read.
        """
        return ahead(self._read([self.positions[batch.cpu().numpy()] for batch in batches]))

    def _read(self, batches: list[np.ndarray]) -> Generator[Tensor, None, None]:
        n_bytes = 3 * self.side * self.side
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for batch in batches:
                whole = pinned(len(batch), *self.shape[1:])
                for row, position in zip(whole.numpy(), batch, strict=True):
                    # A mapped file would be read page by page, each with the interpreter's lock.
                    if os.preadv(descriptor, [row], int(position) * n_bytes) != n_bytes:
                        raise OSError(f"`{self.path}` ends early")
                yield whole
        finally:
            os.close(descriptor)


def open_prepared(
    folder: Path, side: int, names: Mapping[str, np.ndarray]
) -> dict[str, Prepared] | None:
    """The copy below `folder` for each split, None where there is none.

    Sizes and the list of files are compared; `check_prepared` reads all of it.

    Parameters
    ----------
    names : of the files of each split, in the order of the samples.

    Raises
    ------
    ConfigError : the copy is of other files or in another form, or has lost bytes.
    """
    place = place_of(folder, side)
    if not place.exists():
        return None
    try:
        header = json.loads((place / _HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _stale(place, f"has no readable {_HEADER}") from error
    found = {}
    for split, listed in names.items():
        path, kept = place / f"{split}.u8", header.get(split, {})
        if header.get("format") != _FORMAT or header.get("side") != side:
            raise _stale(place, "is in another form")
        if kept.get("files") != _digest(listed):
            raise _stale(place, f"is not of the files of `{folder / split}`")
        if not path.is_file() or path.stat().st_size != len(listed) * 3 * side * side:
            raise _stale(path, "is not as long as it was")
        found[split] = Prepared(path, np.arange(len(listed)), side)
    return found


def _stale(place: Path, found: str) -> ConfigError:
    return ConfigError(
        "name",
        f"`{place}` {found}",
        "the copy of the images that are there",
        f"remove `{place if place.is_dir() else place.parent}`; the files are decoded then, or "
        "`sweeper data prepare` makes it anew",
    )


def check_prepared(
    folder: Path, side: int, names: Mapping[str, np.ndarray], progress: Callable[[int], None]
) -> None:
    """Read the whole copy and compare its sums.

    Raises
    ------
    ConfigError : it is not what was written, or see `open_prepared`.
    """
    found = open_prepared(folder, side, names) or {}
    header = json.loads((place_of(folder, side) / _HEADER).read_text(encoding="utf-8"))
    for split, prepared in found.items():
        sha256 = hashlib.sha256()
        with prepared.path.open("rb") as file:
            while read := file.read(_CHUNK * 3 * side * side):
                sha256.update(read)
                progress(len(read) // (3 * side * side))
        if sha256.hexdigest() != header[split]["sha256"]:
            raise _stale(prepared.path, "is damaged")


def prepare(
    folder: Path,
    side: int,
    names: Mapping[str, np.ndarray],
    progress: Callable[[int], None],
    on_wait: Callable[[], None],
) -> bool:
    """Make the copy, whole or not at all; whether it was made, rather than there and checked.

    Of several processes one makes it and the others wait and check.

    Parameters
    ----------
    folder : `names` are below `folder/<split>`.
    progress : called with the number of images done since it was last called.
    on_wait : called before it waits for another process.

    Raises
    ------
    ConfigError : an image cannot be decoded, the disk has no room, or see `check_prepared`.
    """
    place = place_of(folder, side)
    with only_one(folder, place.name, on_wait):
        if place.exists():
            check_prepared(folder, side, names, progress)
            return False
        n_bytes = sum(map(len, names.values())) * 3 * side * side
        free = shutil.disk_usage(folder).free
        if free < n_bytes:
            raise ConfigError("name", f"{free / 1e9:.1f} GB free on `{folder}`", _room(n_bytes))
        with made(place) as partial:
            header: dict[str, Any] = {"format": _FORMAT, "side": side, "pillow": PIL.__version__}
            for split, listed in names.items():
                files = ImageFiles(folder / split, listed, side)
                sha256 = _write(partial / f"{split}.u8", files, progress)
                header[split] = {
                    "n_samples": len(listed),
                    "sha256": sha256,
                    "files": _digest(listed),
                }
            (partial / _HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")
    return True


def _room(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB are needed"


def _write(path: Path, files: ImageFiles, progress: Callable[[int], None]) -> str:
    """Write the images one after another; their SHA-256."""
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for images in files.batches(torch.arange(len(files.names)).split(_CHUNK)):
            content = images.numpy().data
            sha256.update(content)
            file.write(content)
            progress(len(images))
    return sha256.hexdigest()


def _digest(names: np.ndarray) -> str:
    """SHA-256 of the names of the files, in order."""
    return hashlib.sha256(b"\n".join(names.tolist())).hexdigest()
