"""The processors that this process may use."""

from __future__ import annotations

import os


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not every system can say
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
