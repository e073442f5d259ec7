"""The objects of a store on a local or network file system, every write durable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from asyncio import to_thread
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from sweeper.durable import sync_folder, write_atomically, write_exclusively
from sweeper.errors import StoreError

_BLANK = "0" * 64  # stands where a metadata file's own checksum will be


class DurableStore(LocalStore):
    """zarr's `LocalStore`, but a write that returned survives a power loss.

    zarr's own renames a temporary file without fsync, so that after a crash a chunk can be
    present and empty.
    """

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one object atomically and durably."""
        self._check_writable()
        write_atomically(self.root / key, value.as_buffer_like())

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object atomically and durably."""
        await to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object atomically and durably unless it is there."""
        self._check_writable()
        await to_thread(write_exclusively, self.root / key, value.as_buffer_like())

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same folder, opened for reading only or for both."""
        return type(self)(self.root, read_only=read_only)


class LocalObjects:
    """Named objects below one folder: what the store needs besides arrays.

    Names are relative, with `/`. Safe for many readers and writers: every object is replaced
    whole, and `create` lets exactly one of several writers win.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def array_store(self, key: str, *, read_only: bool) -> DurableStore:
        """The folder of one array as a zarr store.

        Rooted at the array, because zarr gives an array's parents group metadata of their own,
        and that of a trial must appear only when the trial is complete.
        """
        return DurableStore(self.root / key, read_only=read_only)

    def create_group(self, key: str, attributes: Mapping[str, Any]) -> bool:
        """Write a Zarr v3 group's metadata unless it exists; whether it was written.

        The attribute `checksum` is added: the SHA-256 of the file with zeros in its place.
        """
        found = {"checksum": _BLANK, **attributes}
        document = {"zarr_format": 3, "node_type": "group", "attributes": found}
        data = json.dumps(document, indent=1, allow_nan=False).encode()
        data = data.replace(_BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
        return write_exclusively(self.root / key / "zarr.json", data)

    def attributes(self, key: str) -> dict[str, Any] | None:
        """The attributes of the group `key`, None when it does not exist.

        Raises
        ------
        StoreError : the metadata is not readable JSON of a group, or was altered.
        """
        path = self.root / key / "zarr.json"
        try:
            data = path.read_bytes()
            found = json.loads(data)["attributes"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                str(path), f"unreadable metadata ({error})", "the JSON of a Zarr v3 group"
            ) from error
        if not isinstance(found, dict):
            raise StoreError(str(path), "attributes are not a mapping", "a mapping")
        if key and not _is_unaltered(data, found.get("checksum")):
            raise StoreError(str(path), "altered metadata", "bytes that match their checksum")
        return found

    def names(self, key: str) -> list[str]:
        """The names directly below `key`, sorted; empty when it does not exist."""
        try:
            with os.scandir(self.root / key) as entries:
                return sorted(item.name for item in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, key: str) -> bool:
        """Whether the object `key` is there."""
        return (self.root / key).exists()

    def delete(self, key: str) -> None:
        """Remove `key` and everything below it; nothing happens when it does not exist."""
        folder = self.root / key
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            return
        while folder.is_dir():
            try:
                shutil.rmtree(folder)
            except OSError as error:  # another process removes it too, or writes into it, late
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        sync_folder(folder.parent)


def _is_unaltered(data: bytes, checksum: object) -> bool:
    """Whether the bytes of a metadata file are those that its checksum was made of."""
    blank = data.replace(str(checksum).encode(), _BLANK.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == checksum
