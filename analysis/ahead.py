"""Predictions run by run: while one run of samples is worked on, threads read the next."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from analysis.bhattacharyya import worst_row
from analysis.tiles import Array
from sweeper.errors import StoreError
from sweeper.processors import n_cores
from sweeper.store import Store, open_store
from sweeper.store.arrays import as_run
from sweeper.store.objects import REQUESTS_AT_ONCE
from sweeper.store.schema import sealed_layout


@dataclass(frozen=True)
class Span:
    """What is read of a run of samples, and what is worked on: the last few wait for the next.

    Attributes
    ----------
    first : the first sample that is worked on, left over from the run before if it is before
        `start`.
    start, stop : the samples that are read.
    last : the end of those that are worked on.
    """

    first: int
    start: int
    stop: int
    last: int


def spans(n_samples: int, run: int, step: int, first: int = 0) -> Iterator[Span]:
    """Runs that are read as the store has them, and worked on in multiples of `step`.

    From where one of them ended, the others are as they would have been.
    """
    start = first
    while start < n_samples:
        stop = min((start // run + 1) * run, n_samples)
        last = stop if stop == n_samples else stop // step * step
        yield Span(first, start, stop, last)
        first, start = last, stop


def held(n_rows: int, shape: tuple[int, int], run: int, step: int) -> tuple[int, int]:
    """What `Rows.runs` has in memory, at most: samples of each row at once, and bytes of all rows.

    One run is worked on while one is read, each with what the run before left over.

    Parameters
    ----------
    shape, run, step : as `Rows.runs` is given them.
    """
    n_samples, n_classes = shape
    n_run = min(run + step, n_samples)
    return n_run, 2 * n_rows * n_run * n_classes * 2


@dataclass(frozen=True)
class Rows:
    """Snapshots of some trials in a certain order.

    Attributes
    ----------
    homes : the folder or URL of the store that has a trial, by trial id.
    table : one row a snapshot, with the columns `trial_id` and `snapshot`.
    split : the samples whose predictions are read.
    """

    homes: Mapping[str, str]
    table: pd.DataFrame
    split: str

    def runs(
        self, shape: tuple[int, int], run: int, step: int, first: int = 0
    ) -> Generator[tuple[slice, torch.Tensor], None, None]:
        """All samples from one on, a run at a time, each read once.

        Parameters
        ----------
        shape : (n_samples, n_classes).
        run : samples that are read at once.
        step : samples of which what is given is a multiple, but for the last.
        first : a multiple of `step`, less than n_samples.

        Yields
        ------
        Which samples, and their (n_rows, n_run, n_classes) float16 natural-log probabilities as
        stored, valid until the next run is asked for.

        Raises
        ------
        HoleError, StoreError : a snapshot is absent or damaged.
        """
        stores = {home: open_store(home) for home in self._homes()}
        n_samples, n_classes = shape
        todo = list(spans(n_samples, run, step, first))
        width = max(span.stop - span.first for span in todo)
        # Memory that the system cannot move is copied to a GPU ten times as fast.
        pinned = torch.cuda.is_available()
        shape_of_buffer = (len(self.table), width, n_classes)
        buffers = [
            torch.empty(shape_of_buffer, dtype=torch.float16, pin_memory=pinned) for _ in todo[:2]
        ]
        threads = REQUESTS_AT_ONCE if any("://" in home for home in stores) else n_cores()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        trials = [(stores[self.homes[trial[0]]], *trial) for trial in self._trials()]

        def start(span: Span, into: torch.Tensor) -> list[Future[None]]:
            return [pool.submit(self._read, *trial, span, into) for trial in trials]

        try:
            reading = start(todo[0], buffers[0])
            for number, span in enumerate(todo):
                for part in reading:
                    part.result()
                here, other = buffers[number % 2], buffers[(number + 1) % len(buffers)]
                if span.first < span.start:
                    before = todo[number - 1]
                    here[:, : span.start - span.first] = other[
                        :, before.last - before.first : before.stop - before.first
                    ]
                if number + 1 < len(todo):
                    reading = start(todo[number + 1], other)
                if span.first < span.last:
                    yield slice(span.first, span.last), here[:, : span.last - span.first]
        finally:
            pool.shutdown(cancel_futures=True)

    def chunks(self, shape: tuple[int, int]) -> dict[str, int]:
        """Samples of each trial that are decoded together, with all its snapshots."""
        n_snapshots = self.table.groupby("trial_id").size()
        return {str(t): sealed_layout((int(n), *shape))[0] for t, n in n_snapshots.items()}

    def _homes(self) -> set[str]:
        return {self.homes[str(trial_id)] for trial_id in self.table["trial_id"].unique()}

    def _trials(self) -> Iterator[tuple[str, Array, slice | Array]]:
        """Each trial, its snapshots, and where in the order they are."""
        ids, snapshots = (self.table[name].to_numpy() for name in ("trial_id", "snapshot"))
        codes, names = pd.factorize(ids)
        order = np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order])) + 1
        for places in np.split(order, edges):
            yield str(names[codes[places[0]]]), snapshots[places], as_run(places)

    def _read(
        self,
        store: Store,
        trial_id: str,
        snapshots: Array,
        places: slice | Array,
        span: Span,
        into: torch.Tensor,
    ) -> None:
        samples = slice(span.start, span.stop)
        found = store.log_probs(trial_id, self.split, snapshots, samples, dtype="float16")
        into.numpy()[places, span.start - span.first : span.stop - span.first] = found


def no_distribution(log_p: torch.Tensor, samples: slice, table: pd.DataFrame) -> StoreError:
    """What is wrong with a run of samples that a kernel refused.

    Parameters
    ----------
    log_p : (n_rows, n_run, n_classes), of the rows of `table`, which is like that of `Rows`.
    samples : which ones the run is of.
    """
    place, sample, found = worst_row(log_p) or (0, 0, "probabilities that do not sum to 1")
    row = table.iloc[place]
    return StoreError(
        f"trial {row['trial_id']}, snapshot {row['snapshot']}, sample {samples.start + sample}",
        found,
        "log-probabilities of a distribution",
    )
