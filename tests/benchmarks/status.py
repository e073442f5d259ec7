"""Seconds that `status` and `failures` take on sweeps of 100,000 trials, in several states.

With and without a saved digest; most trials complete, all failed, or all to be run again. Also
the memory that a driver's tally has for a trial, and what `--where` takes.

python tests/benchmarks/status.py
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.chosen import Selectors, chosen
from sweeper.config import TrialConfig
from sweeper.journal import Tally
from sweeper.plan import planned_configs, planned_ids
from sweeper.status.report import reports
from sweeper.status.states import Sight
from sweeper.status.summary import read_status
from sweeper.sweep_dir import PREDICTIONS, SweepDir

N_TRIALS = 100_000
MODELS, SIZES = ("fc", "cnn", "allcnn", "convmixer", "vit"), (100, 200, 500, 1000)
KINDS = ("all failed", "all run again", "most complete")  # only the last has anything stored
TRACE = "RuntimeError in loop.py:train: loss number # of the kind that has a message of some length"

Config = dict[str, Any]


def configs() -> Iterator[Config]:
    """The flat configuration of each trial: models × batch sizes × seeds."""
    flat = {"data.name": "digits", "optim.name": "sgd", "optim.lr": 0.1, "epochs": 2}
    for name in MODELS:
        config = TrialConfig.from_flat({**flat, "model.name": name, "seed": 0}).to_flat()
        for size in SIZES:
            for seed in range(N_TRIALS // len(MODELS) // len(SIZES)):
                yield {**config, "optim.batch_size": size, "seed": seed}


def ids() -> list[str]:
    return [f"t{i * 2654435761 % 2**48:012x}" for i in range(N_TRIALS)]


def write_plan(folder: SweepDir) -> None:
    shapes = [
        f"{c['model.name']} b{c['optim.batch_size']} #{i % 20}" for i, c in enumerate(configs())
    ]
    columns = {
        "trial_id": ids(),
        "schema": [1] * N_TRIALS,
        "config": [json.dumps(config) for config in configs()],
        "shape": pa.array(shapes).dictionary_encode(),
        "n_steps": [1000] * N_TRIALS,
        "work": [1e9] * N_TRIALS,
    }
    folder.write_manifest({"name": "large"})
    pq.write_table(pa.table(columns), folder.plan)


def events(kind: str) -> Iterator[Config]:
    """A journal's; of most complete, nine of ten have ended and one of 100 has failed."""
    yield {"t": 0.0, "event": "launched", "n_planned": N_TRIALS, "n_todo": N_TRIALS, "n_slots": 8}
    for i, trial in enumerate(ids()):
        at = {"trial": trial, "attempt": 1, "host": f"node{i % 16}", "device": "cuda:0"}
        if kind == "most complete" and i % 10 == 0:
            continue
        yield {"t": i, "event": "started", **at, "step": 0, "n_steps": 1000, "per_gpu": 2}
        if kind == "most complete" and i % 100 != 1:
            end = {"state": "complete", "seconds": 60.125, "steps": 1000, "digest": "0" * 64}
            yield {"t": i + 0.5, "event": "finished", "trial": trial, "attempt": 1, **end}
            continue
        what = {"kind": "bug", "error": "RuntimeError", "message": f"loss number {i}: {TRACE * 2}"}
        name = "retried" if kind == "all run again" else "failed"
        yield {"t": i + 0.5, "event": name, **at, **what, "signature": f"{TRACE} {i % 40}"}


def make_sweep(folder: SweepDir, kind: str) -> None:
    folder.status.unlink(missing_ok=True)
    with folder.journal.open("w") as file:
        for event in events(kind):
            file.write(json.dumps(event) + "\n")
            if event["event"] == "finished":
                (folder.path / PREDICTIONS / "trials" / event["trial"]).mkdir(parents=True)


def seconds(call: Callable[[], object]) -> float:
    """The fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def growth(folder: SweepDir) -> float:
    """Bytes of memory a trial by which a fresh process grows that takes the journal, a line a time.

    As a driver does; the text of the events is gone by then.
    """
    code = (
        "import json, resource, sys; from sweeper.journal import Tally\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1])\n"
        "tally, before = Tally(), rss()\n"
        "for line in open(sys.argv[1]): tally.add(json.loads(line))\n"
        "print((rss() - before) * resource.getpagesize() / len(tally.trials))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder.journal], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = SweepDir(path)
        write_plan(folder)
        (Path(path) / "logs").mkdir()
        for kind in KINDS:
            make_sweep(folder, kind)
            print(f"{N_TRIALS:,} trials, {kind}: {folder.journal.stat().st_size / 1e6:.0f} MB")
            print(f"  status without a digest  {seconds(lambda: read_status(folder)):.2f} s")
            tally = Tally.read(folder.status, folder.journal)
            writing = seconds(functools.partial(tally.save, folder.status))
            print(f"  writing the digest       {writing:.2f} s")
            print(f"  status with a digest     {seconds(lambda: read_status(folder)):.2f} s")
            failures = seconds(lambda: reports(folder, Sight(folder).look()))
            print(f"  failures                 {failures:.2f} s")
            print(f"  a driver's tally         {growth(folder):.0f} bytes a trial")
        asked = Selectors.of("model.name == 'vit' and seed < 45", (), ())
        planned = planned_ids(folder.plan)
        where = seconds(lambda: chosen(asked, planned, lambda: planned_configs(folder.plan), dict))
        print(f"--where over all trials    {where:.2f} s")
        print(
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, peak RSS "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
        )


if __name__ == "__main__":
    main()
