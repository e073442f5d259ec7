"""What befalls a sweep on a cluster, many times over, and what must be true of it in the end.

    python -m tests.faults.sweep [--faults 200] [--seed 0] [--epochs 40] [--seeds 3]

runs a grid, of which some trials fail by themselves, over and over on a cluster of several nodes on
this machine. At random instants it kills and stops workers, the queue, the driver and nodes, asks
workers and the driver to leave, and fills the disk. It launches again until the sweep has ended by
itself, and then checks it against one that was left alone (`sweep_checks`). Prints how often each
fault was injected, what it met and what became of it; the first thing that is not true ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sweeper.journal import read_events
from sweeper.sweep_dir import SweepDir
from tests.faults.injuries import Injured
from tests.faults.machines import Machines, machines
from tests.faults.misbehaving import MARKS, grid_text
from tests.faults.sweep_checks import Undisturbed, check_sweep
from tests.full_disk import mounted

ROOT = Path(__file__).parents[2]
FAULTS_A_ROUND = 70
LONGEST_ROUND = 1800.0  # seconds: a sweep that has not ended by then never will
LEAVES = 60.0  # seconds in which the processes of a driver that ended must have gone
OPTIONS = ("--per-gpu", "2", "--stalled-after", "15s", "--force")  # also on a disk that is full
EXIT_OK, EXIT_ERROR, EXIT_FAILURES, EXIT_STOPPED = 0, 2, 3, 4

Counts = Counter[str]


class Sweep:
    """A sweep in a folder, and its driver: a process of its own, whose words are kept elsewhere."""

    def __init__(self, folder: Path, grid: Path, *options: str) -> None:
        self.folder, self._grid, self._options = folder, grid, options
        self.said = grid.parent / f"{folder.name}.said"  # on no disk that gets full
        self.driver: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def launch(self, *options: str) -> None:
        self._said = self.said.open("w+b")
        command = [sys.executable, "-m", "sweeper", "launch", str(self._grid), "-y"]
        command += ["--sweep-dir", str(self.folder), "--checkpoint-every", "0"]
        command += [*self._options, *options]
        command.append("--allow-empty-exclude")  # of the seeds of what fails
        self.driver = subprocess.Popen(
            command,
            cwd=ROOT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
        )

    def ended(self) -> int | None:
        """The driver's exit code, once it has ended. Fails if it ended with a traceback."""
        assert self.driver
        assert self._said
        code = self.driver.poll()
        if code is not None:
            self._said.seek(0)
            said = self._said.read().decode()
            self._said.close()
            assert "Traceback" not in said, said
            expected = (EXIT_OK, EXIT_ERROR, EXIT_FAILURES, EXIT_STOPPED, -signal.SIGKILL)
            assert code in expected, f"{code}: {said}"
            assert code != EXIT_ERROR or "error:" in said, said
        return code


def run_undisturbed(folder: Path, grid: Path, marks: Path) -> Undisturbed:
    """The same grid in one process, with nothing that fails but what always does."""
    for mark in MARKS:
        (marks / mark).touch()
    alone = Sweep(folder, grid, "--executor", "local")
    alone.launch()
    assert alone.driver
    alone.driver.wait()
    assert alone.ended() == EXIT_FAILURES
    found = Undisturbed.of(folder)
    check_sweep(folder, found)
    return found


def play(
    cluster: Machines,
    sweep: Sweep,
    undisturbed: Undisturbed,
    n_faults: int,
    disk: Path | None,
    draw: random.Random,
    counts: Counts,
) -> int:
    """Injure a sweep up to so many times, until it has ended by itself; how often it was."""
    injured = Injured(cluster, sweep.folder, disk, draw)
    deadline, n_injected = time.monotonic() + LONGEST_ROUND, 0
    sweep.launch("--address", cluster.address)
    while True:
        time.sleep(0.1)
        assert time.monotonic() < deadline, "the sweep does not end"
        code = sweep.ended()
        if code is not None:
            counts[f"driver's end: exit code {code}"] += 1
            if code in (EXIT_OK, EXIT_FAILURES) and undisturbed.is_reached_by(sweep.folder):
                break
            sweep.launch("--address", cluster.address)
            continue
        assert sweep.driver
        injured.keep_up()
        if n_injected < n_faults and injured.is_due():
            what = injured.injure(sweep.driver.pid)
            n_injected += what is not None
            counts.update([what] if what else [])
    injured.end()
    _wait_for_leaving(cluster)
    counts.update(injured.counts)
    return n_injected


