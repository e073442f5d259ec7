"""Memory that a training step frees is kept for the next one, where malloc is glibc's.

By itself glibc hands every large block back to the kernel when it is freed, so that each step
faults all its activations in anew: a third of a convolutional network's time on a CPU. Bits do not
depend on it; the process keeps what it once needed.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_MMAP, _LARGEST_TRIM = 1 << 30, (1 << 31) - 1  # bytes

# The same for a process whose training runs in another thread than its first, and which therefore
# needs to be told before it starts: such a thread's own arena has no room for large blocks.
MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST_MMAP),
    "MALLOC_TRIM_THRESHOLD_": str(_LARGEST_TRIM),
}


def keep_freed_memory() -> None:
    """Have this process keep freed blocks below 1 GiB; nothing happens with another malloc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
        mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM)
