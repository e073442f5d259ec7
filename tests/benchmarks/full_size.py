"""From a store to an embedding on disk, at any size: seconds, bytes and peak memory of each stage.

    python -m tests.benchmarks.full_size [--models 151407] [--samples 64] [--memory 8GiB]

The number of snapshots is that of the published study; few samples make the predictions small,
while the matrix, and what is done with it, are of full size. Each stage runs in a process of its
own. Needs 2 bytes × models² of room, and removes it afterwards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis import stages
from analysis.memory import parse_size
from sweeper.processors import n_cores
from tests.benchmarks.tiles import CLASSES, SNAPSHOTS, make


def distances(folder: Path, memory: int) -> list[Path]:
    """The first stage."""
    return stages.distances(folder, say=print, memory=memory)


def embed(folder: Path, memory: int) -> list[Path]:
    """The second stage."""
    return stages.embed(folder, say=print)


def run(stage: Callable[..., list[Path]], folder: Path, memory: int, send: Any) -> None:
    """One stage, and what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    paths = stage(folder, memory)
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    send.put(
        (
            time.perf_counter() - started,
            time.process_time() - cpu,
            sum(file.stat().st_size for file in files) / 1e9,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )
    )


def main() -> None:
    """Write the store, run the stages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=151_407)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--folder")
    asked = parser.parse_args()
    n_trials = -(-asked.models // SNAPSHOTS)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        folder = Path(scratch) / "made"
        started = time.perf_counter()
        make(folder, n_trials, asked.samples)
        print(
            f"{n_trials * SNAPSHOTS:,} snapshots, {asked.samples} samples, {CLASSES} classes, "
            f"{n_cores()} cores; store written in {time.perf_counter() - started:.0f} s"
        )
        rows = []
        for stage in (distances, embed):
            queue = context.Queue()
            memory = parse_size(asked.memory, "--memory")
            process = context.Process(target=run, args=(stage, folder, memory, queue))
            process.start()
            rows.append((stage.__name__, *queue.get(), os.getloadavg()[0]))
            process.join()
        print("\n| stage | seconds | of processors | GB written | peak GiB | load |")
        print("|---" * 6 + "|")
        for name, *numbers, load in rows:
            print(f"| {name} |", " | ".join(f"{n:.2f}" for n in numbers), f"| {load:.1f} |")


if __name__ == "__main__":
    main()
