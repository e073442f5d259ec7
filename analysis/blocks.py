"""Distances between the snapshots of a selection, a block of the matrix at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.bhattacharyya import pairwise, to_ignorance, to_truth
from sweeper.store import Store, open_store
from sweeper.store.objects import REQUESTS_AT_ONCE

Float64 = npt.NDArray[np.float64]
Opened = Callable[[str], Store]  # the store at a place, opened once for each block

OPERANDS = 1 << 28  # float32 numbers of predictions that are read at once


@dataclass(frozen=True)
class DistanceBlocks:
    """Reads predictions from stores and reduces them; picklable, so that workers can call it.

    Attributes
    ----------
    homes : the folder or URL of the store that has a trial, by trial id.
    rows : the snapshots, as `analysis.select.Selection.rows`.
    split : the samples whose predictions are compared.
    """

    homes: Mapping[str, str]
    rows: pd.DataFrame
    split: str

    def distances(self, rows: slice, columns: slice) -> Float64:
        """D[rows, columns], (n_rows, n_columns) float64 in nats.

        Raises
        ------
        HoleError, StoreError : a snapshot is absent or damaged.
        """
        opened, same = functools.cache(open_store), rows == columns
        D = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
        for samples, weight in self._sample_blocks(opened, rows, columns):
            p = self._log_probs(opened, rows, samples)
            q = None if same else self._log_probs(opened, columns, samples)
            D += weight * pairwise(p, q)
        return D

    def references(self, rows: slice) -> Float64:
        """Distances of truth (first) and ignorance to the rows' snapshots, (2, n_rows) float64."""
        opened, trial_id = functools.cache(open_store), self.rows["trial_id"].iloc[0]
        labels = opened(self.homes[trial_id]).labels(self.split, trial_id)
        found = np.zeros((2, rows.stop - rows.start))
        for samples, weight in self._sample_blocks(opened, rows, rows):
            p = self._log_probs(opened, rows, samples)
            found += weight * np.stack([to_truth(p, labels[samples]), to_ignorance(p)])
        return found

    def _sample_blocks(
        self, opened: Opened, rows: slice, columns: slice
    ) -> Iterator[tuple[slice, float]]:
        """Runs of samples that fit in memory, and the share of all samples that each is."""
        trial_id = self.rows["trial_id"].iloc[0]
        n_samples, n_classes = opened(self.homes[trial_id]).shape(self.split, trial_id)
        width = (rows.stop - rows.start + columns.stop - columns.start) * n_classes
        step = max(1, OPERANDS // width)
        for start in range(0, n_samples, step):
            stop = min(start + step, n_samples)
            yield slice(start, stop), (stop - start) / n_samples

    def _log_probs(self, opened: Opened, rows: slice, samples: slice) -> npt.NDArray[np.float32]:
        def read(trial_id: str, group: pd.DataFrame) -> npt.NDArray[np.float32]:
            snapshots = group["snapshot"].to_numpy()
            return opened(self.homes[trial_id]).log_probs(trial_id, self.split, snapshots, samples)

        groups = self.rows.iloc[rows].groupby("trial_id", sort=False)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return np.concatenate(list(pool.map(read, *zip(*groups, strict=True))))
