"""The objects of a store on a local or network file system."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sweeper.durable import Bytes, remove_partials, sync_folder, write_exclusively, write_parts
from sweeper.store.objects import Entry, Objects

_LARGE = 4 << 20  # bytes, from which on NumPy asks for huge pages: they cost few page faults


class LocalObjects(Objects):
    """Files below one folder (see `Objects`).

    A file is written under another name, fsynced, renamed, and its folder fsynced; `create` links
    instead of renaming, which is exclusive.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def read(self, key: str) -> Bytes:
        """The bytes of an object."""
        with _absent_if_no_folder(), (self.root / key).open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size < _LARGE:
                return file.readall()
            return np.fromfile(file, np.uint8).data

    def read_tail(self, key: str, size: int) -> Bytes:
        """The last `size` bytes of an object, or all of a smaller one."""
        with _absent_if_no_folder(), (self.root / key).open("rb", buffering=0) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Parts of an object, each from its start up to its stop, cut where the object ends."""
        with _absent_if_no_folder(), (self.root / key).open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # otherwise Linux reads ahead what nobody asked for
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    def write_parts(self, key: str, parts: Iterable[Bytes]) -> None:
        """Replace an object by these parts, which may be made as they are written."""
        write_parts(self.root / key, parts)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; whether this call wrote it."""
        return write_exclusively(self.root / key, data)

    def names(self, key: str) -> list[str]:
        """The names directly below `key`, sorted; empty when it does not exist."""
        try:
            return sorted(os.listdir(self.root / key))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stamps(self, key: str, name: str) -> dict[str, str]:
        """The stamp of `key/<child>/name` for every child that has it."""
        found, folder = {}, self.root / key
        for child in self.names(key):
            try:
                found[child] = _stamp(os.stat(f"{folder}/{child}/{name}"))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def walk(self, key: str) -> Iterator[Entry]:
        """Every object below `key`, at any depth, in the order of their names."""
        folder, found = self.root / key, self.names(key)
        names = [f"{name}/" if (folder / name).is_dir() else name for name in found]
        for name in sorted(names):
            inner = f"{key}/{name}" if key else name
            if name.endswith("/"):
                yield from self.walk(inner.rstrip("/"))
                continue
            try:
                status = (self.root / inner).stat()
            except FileNotFoundError:  # it was just removed, or renamed into place
                continue
            yield Entry(inner, status.st_size, _stamp(status))

    def exists(self, key: str) -> bool:
        """Whether the object `key` is there."""
        try:
            return stat.S_ISREG(os.stat(self.root / key).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, key: str) -> None:
        """Remove `key` and everything below it; nothing happens when it does not exist."""
        folder = self.root / key
        if not folder.is_dir():
            with suppress(FileNotFoundError, NotADirectoryError):
                folder.unlink()
                sync_folder(folder.parent)
            return
        while folder.is_dir():
            try:
                shutil.rmtree(folder)
            except OSError as error:  # another process removes it too, or writes into it, late
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        sync_folder(folder.parent)

    def remove_partials(self, older_than: float = 0.0) -> None:
        """Remove what interrupted writes left behind: files that end in `.partial`."""
        remove_partials(self.root, older_than)

    def settle(self, key: str) -> None:
        """Make durable that the object `key` is there, whoever wrote it."""
        sync_folder((self.root / key).parent)

    def below(self, key: str) -> LocalObjects:
        """The same backend, one level down."""
        return LocalObjects(self.root / key)


def _stamp(status: os.stat_result) -> str:
    """Another content has another one; a copy that keeps times has the same."""
    return f"{status.st_mtime_ns}-{status.st_size}"


@contextmanager
def _absent_if_no_folder() -> Iterator[None]:
    """A file where a folder is expected: then what would be below it is absent."""
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
