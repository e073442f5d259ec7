"""Files that are there whole or not at all, and stay there after a power loss."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# `SWEEPER_CRASH_AT=snapshot:3` kills this process right after its third `snapshot` step.
# Crash tests set it; nothing else does.
_CRASH_AT = "SWEEPER_CRASH_AT"
_passed: Counter[str] = Counter()

PARTIAL = ".partial"

Bytes = bytes | bytearray | memoryview


def write_atomically(path: Path, data: Bytes) -> None:
    """Replace `path` by `data`: temporary file, fsync, rename, fsync of the folder.

    A reader sees the old file or the new one, never a mixture; a crash can leave behind a file
    that ends in `.partial`, which `remove_partials` removes.
    """
    with _written_partial(path, data) as partial:
        partial.replace(path)
    sync_folder(path.parent)


def write_exclusively(path: Path, data: Bytes) -> bool:
    """Write `path` as `write_atomically` does, unless it exists; whether it was written.

    Of several processes that try at once, exactly one succeeds (a hard link is exclusive).
    """
    with _written_partial(path, data) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


@contextmanager
def _written_partial(path: Path, data: Bytes) -> Iterator[Path]:
    """A durable temporary file beside `path` that is gone afterwards."""
    _make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """`mkdir -p`, each new name durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> list[Path]:
    """Remove the temporary files that a crash left anywhere below `folder`."""
    found = sorted(folder.rglob(f"*{PARTIAL}"))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def crash_point(step: str) -> None:
    """Mark a durability step, at which a crash test may kill this process."""
    wanted, _, count = os.environ.get(_CRASH_AT, "").partition(":")
    if wanted != step:
        return
    _passed[step] += 1
    if _passed[step] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
