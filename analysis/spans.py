"""Which rows (or columns) of a matrix an index means."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from sweeper.errors import AnalysisError


def span_of(index: slice | SupportsIndex, size: int) -> slice:
    """The rows that an index of `D` means, within its `size` rows.

    Raises
    ------
    AnalysisError : it is neither a slice of step 1 nor an integer within `size`.
    """
    try:
        if not isinstance(index, slice):
            return _row(operator.index(index), size)
        start, stop, step = index.indices(size)
    except (TypeError, ValueError):  # such as a list, a float, a step of 0
        raise AnalysisError("D", f"index `{index}`", "a slice or an integer") from None
    if step != 1:
        raise AnalysisError("D", f"a step of `{step}`", "slices of step 1")
    return slice(start, max(start, stop))


def _row(index: int, size: int) -> slice:
    if not -size <= index < size:
        raise AnalysisError("D", f"index `{index}`", f"0 to {size - 1}")
    return slice(index % size, index % size + 1)


def shifted(span: slice, start: int) -> slice:
    """The span, counted from `start`."""
    return slice(span.start - start, span.stop - start)
