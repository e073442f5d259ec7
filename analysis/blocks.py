"""Distances between the snapshots of a selection, a block of the matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.bhattacharyya import pairwise, to_ignorance, to_truth
from sweeper.store import Store, open_store

Float64 = npt.NDArray[np.float64]

OPERANDS = 1 << 28  # float32 numbers of predictions that are read at once


@dataclass(frozen=True)
class DistanceBlocks:
    """Reads predictions from a store and reduces them; picklable, so that workers can call it.

    Attributes
    ----------
    store : the store's folder or URL.
    rows : the snapshots, as `analysis.select.Selection.rows`.
    split : the samples whose predictions are compared.
    """

    store: str
    rows: pd.DataFrame
    split: str

    def distances(self, rows: slice, columns: slice) -> Float64:
        """D[rows, columns], (n_rows, n_columns) float64 in nats.

        Raises
        ------
        HoleError, StoreError : a snapshot is absent or damaged.
        """
        store, same = open_store(self.store), rows == columns
        D = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
        for samples, weight in self._sample_blocks(store, rows, columns):
            p = self._log_probs(store, rows, samples)
            q = None if same else self._log_probs(store, columns, samples)
            D += weight * pairwise(p, q)
        return D

    def references(self, rows: slice) -> Float64:
        """Distances of truth (first) and ignorance to the rows' snapshots, (2, n_rows) float64."""
        store = open_store(self.store)
        labels = store.labels(self.split, self.rows["trial_id"].iloc[0])
        found = np.zeros((2, rows.stop - rows.start))
        for samples, weight in self._sample_blocks(store, rows, rows):
            p = self._log_probs(store, rows, samples)
            found += weight * np.stack([to_truth(p, labels[samples]), to_ignorance(p)])
        return found

    def _sample_blocks(
        self, store: Store, rows: slice, columns: slice
    ) -> Iterator[tuple[slice, float]]:
        """Runs of samples that fit in memory, and the share of all samples that each is."""
        trial_id = self.rows["trial_id"].iloc[0]
        n_samples = len(store.labels(self.split, trial_id))
        width = (rows.stop - rows.start + columns.stop - columns.start) * len(
            store.class_names(trial_id)
        )
        step = max(1, OPERANDS // width)
        for start in range(0, n_samples, step):
            stop = min(start + step, n_samples)
            yield slice(start, stop), (stop - start) / n_samples

    def _log_probs(self, store: Store, rows: slice, samples: slice) -> npt.NDArray[np.float32]:
        parts = [
            store.log_probs(str(trial_id), self.split, group["snapshot"].to_numpy(), samples)
            for trial_id, group in self.rows.iloc[rows].groupby("trial_id", sort=False)
        ]
        return np.concatenate(parts)
