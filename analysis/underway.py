"""Sums of squares that are under way, stored now and then, so that a killed run goes on from them.

::

    distances.unfinished.zarr/underway/
      <16 hex digits>     of one square: float64 arrays, then JSON that says what they are, then its
                          CRC32C and its place in the file, 8 bytes each

A square that takes hours has no tile to store until all samples are added up. So its sums are, and
are removed when the last of its tiles is finished. They belong to one matrix, as its tiles do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import struct
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.squares import Square
from analysis.tiles import Tile, crc32c, record_of, tile_name
from sweeper.durable import PARTIAL, Bytes, crash_point, write_parts
from sweeper.errors import StoreError
from sweeper.room import free_room

FORMAT = 1
SECONDS = 300.0  # of work that a killed run may lose, about
SHARE = 0.05  # of the time that storing sums may take
_END = struct.Struct("<QQ")

Sums = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Saved:
    """The sums of a square as a file has them.

    Attributes
    ----------
    tiles : those of the square.
    n_samples : the samples that are added up, from the first on.
    share : of all samples.
    arrays : of each its place in the file, shape and CRC32C, by name.
    """

    path: Path
    tiles: frozenset[Tile]
    n_samples: int
    share: float
    arrays: Mapping[str, tuple[int, tuple[int, ...], int]]

    def copy(self, name: str, into: torch.Tensor) -> None:
        """Fill in an array.

        Raises
        ------
        StoreError : it is absent, of another shape, damaged, or cannot be read.
        """
        start, shape, expected = self.arrays.get(name, (0, (), 0))
        if shape != tuple(into.shape):
            raise StoreError(str(self.path), f"no sums `{name}` of shape {tuple(into.shape)}")
        try:
            values = np.fromfile(self.path, np.float64, into.numel(), offset=start)
        except OSError as error:
            raise StoreError(str(self.path), str(error)) from error
        if values.size != into.numel() or crc32c(values) != expected:
            raise StoreError(str(self.path), f"sums `{name}` are damaged")
        into.copy_(torch.from_numpy(values.reshape(shape)))


class Underway:
    """The sums of one square, where whoever computes it finds and stores them.

    Parameters
    ----------
    place : folder of the matrix.
    reserve : bytes that the disk must have room for besides, for tiles.
    """

    def __init__(self, place: Path, square: Square, reserve: int) -> None:
        self._place, self._square, self._reserve = place, square, reserve
        self._due = time.monotonic() + SECONDS

    def found(self, step: int) -> Iterator[Saved]:
        """What is stored of all of the square's tiles, in whole steps; most samples first."""
        for saved in _all(self._place):
            if saved.tiles.issuperset(self._square) and saved.n_samples % step == 0:
                yield saved

    def is_due(self) -> bool:
        """Whether sums were not stored for long enough."""
        return time.monotonic() >= self._due

    def save(self, n_samples: int, share: float, sums: Sums) -> None:
        """Store what is added up, unless that would take the room that tiles need.

        The computation does not depend on it: if it fails, it is tried again after a while.
        """
        started = time.monotonic()
        about = {"format": FORMAT, "tiles": sorted(self._square)}
        about |= {"n_samples": n_samples, "share": share}
        with contextlib.suppress(OSError):  # such as of a quota, of which nothing can be asked
            if self._has_room(sum(values.nbytes for values in sums.values())):
                self._replace(_parts(about, sums))
        now = time.monotonic()
        self._due = now + max(SECONDS, (now - started) / SHARE)

    def _has_room(self, n_bytes: int) -> bool:
        """Whether so much may be stored here, and the matrix has not been finished by others."""
        free = free_room(self._place).n_bytes
        has_room = free is None or free >= n_bytes + self._reserve
        return has_room and record_of(self._place).exists()

    def _replace(self, parts: Iterator[Bytes]) -> None:
        """Write the file, and remove what it makes useless."""
        folder = _folder(self._place)
        path = folder / _name(self._square)
        for left in folder.glob(f"{path.name}.*{PARTIAL}"):  # by a worker that was killed
            left.unlink(missing_ok=True)
        write_parts(path, parts)
        crash_point("sums")
        for saved in _all(self._place):  # of a part of it, from when squares were smaller
            if saved.path != path and saved.tiles <= set(self._square):
                saved.path.unlink(missing_ok=True)


def begun(place: Path, missing: Sequence[Tile]) -> list[tuple[Square, Saved]]:
    """Of the tiles that are missing, those that belong together because sums of them are stored."""
    left, found = set(missing), []
    for saved in _all(place):
        if here := tuple(sorted(saved.tiles & left)):
            found.append((here, saved))
            left.difference_update(here)
    return found


def drop(place: Path, done: Container[str]) -> None:
    """Remove the sums of squares all of whose tiles are finished, given the tiles' names."""
    for saved in _all(place):
        if all(tile_name(tile) in done for tile in saved.tiles):
            saved.path.unlink(missing_ok=True)


def drop_all(place: Path) -> None:
    """Remove all sums, whether they can be read or not."""
    shutil.rmtree(_folder(place), ignore_errors=True)


def _folder(place: Path) -> Path:
    return place / "underway"


def _name(square: Square) -> str:
    return hashlib.sha256(repr(sorted(square)).encode()).hexdigest()[:16]


def _all(place: Path) -> list[Saved]:
    """What can be read, most samples first; what cannot is computed again."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(_folder(place).iterdir()):
            if path.suffix == PARTIAL:  # not there yet
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, struct.error):
                found.append(_read(path))
    return sorted(found, key=lambda saved: -saved.n_samples)


def _read(path: Path) -> Saved:
    with path.open("rb") as file:
        file.seek(-_END.size, 2)
        expected, start = _END.unpack(file.read())
        file.seek(start)
        text = file.read()[: -_END.size]
    about = json.loads(text)
    if _of_text(text) != expected or about["format"] != FORMAT:
        raise ValueError(f"{path}: damaged, or of another format")
    return Saved(
        path,
        frozenset((i, j) for i, j in about["tiles"]),
        about["n_samples"],
        about["share"],
        {name: (at, tuple(shape), crc) for name, (at, shape, crc) in about["arrays"].items()},
    )


def _parts(about: Mapping[str, Any], sums: Sums) -> Iterator[Bytes]:
    """The content of a file; of arrays on a device, one at a time is copied here."""
    arrays, start = {}, 0
    for name, values in sums.items():
        data = np.ascontiguousarray(values.cpu().numpy())
        arrays[name] = (start, data.shape, crc32c(data))
        start += data.nbytes
        yield data.data
    text = json.dumps({**about, "arrays": arrays}).encode()
    yield text
    yield _END.pack(_of_text(text), start)


def _of_text(text: bytes) -> int:
    return crc32c(np.frombuffer(text, np.uint8))
