"""Which snapshots or samples of an axis are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeper.errors import MissingStoreError
from sweeper.store.schema import Array

Selection = slice | int | Sequence[int] | Array


def indices_of(where: str, axis: str, chosen: Selection, size: int) -> slice | Array:
    """A slice or checked indices of an axis; an index alone keeps the axis.

    Raises
    ------
    MissingStoreError : an index is not of the axis, or not whole.
    """
    if isinstance(chosen, slice):
        return slice(*chosen.indices(size)) if (chosen.step or 1) > 0 else np.arange(size)[chosen]
    indices = np.atleast_1d(np.asarray(chosen))
    if indices.dtype == np.bool_ and indices.size == size:
        indices = np.flatnonzero(indices)
    whole = indices.size == 0 or np.issubdtype(indices.dtype, np.integer)
    if not (whole and ((indices >= -size) & (indices < size)).all()):
        raise MissingStoreError(where, f"{axis} {indices.tolist()[:5]}", f"0 to {size - 1}")
    return np.asarray(indices % size if size else indices, dtype=np.intp)
