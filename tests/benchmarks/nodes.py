"""What a node's processes take to have a data set, alone and together, and what `doctor` takes.

    python -m tests.benchmarks.nodes [--processes 8] [--rounds 3]

Images of CIFAR-10's shape and number, in the files that torchvision reads, are loaded by fresh
processes: decoded by each, or mapped from the copy that the node's first one left. Memory is the
proportional set size (PSS) of processes that have all touched every image. Two to five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sweeper.train.sources import small
from sweeper.train.sources.on_node import NODE_TMP_VARIABLE
from sweeper.train.sources.place import ROOT_VARIABLE
from tests.data_files import write_small

NAME, SUMS = "cifar10", ("train_list", "test_list", "meta")
WAYS = {
    "decoded": "decoded by each process",
    "first": "by a node's first process, which leaves the copy",
    "mapped": "from the copy",
}
BASE = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}


def write_data(root: Path) -> None:
    """The data set's files, and their sums, which are not those that were published."""
    with pytest.MonkeyPatch.context() as patch:
        write_small(NAME, root / NAME, patch)
        kind = small.torchvision_class(NAME)
        (root / "sums.json").write_text(json.dumps({name: getattr(kind, name) for name in SUMS}))


def load(way: str) -> None:
    """One process: load, say how long that took, and stay until standard input ends."""
    root = Path(os.environ[ROOT_VARIABLE])
    start = time.perf_counter()
    if way != "mapped":  # who maps the copy needs neither torchvision nor the sums
        kind = small.torchvision_class(NAME)
        for name, value in json.loads((root / "sums.json").read_text()).items():
            setattr(kind, name, value)
    if way == "decoded":
        small.once_per_node = lambda name, version, folder, files, read: read()
    splits = small.cifar10().load() if way != "nothing" else None
    seconds = time.perf_counter() - start
    if splits is not None:
        splits.train_x.sum(), splits.test_x.sum()
    print(seconds, flush=True)
    sys.stdin.read()


@contextmanager
def loaded(way: str, root: Path) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A process that has loaded, while it lives, and the seconds that it took."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.nodes", "--load", way],
        env=os.environ | {ROOT_VARIABLE: str(root), NODE_TMP_VARIABLE: str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process, float(process.stdout.readline())
        process.stdin.close()


def proportional(pid: int) -> float:
    """The MiB of a process, of what it shares its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def together(way: str, root: Path, n_processes: int) -> float:
    """The MiB of so many processes at once; they start one after another."""
    with ExitStack() as stack:
        found = [stack.enter_context(loaded(way, root))[0] for _ in range(n_processes)]
        return sum(proportional(process.pid) for process in found)


def show_data(root: Path, n_rounds: int, n_processes: int) -> None:
    write_data(root)
    print(f"| {NAME}'s shape, {n_rounds} rounds | seconds, median | all |\n|---|---|---|")
    for way, said in WAYS.items():
        taken = []
        for _ in range(1 if way == "first" else n_rounds):
            with loaded(way, root) as (_, seconds):
                taken.append(seconds)
        print(row(said, taken))
    print(f"\n| {n_processes} processes | PSS, MiB | of it images, MiB |\n|---|---|---|")
    bare = together("nothing", root, n_processes)
    print(f"| without data | {bare:,.0f} | |")
    for way in ("decoded", "mapped"):
        taken = together(way, root, n_processes)
        print(f"| {WAYS[way]} | {taken:,.0f} | {taken - bare:,.0f} |")


def row(said: str, taken: list[float]) -> str:
    return f"| {said} | {statistics.median(taken):.2f} | {', '.join(f'{t:.2f}' for t in taken)} |"


def show_doctor(root: Path, n_rounds: int) -> None:
    grid = root / "small.yaml"
    grid.write_text(json.dumps({"name": "small", "base": {**BASE, "epochs": 1}}))
    print(f"\n| `sweeper doctor`, {n_rounds} runs | seconds, median | all |\n|---|---|---|")
    for said, given in {"alone": (), "with a grid of one trial": (grid,)}.items():
        command = [sys.executable, "-P", "-m", "sweeper", "doctor", *map(str, given)]
        taken = []
        for _ in range(n_rounds):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            taken.append(time.perf_counter() - start)
        print(row(said + (f", exit {done.returncode}" if done.returncode else ""), taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="at once, for their memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        load(asked.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        show_data(Path(folder), asked.rounds, asked.processes)
        show_doctor(Path(folder), asked.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
