"""Named objects, the one thing that a store needs of a file system or of a bucket."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sweeper.durable import Bytes
from sweeper.errors import StoreError

REQUESTS_AT_ONCE = 16  # a bucket answers many at once, each of them late

_BLANK = "0" * 64  # stands where a metadata file's own checksum will be


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it; `stamp` changes whenever the object is replaced."""

    key: str
    size: int
    stamp: str


class Objects(ABC):
    """Objects below one place, by names that are relative to it, with `/`.

    Contract (one test class holds every backend to it), for any number of processes at once:

    - A write that returned is durable. It is atomic: readers see the old object, the new one, or
      none before the first, and a crash leaves one of these.
    - Of several processes that `create` one object exactly one is told that it did.
    - What is absent raises FileNotFoundError when it is read; to list or delete it is no error.
    - What stays out of reach, after retries with backoff where they can help, raises
      `UnavailableStoreError`, or OSError on a file system.
    """

    location: str  # a path, or a URL without any credentials

    # --- what a backend has to do ---------------------------------------------------------

    @abstractmethod
    def read(self, key: str) -> Bytes:
        """The bytes of an object."""

    @abstractmethod
    def read_tail(self, key: str, size: int) -> Bytes:
        """The last `size` bytes of an object, or all of a smaller one."""

    @abstractmethod
    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Parts of an object, each from its start up to its stop, cut where the object ends."""

    @abstractmethod
    def write_parts(self, key: str, parts: Iterable[Bytes]) -> None:
        """Replace an object by these parts, which may be made as they are written."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; whether this call wrote it."""

    @abstractmethod
    def names(self, key: str) -> list[str]:
        """The names directly below `key`, sorted; empty when it does not exist."""

    @abstractmethod
    def stamps(self, key: str, name: str) -> dict[str, str]:
        """The stamp of `key/<child>/name` for every child that has it."""

    @abstractmethod
    def walk(self, key: str) -> Iterator[Entry]:
        """Every object below `key`, at any depth, in the order of their names."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object `key` is there."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove `key` and everything below it; nothing happens when it does not exist."""

    @abstractmethod
    def remove_partials(self, older_than: float = 0.0) -> None:
        """Remove what interrupted writes left behind so many seconds ago, or earlier."""

    @abstractmethod
    def settle(self, key: str) -> None:
        """Make durable that the object `key` is there, whoever wrote it."""

    @abstractmethod
    def below(self, key: str) -> Self:
        """The same backend, one level down."""

    # --- what follows ---------------------------------------------------------------------

    def find(self, key: str) -> bytes | None:
        """The bytes of an object, None when it does not exist."""
        try:
            return bytes(self.read(key))
        except FileNotFoundError:
            return None

    def write(self, key: str, *parts: Bytes) -> None:
        """Replace an object."""
        self.write_parts(key, parts)

    def create_group(self, key: str, attributes: Mapping[str, Any]) -> bool:
        """Write a Zarr v3 group's metadata unless it exists; whether it was written.

        The attribute `checksum` is added: the SHA-256 of the file with zeros in its place.
        """
        found = {"checksum": _BLANK, **attributes}
        document = {"zarr_format": 3, "node_type": "group", "attributes": found}
        data = json.dumps(document, indent=1, allow_nan=False).encode()
        data = data.replace(_BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
        return self.create(metadata_key(key), data)

    def attributes(self, key: str) -> dict[str, Any] | None:
        """The attributes of the group `key`, None when it does not exist.

        Raises
        ------
        StoreError : the metadata is not readable JSON of a group, or was altered.
        """
        where = f"{self.location}/{metadata_key(key)}"
        data = self.find(metadata_key(key))
        if data is None:
            return None
        try:
            found = json.loads(data)["attributes"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                where, f"unreadable metadata ({error})", "the JSON of a Zarr v3 group"
            ) from error
        if not isinstance(found, dict):
            raise StoreError(where, "attributes are not a mapping", "a mapping")
        if key and not _is_unaltered(data, found.get("checksum")):
            raise StoreError(where, "altered metadata", "bytes that match their checksum")
        return found


def metadata_key(key: str) -> str:
    """The object that holds the metadata of a group or of an array."""
    return f"{key}/zarr.json" if key else "zarr.json"


def open_objects(location: str | Path) -> Objects:
    """The objects at a path or at a URL such as `s3://bucket/prefix`.

    Raises
    ------
    StoreURLError : the URL is of no kind that can be read, or carries credentials.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        from sweeper.store.remote import RemoteObjects

        return RemoteObjects(text)
    from sweeper.store.local import LocalObjects

    return LocalObjects(Path(text))


def _is_unaltered(data: bytes, checksum: object) -> bool:
    """Whether the bytes of a metadata file are those that its checksum was made of."""
    blank = data.replace(str(checksum).encode(), _BLANK.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == checksum
