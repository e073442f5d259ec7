"""Distances from a store: seconds, decodes and peak memory, before and now.

    python -m tests.benchmarks.tiles [--models 5040] [--samples 10000] [--memory 8GiB] [--before]

A store of made trials of 60 snapshots is written and sealed; then each way of computing all
distances runs in a process of its own. With `--before` also the way that it was: tile after tile,
both operands of each read and decoded for it, and the references in float64. The last rows store
the sums of what is under way every second, not every five minutes, and kill that run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from analysis import blocks, fill, stages, underway
from analysis.bhattacharyya import pairwise, to_ignorance, to_truth
from analysis.memory import parse_size
from analysis.squares import Layout, Part, Piece, Plan
from analysis.tiles import TILE, Tiling
from sweeper.store import codec, open_store
from sweeper.store.schema import sealed_layout
from tests.benchmarks.made import SNAPSHOTS, alone, parser, store


class Before:
    """Each tile by itself, as it was done: read both operands, decode, reduce."""

    def __init__(self, made: blocks.DistanceBlocks) -> None:
        self.homes, self.rows, self.split = made.homes, made.rows, made.split

    def plan(self, missing: Any, layout: Layout, ask: Any, begun: Any) -> Plan:
        """A tile a square."""
        return Plan(tuple((tile,) for tile in missing), 0)

    def compute(self, square: Any, layout: Layout, run: int, underway: Any) -> Any:
        """Its distances and references."""
        tile = square[0]
        p, q = (layout.groups[index][0] for index in tile)
        references = [(p, self._references(p.rows))] if p is q else []
        yield Part(tile, [Piece(p, q, self._distances(p.rows, q.rows))], references)

    def _distances(self, rows: Any, columns: Any) -> Any:
        opened = functools.cache(open_store)
        D = np.zeros((len(rows), len(columns)))
        for samples, weight in self._runs(opened, len(rows) + len(columns)):
            p = self._read(opened, rows, samples)
            q = None if rows is columns else self._read(opened, columns, samples)
            D += weight * pairwise(p, q)
        return D

    def _references(self, rows: Any) -> Any:
        opened, first = functools.cache(open_store), self.rows["trial_id"].iloc[0]
        labels = opened(self.homes[first]).labels(self.split, first)
        found = np.zeros((2, len(rows)))
        for samples, weight in self._runs(opened, 2 * len(rows)):
            p = self._read(opened, rows, samples)
            found += weight * np.stack([to_truth(p, labels[samples]), to_ignorance(p)])
        return found

    def _runs(self, opened: Any, n_rows: int) -> Any:
        first = self.rows["trial_id"].iloc[0]
        n_samples, n_classes = opened(self.homes[first]).shape(self.split, first)
        step = max(1, (1 << 29) // (n_rows * n_classes))
        for start in range(0, n_samples, step):
            stop = min(start + step, n_samples)
            yield slice(start, stop), (stop - start) / n_samples

    def _read(self, opened: Any, rows: Any, samples: slice) -> Any:
        def read(trial_id: str, group: Any) -> Any:
            snapshots = group["snapshot"].to_numpy()
            store = opened(self.homes[trial_id])
            return store.log_probs(trial_id, self.split, snapshots, samples, dtype="float16")

        groups = self.rows.iloc[rows].groupby("trial_id", sort=False)
        with ThreadPoolExecutor(16) as pool:
            return np.concatenate(list(pool.map(read, *zip(*groups, strict=True))))


def count_decodes() -> Counter[str]:
    """Chunks of predictions that are decoded from here on, in `n`."""
    counted: Counter[str] = Counter()
    lock, decode = threading.Lock(), codec.decode

    def counting(data: Any, values: Any) -> None:
        decode(data, values)
        with lock:
            counted["n"] += values.ndim == 3

    codec.decode = counting
    return counted


def compute(
    folder: Path,
    before: bool,
    memory: str,
    where: str | None,
    every: float = underway.SECONDS,
) -> dict[str, float]:
    """All distances of the store, or of some trials: what that took."""
    underway.SECONDS = every
    counted = count_decodes()
    started, cpu = time.perf_counter(), time.process_time()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if before:
        fill.fill = functools.partial(_fill_before, fill.fill)
    stages.distances(folder, where, memory=parse_size(memory, "--memory"))
    store = open_store(folder)
    n_samples, n_classes = store.shape("test", "t00000")
    chunk, _ = sealed_layout((SNAPSHOTS, n_samples, n_classes))
    n_chunks = len(store.complete_ids()) * -(-n_samples // chunk)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "decodes": counted["n"] / n_chunks,
        "before": resident / 2**20,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _fill_before(fill_now: Any, path: Path, source: Any, *rest: Any) -> int:
    return int(fill_now(path, Before(source), *rest))


def row(name: str, folder: Path, *how: Any) -> None:
    """Measure one way in a process of its own and print its line."""
    found = alone(compute, folder, *how)
    print(
        f"| {name} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['decodes']:.2f} "
        f"| {found['before']:.2f} | {found['peak']:.2f} | {os.getloadavg()[0]:.1f} |",
        flush=True,
    )


def kill(folder: Path, step: str) -> None:
    """Compute until a step of `SWEEPER_CRASH_AT`."""
    os.environ["SWEEPER_CRASH_AT"] = step
    with contextlib.suppress(BrokenProcessPool):
        alone(compute, folder, False, "8GiB", None, 1.0)
    del os.environ["SWEEPER_CRASH_AT"]


def main() -> None:
    """Write the store and print the table."""
    arguments = parser(__doc__, models=5040, samples=10_000)
    arguments.add_argument("--memory", nargs="+", default=["8GiB", "2GiB"])
    arguments.add_argument("--before", action="store_true")
    asked = arguments.parse_args()
    with store(asked) as (made, n_trials):
        tiling = Tiling(n_trials * SNAPSHOTS, TILE)
        print(
            f"{sum(1 for _ in tiling.upper())} tiles\n\n"
            "| way | seconds | of processors | decodes | GiB before | peak GiB | load |\n"
            + "|---" * 7
            + "|",
            flush=True,
        )
        for memory in asked.memory:
            shutil.rmtree(made / "analysis", ignore_errors=True)
            row(f"squares, `--memory {memory}`", made, False, memory, None)
        row("half of the trials, copied", made, False, "8GiB", f"seed < {n_trials // 2}")
        shutil.rmtree(made / "analysis")
        row("all trials but one", made, False, "8GiB", "seed > 0")
        row("this trial added, the others copied", made, False, "8GiB", None)
        if asked.before:
            shutil.rmtree(made / "analysis")
            row("tiles, as it was", made, True, "8GiB", None)
        shutil.rmtree(made / "analysis")
        row("sums stored every second", made, False, "8GiB", None, 1.0)
        shutil.rmtree(made / "analysis")
        kill(made, "sums:2")
        row("what is left when that is killed after two of these", made, False, "8GiB", None, 1.0)


if __name__ == "__main__":
    main()
