"""Memory: how much may be used, in words and numbers."""

from __future__ import annotations

import re

from sweeper.errors import AnalysisError
from sweeper.processors import free_memory, resident_memory

_BESIDE = 128 << 20
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS)})")


def parse_size(text: str, where: str) -> int:
    """Bytes, of a text such as `8GiB` or `512 MiB`.

    Raises
    ------
    AnalysisError : it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise AnalysisError(
            where, f"`{text}`", f"a number and one of {', '.join(_UNITS)}", "for example `8GiB`"
        )
    return int(float(found[1]) * _UNITS[found[2]])


def budget(memory: int | None) -> int:
    """Bytes that computing may take, of those that this process may: half of what is free.

    Of a number that is given, what Python and its libraries have taken is not there any more, and
    some is left for what threads decode and what is imported later.
    """
    if memory is None:
        return (free_memory() or 4 << 30) // 2
    return memory - resident_memory() - _BESIDE


def size_text(n_bytes: int) -> str:
    """Bytes in the largest unit of which there is one."""
    unit = next((u for u in reversed(_UNITS) if n_bytes >= _UNITS[u]), "B")
    value = n_bytes / _UNITS[unit]
    return f"{value:.1f} {unit}" if value % 1 else f"{value:.0f} {unit}"
