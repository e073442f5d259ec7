"""Opening many shards of a sweep and merging their tables, beside one store of all their trials.

    python -m tests.benchmarks.merging [--shards 32] [--trials 100000]

The trials are made: each has an empty metadata file and its row in its store's index, all that is
looked at until predictions are read; the one store has them by links. Every row of the table is a
process of its own. Two to four minutes, most of it to make 100,000 folders, and to remove them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from analysis.copies import check_agreement, one_each
from analysis.places import asked as asked_places
from analysis.union import open_union
from sweeper.config import TrialConfig
from sweeper.store.index import write_index
from sweeper.store.opening import create_store
from sweeper.store.table import Summary
from sweeper.sweep_dir import PREDICTIONS

METRICS = dict.fromkeys(("test_loss", "test_accuracy", "train_loss", "train_accuracy"), 0.123456789)
FLAT = {"data.name": "cifar10", "model.name": "allcnn", "optim.name": "sgd", "optim.lr": 0.1}
CONFIG = TrialConfig.from_flat({**FLAT, "epochs": 200}).to_flat()


def summary(trial_id: str) -> Summary:
    """A sealed trial's row, of the length that those of a real one have."""
    config = {**CONFIG, "seed": int(trial_id[1:], 16)}
    return Summary(trial_id, 1, config, "complete", 60, trial_id[1:] * 5, 1, METRICS)


def make_shards(root: Path, n_shards: int, n_trials: int) -> list[Path]:
    """Stores that share the trials out, each with its index."""
    places = [root / f"{i + 1}-of-{n_shards}" for i in range(n_shards)]
    for i, place in enumerate(places):
        objects = create_store(place / PREDICTIONS)
        for number in range(i, n_trials, n_shards):
            trial = place / PREDICTIONS / "trials" / f"t{number:012x}"
            trial.mkdir(parents=True)
            (trial / "zarr.json").touch()
        write_index(objects, summary)
    return places


def make_whole(root: Path, shards: list[Path]) -> Path:
    """One store of the same trials, by links."""
    trials = root / PREDICTIONS / "trials"
    objects = create_store(trials.parent)
    trials.mkdir()
    for shard in shards:
        for trial in (shard / PREDICTIONS / "trials").iterdir():
            (trials / trial.name).symlink_to(trial)
    write_index(objects, summary)
    return root


def merge(out: str, places: list[str]) -> dict[str, float]:
    """Seconds of each step, and MB of memory: at first, with what is imported, and at most."""
    import_module("pyarrow.parquet")  # otherwise the first table pays for it
    before, start = peak(), time.perf_counter()
    union = open_union(asked_places(places, out)[1])
    opened = time.perf_counter()
    copies = union.copies()
    read = time.perf_counter()
    copies["left_out"] = None
    check_agreement(copies, union)
    n_trials = len(one_each(copies))
    merged = time.perf_counter()
    return {
        "trials": n_trials,
        "opened": opened - start,
        "read": read - opened,
        "merged": merged - read,
        "imports": before,
        "peak": peak(),
    }


def peak() -> float:
    """The most MB of this process so far; `getrusage` would count those of the one before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def show(name: str, out: Path, places: list[Path]) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.merging", "--merge", out, *places]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    seconds = [f"{found[step]:.2f}" for step in ("opened", "read", "merged")]
    megabytes = [f"{found[when]:,.0f}" for when in ("imports", "peak")]
    print(f"| {' | '.join([name, format(found['trials'], ','), *seconds, *megabytes])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--trials", type=int, default=100_000, help="of all shards")
    parser.add_argument("--merge", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.merge:
        out, *places = asked.merge
        print(json.dumps(merge(out, places)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = make_shards(root / "shards", asked.shards, asked.trials)
        whole = make_whole(root / "whole", shards)
        print("| stores | trials | open, s | tables, s | merge, s | imports, MB | peak, MB |")
        print("|---|---|---|---|---|---|---|")
        show("one", root / "out", [whole])
        show(f"{asked.shards} shards", root / "out", shards)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
