"""Files that are there whole or not at all, and stay there after a power loss."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from pathlib import Path

# `SWEEPER_CRASH_AT=snapshot:3` kills this process right after its third `snapshot` step.
# Crash tests set it; nothing else does.
_CRASH_AT = "SWEEPER_CRASH_AT"
_passed: Counter[str] = Counter()

PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`: temporary file, fsync, rename, fsync of the folder.

    A reader sees the old file or the new one, never a mixture; a crash can leave behind a file
    that ends in `.partial`, which `sweep_partials` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partials(folder: Path) -> list[Path]:
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
