"""A machine's limits: processors, memory, open files, shared memory, temporary folders."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sweeper.doctor.finding import Finding, passed, warned
from sweeper.processors import free_memory, n_cores
from sweeper.room import free_room

SLOT_BYTES = 1 << 30  # that a slot needs, about, for PyTorch, a small data set and a network
OPEN_FILES = 4096
SHARED_BYTES = 256 << 20  # Ray's own store of objects takes half of it
TEMPORARY_BYTES, TEMPORARY_FILES = 1 << 30, 10_000

_SHARED = Path("/dev/shm")


def check_memory(threads: int) -> Iterator[Finding]:
    """Processors that this process may use, and free memory for the slots that they make."""
    cores = n_cores()
    n_slots = max(1, cores // threads)
    free = free_memory()
    if free is None:
        yield passed("memory", f"{cores} processors")
        return
    text = f"{size(free)} free, {cores} processors: {size(free / n_slots)} a slot"
    if free < n_slots * SLOT_BYTES:
        yield warned("memory", text, "launch with fewer `--slots`, or ask for more memory")
    else:
        yield passed("memory", text)


def check_open_files() -> Iterator[Finding]:
    """How many files this process may have open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        yield passed("open files", "as many as one likes")
    elif limit < OPEN_FILES:
        may = f" (up to {most} here)" if 0 < most < 65536 else ""
        cure = f"`ulimit -n 65536`{may} before Ray or sweeper is started"
        yield warned("open files", f"{limit:,} at a time", cure)
    else:
        yield passed("open files", f"{limit:,} at a time")


def check_shared_memory() -> Iterator[Finding]:
    """Room in /dev/shm, where Ray keeps what its processes share."""
    if not _SHARED.is_dir():
        yield passed("shared memory", f"no {_SHARED} on this system")
        return
    free = free_room(_SHARED).n_bytes or 0
    text = f"{size(free)} free in {_SHARED}"
    if free < SHARED_BYTES:
        cure = "`docker run --shm-size=1g`; on Kubernetes an emptyDir of `medium: Memory` there"
        yield warned("shared memory", text, cure)
    else:
        yield passed("shared memory", text)


def check_temporary() -> Iterator[Finding]:
    """Room in the folder for temporary files."""
    folder = tempfile.gettempdir()
    free = free_room(Path(folder))
    text = f"{size(free.n_bytes or 0)} free in {folder}"
    n_files = free.n_files
    if n_files is not None and n_files < TEMPORARY_FILES:
        text += f", {n_files:,} files"
    elif (free.n_bytes or 0) >= TEMPORARY_BYTES:
        yield passed("temporary files", text)
        return
    yield warned("temporary files", text, "empty it, or set TMPDIR to a folder with room")


def size(n_bytes: float) -> str:
    """Bytes as a measurement, in MiB or GiB."""
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:.{1 if n_bytes < 10 * 2**20 else 0}f} MiB"
    return f"{n_bytes / 2**30:.1f} GiB"
