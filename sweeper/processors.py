"""The processors and the memory that this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not every system can say
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that may still be used, within the limit of a container or a job; None if untold."""
    there = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    free = [there * 1024] if there is not None else []
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip()
        for folder in (_GROUPS, _GROUPS / own.strip("/")):
            with contextlib.suppress(OSError, ValueError):  # `max` is no number: no limit
                limit = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                cached = _fields(folder / "memory.stat").get("inactive_file", 0)
                free.append(max(0, limit - used + cached))
    return min(free, default=None)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number on each line."""
    with contextlib.suppress(OSError):
        rows = (line.split() for line in path.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    return {}


def resident_memory() -> int:
    """Bytes that this process takes now; 0 if untold."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
