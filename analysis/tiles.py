"""A symmetric matrix of distances, stored tile by tile.

::

    distances.zarr/            a Zarr v3 group; its attributes say of what
      d/                       (M, M) float32; only tiles on and above the diagonal are there
        c.0.0  c.0.1  …        one tile each, CRC32C of the file inside
        finished.jsonl         one line a tile once it is durable: name and checksums of its values
      references/              (2, M) float64: distances of truth and of ignorance to each snapshot
      underway/                only until it is finished, see `analysis.underway`

A tile is written and fsynced, then recorded as finished by `analysis.fill`. What is recorded can be
relied upon, or is refused by name. A matrix grows in `distances.unfinished.zarr` and replaces the
previous one when its last tile is finished; until then the disk holds both. One that was not
finished when other trials were asked for waits in `distances.aside.zarr`, to be reused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
import zarr.codecs

from analysis.provenance import check_format, read_table
from analysis.spans import shifted, span_of
from sweeper.durable import sync_folder, write_atomically
from sweeper.errors import AnalysisError, HoleError, StoreError
from sweeper.store.zarr_store import DurableStore

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]
Tile = tuple[int, int]

FORMAT = 1
TILE = 1024  # snapshots on a side: 4 MiB, and little is repeated when a run is killed
DISTANCES = "distances.zarr"
_FIRST = "run `sweeper analyze distances DIR` first"
_ON = "run `sweeper analyze distances DIR` again: it goes on where it stopped"
_AGAIN = "run `sweeper analyze distances DIR` again: it computes what is absent or damaged"


@dataclass(frozen=True)
class Tiling:
    """How an M × M symmetric matrix is cut into tiles."""

    M: int
    tile: int

    @property
    def n(self) -> int:
        """Rows of tiles."""
        return math.ceil(self.M / self.tile)

    def upper(self) -> Iterator[Tile]:
        """The tiles on and above the diagonal, in order of rows."""
        return ((i, j) for i in range(self.n) for j in range(i, self.n))

    def span(self, index: int) -> slice:
        """The rows (or columns) of a row (or column) of tiles."""
        return slice(index * self.tile, min((index + 1) * self.tile, self.M))


# --- reading --------------------------------------------------------------------------------


def open_distances(path: str | Path) -> Distances:
    """Open a matrix of distances for reading.

    Parameters
    ----------
    path : a sweep directory, what `--out` named, or the folder of the matrix.

    Raises
    ------
    AnalysisError : there is none, or not all of it yet. StoreError : it is damaged, or of a newer
        format.
    """
    inside = Path(path) / "analysis" / DISTANCES
    return Distances(inside if inside.parent.is_dir() else Path(path))


class Distances:
    """The full symmetric matrix, read lazily: ``d[i0:i1, j0:j1]``.

    Blocks are float32 as stored (nats; the diagonal is zero). Every tile is checked against its
    recorded checksum when it is first read.
    """

    def __init__(self, path: Path) -> None:
        attributes = attributes_of(path)
        if attributes is None or "analysis_format" not in attributes:
            raise _absent(path)
        check_format(path, "distances", attributes["analysis_format"], FORMAT)
        self.path = path
        self.about: dict[str, Any] = attributes["about"]
        self._d = _open(path, "d", "r")
        self.tiling = Tiling(self._d.shape[0], attributes["tile"])
        self._finished = finished(path)
        self._checked: dict[Tile, int] = {}  # CRC32C of what was as recorded

    @property
    def shape(self) -> tuple[int, int]:
        """(M, M)."""
        return self.tiling.M, self.tiling.M

    @functools.cached_property
    def snapshots(self) -> pd.DataFrame:
        """What each row is of: `trial_id`, `snapshot`, `step`, `epoch`, `accuracy`, `loss`.

        Raises
        ------
        StoreError : the table is absent, damaged or of another matrix.
        """
        path = self.path.with_name("snapshots.parquet")
        table, about = read_table(path)
        if about != self.about or len(table) != self.tiling.M:
            raise StoreError(
                str(path), "not the rows of this matrix", f"its {self.tiling.M} rows", _AGAIN
            )
        return table

    @functools.cached_property
    def references(self) -> Array:
        """Distances of truth (row 0) and ignorance (row 1) to every snapshot, (2, M) float64.

        Of Bhattacharyya distances they are exact, and between the two it is ½ ln n_classes.
        """
        return np.concatenate([self.references_of(i) for i in range(self.tiling.n)], axis=1)

    def __getitem__(self, key: tuple[slice | SupportsIndex, slice | SupportsIndex]) -> Array:
        """A block, float32.

        Raises
        ------
        AnalysisError : a tile of it is not computed yet, or `key` is no pair of slices of step 1
            or integers within M. HoleError : a finished tile is absent. StoreError : a finished
            tile is damaged.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise AnalysisError("D", f"index `{key}`", "a pair of slices or indices")
        spans = [span_of(index, self.tiling.M) for index in key]
        block = np.empty([span.stop - span.start for span in spans], np.float32)
        for i, rows in self._overlaps(spans[0]):
            for j, columns in self._overlaps(spans[1]):
                here = (shifted(rows, spans[0].start), shifted(columns, spans[1].start))
                block[here] = self._part(i, j, rows, columns)
        return block[tuple(slice(None) if isinstance(index, slice) else 0 for index in key)]

    def _overlaps(self, span: slice) -> Iterator[tuple[int, slice]]:
        """The tiles a span of rows touches, and which of its rows are theirs."""
        for index in range(span.start // self.tiling.tile, math.ceil(span.stop / self.tiling.tile)):
            tile = self.tiling.span(index)
            yield index, slice(max(span.start, tile.start), min(span.stop, tile.stop))

    def _part(self, i: int, j: int, rows: slice, columns: slice) -> Array:
        """A block within one tile, which below the diagonal is the mirrored one's."""
        if i > j:
            return self._part(j, i, columns, rows).T
        if (i, j) in self._checked:
            return np.asarray(self._d[rows, columns])
        here = (shifted(rows, i * self.tiling.tile), shifted(columns, j * self.tiling.tile))
        return self.check((i, j))[here]

    def check(self, tile: Tile) -> Array:
        """One tile on or above the diagonal, read whole and compared with its checksum.

        With a tile of the diagonal, its part of `references` is checked as well.
        """
        if tile[0] == tile[1]:
            self.references_of(tile[0])
        values = self._read(self._d, tile, tuple(map(self.tiling.span, tile)), "crc32")
        self._checked[tile] = crc32c(values)
        return values

    def is_sound(self, tile: Tile) -> bool:
        """Whether a tile is finished and undamaged."""
        try:
            self.check(tile)
        except (AnalysisError, StoreError):
            return False
        return True

    def tile(self, tile: Tile) -> Array:
        """One tile on or above the diagonal, read whole, as often as it is wanted.

        Compared with its recorded checksum when it is first read, and after that with another of
        what was read then, which takes a fifth of the time. From then on its file is read here,
        because Zarr takes several times as long.
        """
        if tile not in self._checked:
            return self.check(tile)
        side, (rows, columns) = self.tiling.tile, map(self.tiling.span, tile)
        with (self.path / "d" / f"c.{tile_name(tile)}").open("rb") as file:
            found = np.frombuffer(file.read(4 * side**2), np.uint8)
        if len(found) == 4 * side**2:
            whole = found.view("<f4").reshape(side, side)
            values = whole[: rows.stop - rows.start, : columns.stop - columns.start]
            if crc32c(values) == self._checked[tile]:
                return values
        raise StoreError(f"{self.path}: tile {tile_name(tile)}", "damaged", hint=_AGAIN)

    def references_of(self, index: int) -> Array:
        """The part of `references` that belongs to a row of tiles."""
        array = _open(self.path, "references", "r")
        selection = (slice(None), self.tiling.span(index))
        return self._read(array, (index, index), selection, "references")

    def _read(self, array: Any, tile: Tile, selection: Any, checksum: str) -> Array:
        where = f"{self.path}: tile {tile_name(tile)}"
        entry = self._finished.get(tile_name(tile))
        if entry is None:
            total = sum(1 for _ in self.tiling.upper())
            raise AnalysisError(
                where, f"not computed yet, {len(self._finished)} of {total} are", hint=_AGAIN
            )
        values = _read_chunk(array, selection, where)
        if _crc32(values) != entry.get(checksum):
            # An absent chunk reads as fill values, a damaged one fails in `_read_chunk`.
            if np.isnan(values).all():
                raise HoleError(where, "absent, though recorded as finished", hint=_AGAIN)
            raise StoreError(where, "does not match its recorded checksum", hint=_AGAIN)
        return values


def _absent(path: Path) -> AnalysisError:
    n_tiles = len(finished(unfinished(path)))
    if not n_tiles:
        return AnalysisError(str(path), "no distances here", hint=_FIRST)
    found = f"no distances here yet, {n_tiles} tiles of them are computed"
    return AnalysisError(str(path), found, hint=_ON)


def _read_chunk(array: Any, selection: Any, where: str) -> Array:
    try:
        return np.asarray(array[selection])
    except OSError:
        raise
    except Exception as error:  # codecs raise ValueError, RuntimeError, … on damaged bytes
        raise StoreError(
            where, f"damaged ({error})", "bytes that match their checksum", _AGAIN
        ) from error


# --- writing ------------------------------------------------------------------------------


def create(path: Path, tiling: Tiling, about: Mapping[str, Any]) -> None:
    """Make an empty matrix, in the place of anything that is there."""
    if path.exists():
        shutil.rmtree(path)
    for name, shape, chunks, dtype in (
        ("d", (tiling.M, tiling.M), (tiling.tile, tiling.tile), "<f4"),
        ("references", (2, tiling.M), (2, tiling.tile), "<f8"),
    ):
        zarr.create_array(
            DurableStore(path / name),
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=float("nan"),
            compressors=(zarr.codecs.Crc32cCodec(),),  # distances do not compress
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
    describe(path, tiling, about)  # last, because without it the folder is no matrix
    sync_folder(path.parent)


def describe(path: Path, tiling: Tiling, about: Mapping[str, Any]) -> None:
    """Say what the matrix is of, in its group's attributes."""
    attributes = {"analysis_format": FORMAT, "tile": tiling.tile, "about": dict(about)}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    write_atomically(path / "zarr.json", json.dumps(group, indent=1, allow_nan=False).encode())


def write_tile(path: Path, tile: Tile, values: Array, references: Array | None) -> dict[str, Any]:
    """Store one tile, durably; returns the record that says so once it is appended.

    Parameters
    ----------
    values : (n_rows, n_columns), cast to float32.
    references : (2, n_rows) with a tile of the diagonal, else None.
    """
    d = _open(path, "d", "r+")
    tiling = Tiling(d.shape[0], d.chunks[0])
    rows, columns = map(tiling.span, tile)
    values = np.asarray(values, dtype=np.float32)
    d[rows, columns] = values
    entry = {"tile": tile_name(tile), "crc32": _crc32(values)}
    if references is not None:
        _open(path, "references", "r+")[:, rows] = references
        entry["references"] = _crc32(np.asarray(references, dtype=np.float64))
    return entry


def bytes_of(tiling: Tiling) -> int:
    """What a tile takes on the disk, with its share of the references and the record."""
    return 4 * tiling.tile**2 + 16 * tiling.tile + 256


def unfinished(path: Path) -> Path:
    """Where the matrix grows that is to be at `path`."""
    return path.parent / f"{path.stem}.unfinished{path.suffix}"


def aside(path: Path) -> Path:
    """Where an unfinished matrix about something else waits until a newer one is finished."""
    return path.parent / f"{path.stem}.aside{path.suffix}"


# --- files ----------------------------------------------------------------------------------


def _open(path: Path, name: str, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
    store = DurableStore(path / name, read_only=mode == "r")
    try:
        return zarr.open_array(store, mode=mode)
    except Exception as error:  # zarr raises ValueError, KeyError and its own on bad metadata
        raise StoreError(
            f"{path}: array {name}", f"unreadable ({type(error).__name__}: {error})", hint=_AGAIN
        ) from error


def attributes_of(path: Path) -> dict[str, Any] | None:
    """The attributes of the group, None when it does not exist."""
    try:
        return dict(json.loads((path / "zarr.json").read_bytes())["attributes"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(str(path), f"unreadable metadata ({error})", hint=_AGAIN) from error


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The records of finished tiles; a torn or damaged line is no record."""
    found = {}
    lines = record_of(path).read_bytes().splitlines() if record_of(path).exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            found[str(entry["tile"])] = entry
    return found


def record_of(path: Path) -> Path:
    """The file that lists the finished tiles."""
    return path / "d" / "finished.jsonl"


def tile_name(tile: Tile) -> str:
    """`i.j`, as in the name of its chunk."""
    return f"{tile[0]}.{tile[1]}"


def _crc32(values: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def crc32c(values: Array) -> int:
    """CRC32C of an array's bytes."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    data.flags.writeable = False  # nothing else is taken
    return int(google_crc32c.value(data))
