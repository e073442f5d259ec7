"""Memory of the process, kept for the next step; memory of the device, shared and measured.

By itself glibc hands every large block back to the kernel when it is freed, so that each step
faults all its activations in anew: a third of a convolutional network's time on a CPU. Bits do not
depend on it; the process keeps what it once needed. This is where malloc is glibc's.
"""

from __future__ import annotations

import ctypes
import os

import torch

from sweeper.attempt import CONTEXT_BYTES

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_MMAP, _LARGEST_TRIM = 1 << 30, (1 << 31) - 1  # bytes

# The same for a process that is told before it starts, for its other threads' arenas, too: these
# have no room for large blocks.
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


def begin_share(device: torch.device, per_gpu: int) -> None:
    """Hold this process to its share of a GPU's memory, and measure from here what it uses.

    With a limit a trial that needs more than its share runs out of memory itself, and not the
    trials beside it. On a CPU nothing is done.
    """
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    there = torch.cuda.get_device_properties(device).total_memory
    share = memory_share(per_gpu, there) if per_gpu > 1 else 1.0
    torch.cuda.set_per_process_memory_fraction(share, device)


def memory_share(per_gpu: int, device_bytes: int) -> float:
    """The fraction of a GPU's memory that one of so many processes may use for tensors."""
    return max(1 / per_gpu - CONTEXT_BYTES / device_bytes, 0.5 / per_gpu)


def peak_memory(device: torch.device) -> tuple[int, int]:
    """The most bytes that tensors held since `begin_share`, and those of the device; 0 on a CPU."""
    if device.type != "cuda":
        return 0, 0
    there = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_allocated(device), there


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU as it is called on its machine and not as this process sees it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    if device.type != "cuda" or not visible[0] or index >= len(visible):
        return str(device)
    return f"cuda:{visible[index].strip()}"
