"""Read many trials one after another, with threads that read ahead."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sweeper.errors import MissingStoreError
from sweeper.store.objects import REQUESTS_AT_ONCE
from sweeper.store.samples import only_set
from sweeper.store.schema import Array, blocks

if TYPE_CHECKING:
    import pandas as pd

    from sweeper.store.predictions import DType
    from sweeper.store.reader import Store

Rows: TypeAlias = "Sequence[str] | pd.DataFrame"

READ_BYTES = 256 << 20  # of one trial's predictions that are in memory at once


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a selection that are of one trial."""

    trial_id: str
    start: int
    snapshots: Array

    @property
    def rows(self) -> slice:
        """Their places in the selection."""
        return slice(self.start, self.start + len(self.snapshots))


def runs_of(store: Store, selection: Any) -> list[Run]:
    """The selection, trial by trial.

    Raises
    ------
    MissingStoreError : a trial is not in the store, or nothing is selected.
    """
    if selection is None:
        selection = store.complete_ids()
    if isinstance(selection, str):
        raise TypeError("a selection is a list of trial ids, or a table")
    if hasattr(selection, "columns"):
        ids, snapshots = (selection[name].to_numpy() for name in ("trial_id", "snapshot"))
        edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1), len(ids)] if len(ids) else [0]
        spans = itertools.pairwise(edges)
        runs = [Run(str(ids[a]), int(a), snapshots[a:b]) for a, b in spans]
    else:
        runs, start = [], 0
        for trial_id in selection:
            runs.append(Run(trial_id, start, np.arange(store.n_snapshots(trial_id))))
            start += len(runs[-1].snapshots)
    if not runs:
        raise MissingStoreError(store.location, "no trials selected", "at least one")
    return runs


def one_sample_set(store: Store, runs: Sequence[Run], split: str) -> str:
    """The set of samples that all these predictions are of.

    Raises
    ------
    StoreError : they are of several.
    """
    pairs = ((store.sample_set(split, run.trial_id), run.trial_id) for run in runs)
    return only_set(store.location, f"the selected {split} predictions", pairs)


def blocks_of(
    store: Store, selection: Any, samples_per_block: int, split: str, dtype: DType
) -> Iterator[tuple[slice, Array]]:
    """See `Store.iter_blocks`."""
    if samples_per_block < 1:
        raise MissingStoreError("samples_per_block", f"{samples_per_block}", "at least 1")
    runs = runs_of(store, selection)
    one_sample_set(store, runs, split)
    n_samples, n_classes = store.shape(split, runs[0].trial_id)
    n_rows = runs[-1].rows.stop

    def read(run: Run, samples: slice, out: Array) -> None:
        out[run.rows] = store.log_probs(run.trial_id, split, run.snapshots, samples, dtype=dtype)

    with _pool(store) as pool:
        started: deque[tuple[slice, Array, list[Future[None]]]] = deque()
        for samples in [*blocks(n_samples, samples_per_block), None]:
            if samples is not None:
                out = np.empty((n_rows, samples.stop - samples.start, n_classes), dtype)
                parts = [pool.submit(read, run, samples, out) for run in runs]
                started.append((samples, out, parts))
            while len(started) == 2 or (started and samples is None):
                which, values, parts = started.popleft()
                for part in parts:
                    part.result()
                yield which, values


def snapshots_of(
    store: Store, selection: Any, split: str, dtype: DType
) -> Iterator[tuple[str, int, Array]]:
    """See `Store.iter_snapshots`."""
    parts = [part for run in runs_of(store, selection) for part in _in_memory(store, run, split)]

    def read(part: Run) -> Array:
        return store.log_probs(part.trial_id, split, part.snapshots, dtype=dtype)

    with _pool(store) as pool:
        for part, values in _ahead(pool, read, parts):
            for snapshot, log_probs in zip(part.snapshots, values, strict=True):
                yield part.trial_id, int(snapshot), log_probs


def _in_memory(store: Store, run: Run, split: str) -> Iterator[Run]:
    """Parts of a trial's snapshots that fit into `READ_BYTES` as float32."""
    n_bytes = 4 * int(np.prod(store.shape(split, run.trial_id)))
    for part in blocks(len(run.snapshots), max(1, READ_BYTES // n_bytes)):
        yield Run(run.trial_id, run.start + part.start, run.snapshots[part])


def _ahead(
    pool: ThreadPoolExecutor, read: Any, parts: Iterable[Run]
) -> Iterator[tuple[Run, Array]]:
    """Each part and what is read of it, while the next two are being read."""
    started: deque[tuple[Run, Future[Array]]] = deque()
    for part in parts:
        started.append((part, pool.submit(read, part)))
        if len(started) > 2:
            first, future = started.popleft()
            yield first, future.result()
    for part, future in started:
        yield part, future.result()


@contextmanager
def _pool(store: Store) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the iteration, finished or not."""
    is_remote = "://" in store.location
    threads = REQUESTS_AT_ONCE if is_remote else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
