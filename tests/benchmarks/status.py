"""Seconds that `status` takes on a sweep of 100,000 trials, with and without a saved digest.

python tests/benchmarks/status.py
"""

from __future__ import annotations

import json
import os
import tempfile
import time

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.config import content_id
from sweeper.journal import Tally
from sweeper.status import read_status
from sweeper.sweep_dir import SweepDir

N_TRIALS = 100_000


def make_sweep(folder: SweepDir) -> None:
    """A plan, and a journal in which nine of ten trials have ended and one of 100 has failed."""
    ids = [content_id({"seed": seed}) for seed in range(N_TRIALS)]
    folder.write_manifest({"name": "large"})
    pq.write_table(pa.table({"trial_id": ids, "config": ["{}" * 300] * N_TRIALS}), folder.plan)
    lines = [{"t": 0.0, "event": "launched", "n_planned": N_TRIALS, "n_todo": N_TRIALS}]
    for i, trial in enumerate(ids[: N_TRIALS * 9 // 10]):
        lines.append({"t": i, "event": "started", "trial": trial, "attempt": 1, "host": "node"})
        end = {"t": i + 0.5, "trial": trial, "attempt": 1, "seconds": 60.125}
        if i % 100:
            lines.append({**end, "event": "finished", "state": "complete", "digest": "0" * 64})
        else:
            message = f"loss number {i % 1000}"
            lines.append({**end, "event": "failed", "error": "RuntimeError", "message": message})
    folder.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def seconds(folder: SweepDir) -> float:
    """The fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        read_status(folder)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = SweepDir(path)
        make_sweep(folder)
        print(f"{N_TRIALS:,} trials, journal of {folder.journal.stat().st_size / 1e6:.0f} MB")
        print(f"status without a digest  {seconds(folder):.2f} s")
        Tally.read(folder.status, folder.journal).save(folder.status)
        print(f"status with a digest     {seconds(folder):.2f} s")
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
