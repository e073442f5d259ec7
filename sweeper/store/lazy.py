"""A selection as an `xarray.Dataset` that reads what is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sweeper.errors import MissingStoreError
from sweeper.store.schema import Array
from sweeper.store.stream import Run, one_sample_set, runs_of

if TYPE_CHECKING:
    import xarray as xr

    from sweeper.store.reader import Store

_DIMENSIONS = ("snapshot", "sample", "class")


def dataset(store: Store, selection: Any, split: str) -> xr.Dataset:
    """See `Store.to_xarray`."""
    try:
        import xarray as xr
        from xarray.backends import BackendArray
        from xarray.core import indexing
    except ImportError as error:
        hint = "`pip install xarray`"
        raise MissingStoreError("to_xarray", "xarray is not installed", hint=hint) from error

    runs = runs_of(store, selection)
    one_sample_set(store, runs, split)
    n_samples, n_classes = store.shape(split, runs[0].trial_id)

    class Predictions(BackendArray):  # type: ignore[misc]
        """What xarray asks for its values, by outer indices of the three axes."""

        shape = (runs[-1].rows.stop, n_samples, n_classes)
        dtype = np.dtype(np.float32)

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

        def _read(self, key: tuple[Any, ...]) -> Array:
            return _read(store, runs, split, key)

    values = indexing.LazilyIndexedArray(Predictions())
    first = runs[0].trial_id
    by_snapshot = {name: ("snapshot", column) for name, column in _columns(store, runs).items()}
    return xr.Dataset(
        {"log_probs": (_DIMENSIONS, values)},
        coords={
            **by_snapshot,
            "sample_id": ("sample", store.sample_ids(split, first)),
            "label": ("sample", store.labels(split, first)),
            "class": list(store.class_names(first)),
        },
        attrs={"store": store.location, "split": split},
    )


def _columns(store: Store, runs: list[Run]) -> dict[str, Array]:
    """What is known of every selected snapshot: its trial, its index, its moment."""
    import pandas as pd

    tables = []
    for run in runs:
        table = store.snapshots(run.trial_id).iloc[run.snapshots]
        tables.append(table.rename(columns={"snapshot": "index"}).assign(trial_id=run.trial_id))
    joined = pd.concat(tables, ignore_index=True)
    return {str(name): joined[name].to_numpy() for name in joined}


def _read(store: Store, runs: list[Run], split: str, key: tuple[Any, ...]) -> Array:
    """Rows, samples and classes by outer indices; an integer drops its axis."""
    n_samples, n_classes = store.shape(split, runs[0].trial_id)
    axes = (runs[-1].rows.stop, n_samples, n_classes)
    rows, samples, classes = (
        np.atleast_1d(np.arange(n)[chosen]) for n, chosen in zip(axes, key, strict=True)
    )
    found = np.empty((len(rows), len(samples), n_classes), np.float32)
    for run in runs:
        places = np.flatnonzero((rows >= run.rows.start) & (rows < run.rows.stop))
        if len(places):
            snapshots = run.snapshots[rows[places] - run.start]
            found[places] = store.log_probs(run.trial_id, split, snapshots, samples)
    dropped = tuple(0 if isinstance(k, (int, np.integer)) else slice(None) for k in key)
    return found[:, :, classes][dropped]
