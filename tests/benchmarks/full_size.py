"""From a store to an embedding on disk, at any size: seconds, bytes and peak memory of each stage.

    python -m tests.benchmarks.full_size [--models 151407] [--samples 64] [--memory 8GiB]

The number of snapshots is that of the published study; few samples make the predictions small,
while the matrix, and what is done with it, are of full size. Each stage runs in a process of its
own. Needs 2 bytes × models² of room, and removes it afterwards.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from analysis import stages
from analysis.memory import parse_size
from tests.benchmarks.made import alone, parser, store


def distances(folder: Path, memory: int) -> list[Path]:
    """The first stage."""
    return stages.distances(folder, say=print, memory=memory)


def embed(folder: Path, memory: int) -> list[Path]:
    """The second stage."""
    return stages.embed(folder, say=print)


def run(stage: Callable[..., list[Path]], folder: Path, memory: int) -> tuple[float, ...]:
    """One stage: what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    paths = stage(folder, memory)
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return (
        time.perf_counter() - started,
        time.process_time() - cpu,
        sum(file.stat().st_size for file in files) / 1e9,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


def main() -> None:
    """Write the store, run the stages, print the table."""
    arguments = parser(__doc__, models=151_407, samples=64)
    arguments.add_argument("--memory", default="8GiB")
    asked = arguments.parse_args()
    memory = parse_size(asked.memory, "--memory")
    with store(asked) as (folder, _):
        rows = [
            (stage.__name__, *alone(run, stage, folder, memory), os.getloadavg()[0])
            for stage in (distances, embed)
        ]
    print("\n| stage | seconds | of processors | GB written | peak GiB | load |")
    print("|---" * 6 + "|")
    for name, *numbers, load in rows:
        print(f"| {name} |", " | ".join(f"{n:.2f}" for n in numbers), f"| {load:.1f} |")


if __name__ == "__main__":
    main()