def _wait_for_leaving(cluster: Machines) -> None:
    """Fail unless a sweep that has ended leaves no process on the cluster."""
    deadline = time.monotonic() + LEAVES
    while left := [*cluster.slots(), *cluster.workers("Leases")]:
        assert time.monotonic() < deadline, f"left of a sweep that has ended: {left}"
        time.sleep(0.2)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """The folder, on a disk of its own that can be filled; None where mounting is not permitted."""
    folder.mkdir()
    with mounted(folder) as is_mounted:
        if is_mounted:
            subprocess.run(
                ["mount", "-o", "remount,size=256m,nr_inodes=100000", str(folder)], check=True
            )
        yield folder if is_mounted else None


def run(n_faults: int, seed: int, epochs: int, n_seeds: int, counts: Counts) -> None:
    """Sweep after sweep, until there were so many faults."""
    draw, left = random.Random(seed), n_faults
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as disk:
        folder, marks, grid = Path(name) / "disk", Path(name) / "marks", Path(name) / "grid.yaml"
        marks.mkdir()
        grid.write_text(grid_text(marks, epochs, n_seeds))
        if disk is None:
            counts["no disk was filled: mounting is not permitted"] += 1
        undisturbed = run_undisturbed(folder / "undisturbed", grid, marks)
        with machines(2) as cluster:
            for number in itertools.count(1):
                shutil.rmtree(marks)
                marks.mkdir()
                sweep, started = Sweep(folder / f"sweep-{number}", grid, *OPTIONS), time.monotonic()
                with _ended_or_kept(sweep):
                    n = min(left, FAULTS_A_ROUND)
                    left -= play(cluster, sweep, undisturbed, n, disk, draw, counts)
                    told = check_sweep(sweep.folder, undisturbed)
                _count(sweep, told, counts)
                shutil.rmtree(sweep.folder)
                seconds = time.monotonic() - started
                print(f"sweep {number}: {seconds:.0f} s, {left} faults left", flush=True)
                if not left:
                    return


@contextlib.contextmanager
def _ended_or_kept(sweep: Sweep) -> Iterator[None]:
    """Leave no driver behind; keep what a sweep left that was not as it must be."""
    try:
        yield
    except BaseException:
        kept = Path(tempfile.mkdtemp(prefix="sweep-faults-")) / sweep.folder.name
        shutil.copytree(sweep.folder, kept)
        shutil.copy(sweep.said, kept.parent)
        print(f"what the sweep left is kept in {kept}", flush=True)
        raise
    finally:
        if sweep.driver and sweep.driver.poll() is None:
            os.killpg(sweep.driver.pid, signal.SIGKILL)
            sweep.driver.wait()


def _count(sweep: Sweep, told: Counts, counts: Counts) -> None:
    counts.update({f"in the journal: {what}": n for what, n in told.items()})
    events = read_events(SweepDir(sweep.folder).journal).events
    kinds = Counter(event["event"] for event in events)
    counts["sweeps that ended as if undisturbed"] += 1
    for kind in ("launched", "started", "stopped", "packed"):
        counts[f"in the journal: {kind}"] += kinds[kind]
    counts["trials with the digest of the undisturbed sweep"] += len(
        {event["trial"] for event in events if event["event"] == "finished"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40, help="of every trial")
    parser.add_argument("--seeds", type=int, default=3, help="of the trials that are healthy")
    asked = parser.parse_args()
    counts: Counts = Counter()
    try:
        run(asked.faults, asked.seed, asked.epochs, asked.seeds, counts)
    finally:
        for what in sorted(counts, key=lambda what: what if ": " in what else ""):
            print(f"{counts[what]:7,}  {what}")


if __name__ == "__main__":
    main()
