"""Chunks and shards as bytes: Blosc-LZ4 with bitshuffle, then CRC-32C, as Zarr v3 has them.

Written here rather than by zarr-python: a snapshot is one object that is encoded in a fifth of the
time, part by part, so that one of ImageNet's (100 MB) never stands in memory twice. Tests hold
these bytes to zarr-python's, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np
from numcodecs import blosc

from sweeper.durable import Bytes
from sweeper.store.schema import Array

# One context a call: chunks are coded in threads of our own, and zarr's stay as they are.
blosc.use_threads = False

CRC_BYTES = 4
_RESIDUE = 0x48674BC7  # the CRC-32C of any bytes that their own CRC-32C follows
_COPIED_AT_ONCE = 128 << 10
_ABSENT = 2**64 - 1  # offset and size, in a shard's index, of a chunk that was never written


def encode(values: Array) -> bytes:
    """A chunk's bytes; of equal values they are equal."""
    coder = blosc.Blosc(cname="lz4", clevel=5, shuffle=blosc.BITSHUFFLE, typesize=values.itemsize)
    return with_crc(coder.encode(np.ascontiguousarray(values)))


def decode(data: Bytes, values: Array) -> None:
    """Fill `values` with a chunk's.

    Raises
    ------
    ValueError : a bit has changed, or they are not of this shape.
    """
    checked = without_crc(data)
    size = values.nbytes
    if len(checked) < blosc.MAX_OVERHEAD or int.from_bytes(checked[4:8], "little") != size:
        raise ValueError(f"its bytes are not {size} values' bytes")
    try:
        blosc.decompress(checked, values)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def with_crc(data: Bytes) -> bytes:
    """The data and its CRC-32C."""
    return bytes(data) + _crc(data).to_bytes(CRC_BYTES, "little")


def without_crc(data: Bytes) -> memoryview:
    """What is before its CRC-32C.

    Raises
    ------
    ValueError : the two do not match.
    """
    if _crc(data) != _RESIDUE:
        raise ValueError("its checksum does not match")
    return memoryview(data)[:-CRC_BYTES]


def _crc(data: Bytes) -> int:
    """The CRC-32C; google_crc32c takes nothing but `bytes`, so of a view it gets small copies."""
    size = len(data) if isinstance(data, bytes) else _COPIED_AT_ONCE
    crc: int = 0
    for start in range(0, len(data), size or 1):
        crc = google_crc32c.extend(crc, bytes(data[start : start + size]))
    return crc


def shard(chunks: Iterable[Array], n_chunks: int, head: bytes = b"") -> Iterator[bytes]:
    """The parts of a shard: `head`, each chunk as it is encoded, and the index at the end.

    `chunks` are the first of `n_chunks`, in the order of their indices; those after them lie
    outside the array. What the index does not point at, such as `head`, Zarr readers ignore.
    """
    index = np.full((n_chunks, 2), _ABSENT, "<u8")
    offset = len(head)
    yield head
    for number, chunk in enumerate(chunks):
        data = encode(chunk)
        index[number] = offset, len(data)
        offset += len(data)
        yield data
    yield with_crc(index.tobytes())


def index_size(n_chunks: int) -> int:
    """Bytes of a shard's index, at its end."""
    return 16 * n_chunks + CRC_BYTES


def read_index(data: Bytes, n_chunks: int) -> list[tuple[int, int] | None]:
    """Where the chunks of a shard start and stop; None for one that was never written.

    Parameters
    ----------
    data : the shard's last bytes, `index_size(n_chunks)` of them.

    Raises
    ------
    ValueError : they are no index.
    """
    entries = np.frombuffer(without_crc(data), "<u8")
    if entries.size != 2 * n_chunks:
        raise ValueError(f"its index has {entries.size // 2} chunks instead of {n_chunks}")
    pairs = entries.reshape(n_chunks, 2).tolist()
    return [None if start == _ABSENT else (start, start + size) for start, size in pairs]
