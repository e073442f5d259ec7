"""Files that are there whole or not at all, and stay there after a power loss."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

# `SWEEPER_CRASH_AT=snapshot:3` kills this process right after its third `snapshot` step.
# Crash tests set it; nothing else does.
_CRASH_AT = "SWEEPER_CRASH_AT"
_passed: Counter[str] = Counter()

PARTIAL = ".partial"

# Folders whose names are durable, as far as this process knows.
_settled: set[Path] = set()
_MAX_SETTLED = 10_000
# How the system answers who may not read a folder, or wants to sync one that cannot be written.
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP)

Bytes = bytes | bytearray | memoryview


def write_atomically(path: Path, *parts: Bytes) -> None:
    """Replace `path` by the parts, one after another, as `write_parts` does."""
    write_parts(path, parts)


def write_parts(path: Path, parts: Iterable[Bytes]) -> None:
    """Replace `path` by the parts: temporary file, fsync, rename, fsync of the folder.

    A reader sees the old file or the new one, never a mixture; a crash can leave behind a file
    that ends in `.partial`, which `remove_partials` removes. Parts may be made while they are
    written: only one of them is in memory at a time.
    """
    partial = _write_partial(path, parts)
    try:
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_exclusively(path: Path, data: Bytes) -> bool:
    """Write `path` as `write_atomically` does, unless it exists; whether it was written.

    Of several processes that try at once, exactly one succeeds (a hard link is exclusive).
    """
    partial = _write_partial(path, (data,))
    try:
        os.link(partial, path)
        return True
    except FileExistsError:
        # Over NFS the answer to our own link may be lost, and the link asked for once more.
        return partial.stat().st_nlink > 1
    finally:
        partial.unlink(missing_ok=True)
        sync_folder(path.parent)  # when it was lost, too: the winner may not have come to it


def _write_partial(path: Path, parts: Iterable[Bytes]) -> Path:
    """A durable temporary file beside `path`; gone if writing it fails."""
    folder = path.parent.absolute()
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    if folder not in _settled:
        _make_folder(folder)
    try:
        file = partial.open("wb", buffering=0)
    except FileNotFoundError:  # it was removed since
        _make_folder(folder)
        file = partial.open("wb", buffering=0)
    try:
        with file:
            for part in parts:
                write_all(file, part)
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the system names none where a write fails
        raise
    return partial


def write_all(file: FileIO, data: Bytes) -> None:
    """Unbuffered writes may be short: of more than 2 GiB, or when the disk is nearly full."""
    left = memoryview(data).cast("B")
    while left:
        left = left[file.write(left) :]


def _make_folder(folder: Path) -> None:
    """`mkdir -p`, each name durable.

    That of a folder that is there, too: whoever made it may have died before it was.
    """
    if folder in _settled and folder.is_dir():
        return
    if folder != folder.parent:
        _make_folder(folder.parent)
        is_ours = not folder.is_dir()
        if is_ours:
            folder.mkdir(exist_ok=True)
        try:
            sync_folder(folder.parent)
        except OSError as error:
            if is_ours or error.errno not in _NOT_OURS:
                raise
    if len(_settled) >= _MAX_SETTLED:
        _settled.clear()
    _settled.add(folder)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path, older_than: float = 0.0) -> list[Path]:
    """Remove the temporary files that a crash left anywhere below `folder`.

    Parameters
    ----------
    older_than : seconds since they were last written to; younger ones may be somebody's.
    """
    removed = []
    for place, _, names in os.walk(folder):  # which ignores what vanishes meanwhile
        for path in (Path(place, name) for name in names if name.endswith(PARTIAL)):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    removed.append(path)
    return sorted(removed)


def crash_point(step: str) -> None:
    """Mark a durability step, at which a crash test may kill this process."""
    wanted, _, count = os.environ.get(_CRASH_AT, "").partition(":")
    if wanted != step:
        return
    _passed[step] += 1
    if _passed[step] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
