"""Compute a matrix of distances tile by tile, and go on where a killed run stopped."""

from __future__ import annotations

import functools
import json
import os
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
    write_tile,
)
from sweeper.durable import crash_point, sweep_partials, write_atomically
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
    see the same folder. Durable tile by tile, and idempotent. A matrix that is about something
    else, or a folder that holds no matrix, is replaced.

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
    sweep_partials(path)
    done = undamaged(path, tiling, about)
    if done is None:
        create(path, tiling, about)
    else:
        describe(path, tiling, about)
    done = done or {}
    write_atomically(record_of(path), b"".join(_line(entry) for entry in done.values()))
    missing = [tile for tile in tiling.upper() if tile_name(tile) not in done]
    progress(len(done), len(done) + len(missing))
    task = functools.partial(_compute, path, blocks, tiling)
    with record_of(path).open("ab") as record:
        for count, entry in enumerate(map(task, missing), start=len(done) + 1):
            record.write(_line(entry))
            record.flush()
            os.fsync(record.fileno())
            crash_point("tile")
            progress(count, len(done) + len(missing))
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
