"""Arrays of a store: their Zarr v3 metadata, their chunks and shards, read and written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sweeper.durable import Bytes
from sweeper.errors import HoleError, StoreError
from sweeper.store import codec
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.schema import DTYPES, Array, blocks

REMEDY = "`sweeper verify DIR` lists all damage"

_NAMES = {"<f2": "float16", "<i8": "int64"}
_FILLS: dict[str, Any] = {"<f2": "NaN", "<i8": 0}
_FEW_CLASSES = 64
_THREADS_FROM = 4 << 20  # bytes of a read from which decoding it in threads pays
_NORMALISED_AT_ONCE = 1 << 16  # values, which a processor's own cache holds
# Every float16 by its bits: looking them up takes half the time of NumPy's own conversion.
_AS_FLOAT32 = np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """The shape of an array, and of the shards and chunks that it is cut into."""

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None

    @classmethod
    def whole(cls, values: Array) -> Layout:
        """An array of int64 that is one chunk."""
        return cls("<i8", values.shape, values.shape)

    @property
    def n_chunks(self) -> int:
        """Chunks in a shard."""
        shard = self.shard or self.chunk
        return math.prod(-(-a // b) for a, b in zip(shard, self.chunk, strict=True))

    def metadata(self) -> dict[str, Any]:
        """What the array's `zarr.json` says, as zarr-python 3.1 writes it."""
        itemsize = np.dtype(self.dtype).itemsize
        codecs: list[dict[str, Any]] = [
            _named("bytes", endian="little"),
            _named(
                "blosc",
                typesize=itemsize,
                cname="lz4",
                clevel=5,
                shuffle="bitshuffle",
                blocksize=0,
            ),
            {"name": "crc32c"},
        ]
        if self.shard:
            sharding = _named(
                "sharding_indexed",
                chunk_shape=list(self.chunk),
                codecs=codecs,
                index_codecs=[codecs[0], codecs[2]],
                index_location="end",
            )
            codecs = [sharding]
        return {
            "shape": list(self.shape),
            "data_type": _NAMES[self.dtype],
            "chunk_grid": _named("regular", chunk_shape=list(self.shard or self.chunk)),
            "chunk_key_encoding": _named("default", separator="."),
            "fill_value": _FILLS[self.dtype],
            "codecs": codecs,
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    @classmethod
    def of(cls, found: dict[str, Any], dtype: str) -> Self | None:
        """The layout that metadata describe; None when they are not those of this format.

        Arrays' metadata have no checksum; another byte order would decode to other values.
        """
        grid = tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
        first = found["codecs"][0]
        is_sharded = first["name"] == "sharding_indexed"
        chunk = tuple(first["configuration"]["chunk_shape"]) if is_sharded else grid
        layout = cls(dtype, tuple(found["shape"]), chunk, grid if is_sharded else None)
        if not all(type(n) is int and n > 0 for n in (*layout.shape, *chunk, *grid)):
            return None
        # Along samples alone a shard has several chunks, and whole ones: or they would be others'.
        if is_sharded and (grid[0], grid[1] % chunk[1], *grid[2:]) != (chunk[0], 0, *chunk[2:]):
            return None
        wanted = layout.metadata()
        return layout if {key: found.get(key) for key in wanted} == wanted else None


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


# --- writing --------------------------------------------------------------------------------


def create_array(objects: Objects, key: str, layout: Layout) -> None:
    """Write the metadata of an array."""
    objects.write(metadata_key(key), json.dumps(layout.metadata(), indent=2).encode())


def write_whole(objects: Objects, key: str, values: Array) -> None:
    """An array of int64 in one chunk."""
    create_array(objects, key, Layout.whole(values))
    data = codec.encode(np.ascontiguousarray(values, "<i8"))
    objects.write(f"{key}/{chunk_name(0)}", data)


def write_shard(
    objects: Objects, key: str, chunks: Iterable[Array], n_chunks: int, head: bytes = b""
) -> None:
    """Write the shard `key`, chunk after chunk as they are made (see `codec.shard`)."""
    objects.write_parts(key, codec.shard(chunks, n_chunks, head))


def padded(values: Array, chunk: tuple[int, ...]) -> Array:
    """A chunk at the edge of its array in full size, filled up as Zarr wants it."""
    if values.shape == chunk:
        return values
    full = np.full(chunk, np.nan, values.dtype)
    full[tuple(slice(n) for n in values.shape)] = values
    return full


def chunk_name(*indices: int) -> str:
    """The object of the chunk or shard that is so many-th along each axis."""
    return ".".join(["c", *map(str, indices)])


# --- reading --------------------------------------------------------------------------------


class StoredArray:
    """An array for reading; safe for several threads.

    Raises
    ------
    HoleError : it is absent. StoreError : its metadata is damaged or not of this format.
    """

    def __init__(self, objects: Objects, key: str, where: str) -> None:
        self._objects, self.key = objects, key
        self._name = "/".join(key.split("/")[-2:])
        try:
            document = json.loads(bytes(objects.read(metadata_key(key))))
            layout = Layout.of(document, DTYPES[key.rpartition("/")[2]])
        except FileNotFoundError as error:
            raise HoleError(where, f"array `{key}` is absent", hint=REMEDY) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            found = f"metadata of `{key}` is unreadable ({type(error).__name__}: {error})"
            raise StoreError(where, found, hint=REMEDY) from error
        if layout is None:
            raise StoreError(where, f"metadata of `{key}` differs from the format", hint=REMEDY)
        self.layout = layout
        self._indices: dict[str, list[tuple[int, int] | None]] = {}

    def whole(self, where: str) -> Array:
        """All of an array that is one chunk.

        Raises
        ------
        HoleError : it is absent. StoreError : it is damaged.
        """
        with _said_of(where, self._name):
            data = self._objects.read(f"{self.key}/{chunk_name(0)}")
            values = np.empty(self.layout.chunk, self.layout.dtype)
            codec.decode(data, values)
            return values

    def read(
        self, row: int, rows: slice | Array, samples: Array, out: Array, where: str
    ) -> list[Array]:
        """Read a selection from the shards that are `row`-th on the axis of snapshots.

        Parameters
        ----------
        rows : which of a shard's snapshots.
        samples : (n_samples) indices.
        out : (n_rows, n_samples, n_classes): float16 gets what is stored, float32 what is
            normalised.

        Returns
        -------
        For each absent shard the positions in `samples` that it should have given.

        Raises
        ------
        StoreError : a chunk is damaged.
        """
        assert self.layout.shard is not None
        chunk, shard = self.layout.chunk[1], self.layout.shard[1]
        threads = (os.cpu_count() or 1) if out.nbytes >= _THREADS_FROM else 1
        absent = []

        def place(task: tuple[Bytes, Array]) -> None:
            data, places = task
            with _scratch(self.layout.chunk, self.layout.dtype) as values:
                with _said_of(where, self._name):
                    codec.decode(data, values)
                _put(values[rows][:, as_run(samples[places] % chunk)], out, as_run(places))

        for number, places in _grouped(samples // shard):
            inside = list(_grouped(samples[places] % shard // chunk))
            name = f"{self.key}/{chunk_name(row, number, 0)}"
            with _said_of(where, self._name):
                try:
                    data = self._chunks(name, [block for block, _ in inside])
                except FileNotFoundError:
                    absent.append(places)
                    continue
            found = zip(data, (places[at] for _, at in inside), strict=True)
            spread(place, list(found), threads)  # now: one shard's bytes are in memory at a time
        return absent

    def _chunks(self, name: str, wanted: list[int]) -> list[Bytes]:
        """The bytes of some chunks of a shard.

        Raises
        ------
        FileNotFoundError : there is no shard. ValueError : its index is damaged.
        """
        n_chunks = self.layout.n_chunks
        size = codec.index_size(n_chunks)
        if len(wanted) == n_chunks:
            data = memoryview(self._objects.read(name))
            index = codec.read_index(data[-size:], n_chunks)
            return [data[start:stop] for start, stop in _spans(index, wanted)]
        if name not in self._indices:  # a shard never changes
            self._indices[name] = codec.read_index(self._objects.read_tail(name, size), n_chunks)
        return list(self._objects.read_ranges(name, _spans(self._indices[name], wanted)))


def _spans(index: list[tuple[int, int] | None], wanted: list[int]) -> list[tuple[int, int]]:
    spans = [span for span in (index[number] for number in wanted) if span]
    if len(spans) < len(wanted):
        raise ValueError("its index lacks a chunk")
    return spans


def _grouped(numbers: Array) -> Iterator[tuple[int, Array]]:
    """Each number that occurs, and where."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    for value, places in zip(values, np.split(order, starts[1:]), strict=True):
        yield int(value), places


def as_run(indices: Array) -> slice | Array:
    """Consecutive indices as a slice, which copies faster."""
    if not len(indices):
        return slice(0)
    first, last = int(indices[0]), int(indices[-1])
    is_run = last - first == len(indices) - 1 and bool((np.diff(indices) == 1).all())
    return slice(first, last + 1) if is_run else indices


def spread(function: Callable[[Any], None], tasks: Sequence[Any], threads: int) -> None:
    """Call it with every task; the first error is raised."""
    if threads == 1 or len(tasks) < 2:
        for task in tasks:
            function(task)
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        for _ in pool.map(function, tasks):
            pass


@contextmanager
def _said_of(where: str, name: str) -> Iterator[None]:
    """What is absent or damaged, with the trial and the snapshot that it is of."""
    try:
        yield
    except FileNotFoundError as error:
        raise HoleError(where, f"{name} is absent", hint=REMEDY) from error
    except ValueError as error:
        allowed = "bytes that match their checksum"
        raise StoreError(where, f"{name} is damaged ({error})", allowed, REMEDY) from error


@contextmanager
def _scratch(shape: tuple[int, ...], dtype: str) -> Iterator[Array]:
    """Memory to decode a chunk into, which later chunks get again.

    Memory that is new to the process costs more, for its page faults, than decoding into it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        found = _decoded.pop()
    except IndexError:  # other threads have them all
        found = np.empty(size, np.uint8)
    if len(found) < size:
        found = np.empty(size, np.uint8)
    yield found[:size].view(dtype).reshape(shape)
    if len(_decoded) < (os.cpu_count() or 1):
        _decoded.append(found)


_decoded: list[Array] = []


def _put(stored: Array, out: Array, places: slice | Array) -> None:
    """Put what is stored of some samples in their places: as it is, or as float32 normalised."""
    if out.dtype == stored.dtype:
        out[:, places] = stored
        return
    for rows in blocks(len(stored), max(1, _NORMALISED_AT_ONCE // max(1, stored[:1].size))):
        out[rows, places] = _normalised(stored[rows])


def _normalised(stored: Array) -> Array:
    """Stored float16 log-probabilities as float32 whose rows sum to 1 (log-sum-exp is 0).

    Rows are probabilities to float16's rounding already, so nothing overflows here. A row's result
    depends on that row alone, not on how many others are read with it.
    """
    values = np.take(_AS_FLOAT32, stored.view("<u2"), mode="clip")
    values -= np.log(_row_sums(np.exp(values)))[..., None]
    return values


def _row_sums(probs: Array) -> Array:
    """Sums over the last axis; of a few classes column by column, three times as fast."""
    if probs.shape[-1] > _FEW_CLASSES:
        return np.asarray(probs.sum(axis=-1))
    sums = probs[..., 0].copy()
    for column in range(1, probs.shape[-1]):
        sums += probs[..., column]
    return sums
