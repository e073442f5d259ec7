"""Compute a matrix of distances tile by tile, and go on where a killed run stopped."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from analysis.tiles import (
    Array,
    Distances,
    Tile,
    Tiling,
    create,
    describe,
    finished,
    record_of,
    tile_name,
    unfinished,
    write_tile,
)
from sweeper.durable import crash_point, remove_partials, sync_folder, write_atomically
from sweeper.errors import AnalysisError, StoreError

Map = Callable[[Callable[[Tile], dict[str, Any]], Iterable[Tile]], Iterable[dict[str, Any]]]
Record = dict[str, Any]


class Blocks(Protocol):
    """Where the values come from; must be picklable if `map` leaves this process."""

    def distances(self, rows: slice, columns: slice) -> Array:
        """D[rows, columns], (n_rows, n_columns)."""

    def references(self, rows: slice) -> Array:
        """Distances of truth and ignorance, (2, n_rows)."""


def fill(
    path: Path,
    blocks: Blocks,
    tiling: Tiling,
    about: Mapping[str, Any],
    map: Map = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Compute and store every tile that is not there yet, whole and undamaged.

    One process calls this for a path at a time; `map` may compute tiles in other processes that
    see the same folder. Durable tile by tile, and idempotent. What else is at `path`, such as a
    matrix about something else, stays there until the last tile is finished: the new matrix grows
    beside it, in `tiles.unfinished(path)`, and then takes its place.

    Parameters
    ----------
    path : folder of the matrix.
    about : JSON values that say what the matrix is of, kept as its attributes; matrices of equal
        `fingerprint` are of the same.
    map : like the built-in, lazy or not, in any order.
    progress : called with the number of finished tiles and of all, at first and after each.

    Returns
    -------
    How many tiles were computed.

    Raises
    ------
    StoreError, HoleError : from `blocks`, when predictions are damaged or absent.
    """
    _recover(path)
    place, done = path, undamaged(path, tiling, about)
    if done is None:
        place = unfinished(path)
        done = undamaged(place, tiling, about)
    if done is None:
        create(place, tiling, about)
        done = {}
    remove_partials(place)
    write_atomically(record_of(place), b"".join(_line(entry) for entry in done.values()))
    missing = [tile for tile in tiling.upper() if tile_name(tile) not in done]
    progress(len(done), len(done) + len(missing))
    task = functools.partial(_compute, place, blocks, tiling)
    with record_of(place).open("ab") as record:
        for count, entry in enumerate(map(task, missing), start=len(done) + 1):
            record.write(_line(entry))
            record.flush()
            os.fsync(record.fileno())
            crash_point("tile")
            progress(count, len(done) + len(missing))
    describe(place, tiling, about)  # what is left out may differ, though the tiles do not
    if place != path:
        _publish(place, path)
    return len(missing)


def undamaged(path: Path, tiling: Tiling, about: Mapping[str, Any]) -> dict[str, Record] | None:
    """The records of the tiles that are as recorded; None unless there is a matrix about this."""
    try:
        stored = Distances(path)
        if stored.about["fingerprint"] != about["fingerprint"] or stored.tiling != tiling:
            return None
    except (AnalysisError, StoreError):
        return None
    found = finished(path)
    return {
        tile_name(tile): found[tile_name(tile)] for tile in tiling.upper() if _sound(stored, tile)
    }


def _sound(stored: Distances, tile: Tile) -> bool:
    try:
        stored.check(tile)
    except (AnalysisError, StoreError):
        return False
    return True


def _compute(path: Path, blocks: Blocks, tiling: Tiling, tile: Tile) -> Record:
    rows, columns = tiling.span(tile[0]), tiling.span(tile[1])
    references = blocks.references(rows) if tile[0] == tile[1] else None
    entry = write_tile(path, tile, blocks.distances(rows, columns), references)
    crash_point("tile-data")
    return entry


def _line(entry: Record) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _publish(made: Path, path: Path) -> None:
    """Move a finished matrix to `path`, in the place of what is there.

    No rename replaces a folder that is not empty, so the previous one is moved out of the way
    first; `_recover` moves it back if this process is killed before the second move.
    """
    if path.exists():
        path.rename(_previous(path))
        crash_point("publish")
    made.rename(path)
    sync_folder(path.parent)
    _recover(path)


def _recover(path: Path) -> None:
    """Move back what a killed `_publish` moved out of the way, or remove it if it was replaced."""
    previous = _previous(path)
    if previous.exists() and path.exists():
        shutil.rmtree(previous)
    elif previous.exists():
        previous.rename(path)


def _previous(path: Path) -> Path:
    return path.parent / f"{path.stem}.previous{path.suffix}"
