"""zarr's local store, but durable: what `analysis` writes its matrices with."""

from __future__ import annotations

from asyncio import to_thread
from typing import Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from sweeper.durable import write_atomically, write_exclusively


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
