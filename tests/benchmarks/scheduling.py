"""What scheduling costs: time, memory, files and journal of trials that do nothing or only sleep.

    python tests/benchmarks/scheduling.py [--noops N] [--plain N] [--seconds N] [--only PART ...]

Trials go through `drive` with a runner that reports twice and needs no store; beside them, in the
same run, a grid of Ray Tune as its own documentation writes it. Each row is a process of its own.
Ends with `plan` for 100,000 trials and with `status.py`. Prints tables; nothing passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sweeper.attempt import Order, Outcome, Progress
from sweeper.config import TrialConfig
from sweeper.grid import Trial
from sweeper.plan import Plan, Size, make_plan
from sweeper.schedule.driver import Launch, drive
from sweeper.schedule.executor import Executor, Runner
from sweeper.schedule.leases import Leases
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.nodes import LONGEST_REST, Site
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.tune import TuneExecutor
from sweeper.sweep_dir import SweepDir, environment

N_SAMPLES = 200  # of memory, over the trials of a row
WARM = 0.2  # of the trials, before growth is measured
N_PLANNED = 100_000
N_TRAINED = 20
N_TRIED = (0, 500, 5_000)
PARTS = ("no-op", "second", "lease", "files", "plan", "status")

LARGE = f"""\
name: large
base: {{data.name: digits, optim: {{name: sgd, lr: 0.1}}, epochs: 2}}
axes:
  model.name: [fc, cnn, allcnn, convmixer, vit]
  optim.batch_size: [100, 200, 500, 1000]
  seed: {{range: [0, {N_PLANNED // 20}]}}
"""
SMALL = f"""\
name: small
base: {{data.name: digits, model.name: fc, optim: {{name: sgd, lr: 0.1}}, epochs: 1}}
axes: {{seed: {{range: [0, {N_TRAINED}]}}}}
"""
PACE = "| trials that do nothing | n | slots | trials/s | driver CPU, ms each | start, s | end, s |"
REMAINS = (
    "| trials that do nothing | driver at first, MiB | growth, KB a trial | queue, MiB "
    "| growth, KB a trial | journal, bytes a trial | files left, of them Ray's | MB |"
)
OVERHEAD = (
    "| trials of one second | n | slots | overhead, ms a trial | at one minute | driver, KB/min |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noops", type=int, default=10_000, help="trials that do nothing")
    parser.add_argument("--plain", type=int, default=1_000, help="trials of a plain Tune grid")
    parser.add_argument("--seconds", type=int, default=150, help="trials of one second, a slot")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(ROWS[asked.row](asked.noops)))
        return
    here = environment()
    print(time.strftime("%Y-%m-%d"), here["processor"], f"{here['cpus']} cores", here["versions"])
    shown = {
        "no-op": lambda: show_no_ops(asked.noops, asked.plain),
        "second": lambda: show_seconds(asked.seconds),
        "lease": show_leases,
        "files": show_files,
        "plan": show_plan,
        "status": show_status,
    }
    for part in asked.only:
        shown[part]()
        print(f"\n(load {os.getloadavg()[0]:.1f})", flush=True)


# --- rows, each in a process of its own -----------------------------------------------------


@dataclass
class Watch:
    """Follows a run by the trials that end: times, and memory in KB of this process and its queue.

    Parameters
    ----------
    n_trials : that will end.
    """

    n_trials: int
    n_ended: int = 0
    busy: float = 0.0  # seconds that trials say they took
    first: float = 0.0
    last: float = 0.0
    samples: list[tuple[int, float, float, float]] = field(default_factory=list)

    def starts(self) -> None:
        """The first trial starts."""
        self.first = self.first or time.monotonic()

    def ended(self, seconds: float = 0.0) -> None:
        """A trial has ended that took so long."""
        self.n_ended, self.busy, self.last = self.n_ended + 1, self.busy + seconds, time.monotonic()
        if self.n_ended % max(self.n_trials // N_SAMPLES, 1) == 0:
            sizes = resident(os.getpid()), resident(queue_of(os.getpid()))
            self.samples.append((self.n_ended, self.last, *sizes))

    def found(self, started: float, n_slots: int) -> dict[str, Any]:
        """What a row shows of it, `started` being when the process began to."""
        count, when, driver, queue = np.array(self.samples).T
        warm = count > WARM * self.n_trials
        inner = self.last - self.first
        return {
            "n": self.n_ended,
            "slots": n_slots,
            "rate": self.n_ended / inner,
            "start": self.first - started,
            "end": time.monotonic() - self.last,
            "overhead": (n_slots * inner - self.busy) / self.n_ended,
            "driver": driver[0],
            "growth": np.polyfit(count[warm], driver[warm], 1)[0],
            "by_time": np.polyfit(when[warm], driver[warm], 1)[0],
            "queue": queue[-1],
            "queue_growth": np.polyfit(count[warm], queue[warm], 1)[0],
        }


def resident(pid: int | None) -> float:
    """Resident KB of a process; 0 of none."""
    if pid is None:
        return 0.0
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1024


@functools.cache
def queue_of(driver: int) -> int | None:
    """The process of the queue's actor, which the driver started by way of Ray."""
    parents = dict(processes())
    for pid in parents:
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and "ray::Leases" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


def processes() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # has ended meanwhile
            yield int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])


def driven(executor: Executor, n_trials: int) -> dict[str, Any]:
    """Trials through `drive`: what they cost, and what is left when it has ended."""
    sweep, plan, watch = SweepDir(Path("sweep")), plan_of(n_trials), Watch(n_trials)

    def take(event: object, counts: object) -> None:
        if isinstance(event, Progress):
            watch.starts()
        elif isinstance(event, Outcome):
            watch.ended(event.seconds)

    started, used = time.monotonic(), time.process_time()
    drive(sweep, plan, Launch("no-op", ""), executor, take)
    found = watch.found(started, executor.n_slots)
    cpu = (time.process_time() - used) / n_trials
    journal = sweep.journal.stat().st_size / n_trials
    return {**found, "cpu": cpu, "journal": journal, **left(Path("."))}


def plan_of(n_trials: int) -> Plan:
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    configs = (TrialConfig.from_flat({**flat, "epochs": 1, "seed": i}) for i in range(n_trials))
    return make_plan([Trial(c.trial_id, c) for c in configs], set(), lambda config: Size(2, 0, 4))


def trial(seconds: float) -> Runner:
    """A trial that only reports, and sleeps, and says how long it really took."""

    def run(order: Order, should_stop: object, report: Callable[[Progress], None]) -> Outcome:
        started = time.monotonic()
        report(Progress(order.trial_id, 1, 0, 2, "here", "cpu"))
        if seconds:
            time.sleep(seconds)
        report(Progress(order.trial_id, 1, 1, 2, "here", "cpu", 1.0))
        took = time.monotonic() - started if seconds else 0.0
        return Outcome(order.trial_id, 1, "complete", took, "0" * 64)

    return run


def plain(n_trials: int, **settings: Any) -> dict[str, Any]:
    """A grid that Ray Tune runs as its documentation writes it."""
    import ray
    from ray import tune

    watch = Watch(n_trials)

    class Following(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            watch.starts()

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            watch.ended()

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"step": 0})
        tune.report({"step": 1})

    started, used = time.monotonic(), time.process_time()
    ray.init(num_cpus=2, include_dashboard=False)
    tune.Tuner(
        trainable,
        param_space={"seed": tune.grid_search(list(range(n_trials)))},
        tune_config=tune.TuneConfig(**settings),
        run_config=tune.RunConfig(storage_path=os.path.abspath("sweep"), callbacks=[Following()]),
    ).fit()
    ray.shutdown()
    found, cpu = watch.found(started, 2), (time.process_time() - used) / n_trials
    return {**found, "cpu": cpu, "journal": 0, **left(Path("."))}


def left(folder: Path) -> dict[str, float]:
    """Files of a sweep outside its store, what Ray has left among them, and their MB."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found = [path for path in paths if "predictions.zarr" not in path.parts]
    n_rays = sum(path.relative_to(folder).parts[0] == "ray" for path in found)
    n_bytes = sum(path.stat().st_size for path in found)
    return {"files": len(found), "rays": n_rays, "mb": n_bytes / 1e6}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "no-op, local": lambda n: driven(LocalExecutor(trial(0)), n),
    "no-op, tune": lambda n: driven(TuneExecutor(n_slots=2, n_cpus=2, runner=trial(0)), n),
    "second, local": lambda n: driven(LocalExecutor(trial(1)), n),
    "second, tune": lambda n: driven(TuneExecutor(n_slots=2, n_cpus=2, runner=trial(1)), 2 * n),
    "plain `tune.Tuner`, `reuse_actors`": lambda n: plain(n, reuse_actors=True),
    "plain `tune.Tuner`": plain,
}


# --- tables ---------------------------------------------------------------------------------


def row(name: str, n_trials: int) -> dict[str, Any]:
    """What a row's process finds, in a folder of its own, of a short path for Ray's sockets."""
    command = [sys.executable, os.path.abspath(__file__), "--row", name, "--noops", str(n_trials)]
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        where = os.environ | {"RAY_TMPDIR": f"{folder}/ray"}
        done = subprocess.run(command, env=where, cwd=folder, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def heading(line: str) -> None:
    print(f"\n{line}\n|{'---|' * (line.count('|') - 1)}", flush=True)


def show_no_ops(n_trials: int, n_plain: int) -> None:
    """Ours beside a plain grid, which is slow to start its processes: of these fewer are run."""
    asked = {"no-op, local": n_trials, "no-op, tune": n_trials}
    asked |= {"plain `tune.Tuner`, `reuse_actors`": n_plain, "plain `tune.Tuner`": n_plain // 5}
    rows = {name: row(name, n) for name, n in asked.items()}
    heading(PACE)
    for name, found in rows.items():
        print(
            f"| {name} | {found['n']:,} | {found['slots']} | {found['rate']:.3g} | "
            f"{1000 * found['cpu']:.2f} | {found['start']:.1f} | {found['end']:.1f} |"
        )
    heading(REMAINS)
    for name, found in rows.items():
        queue = f"{found['queue'] / 1024:.0f} | {found['queue_growth']:.2f}"
        print(
            f"| {name} | {found['driver'] / 1024:.0f} | {found['growth']:.2f} | "
            f"{queue if found['queue'] else ' | '} | {found['journal']:.0f} | "
            f"{found['files']:,}, {found['rays']:,} | {found['mb']:.1f} |"
        )


def show_seconds(n_trials: int) -> None:
    heading(OVERHEAD)
    for name in ("second, local", "second, tune"):
        found = row(name, n_trials)
        print(
            f"| {name} | {found['n']} | {found['slots']} | {1000 * found['overhead']:.2f} | "
            f"{found['overhead'] / 60:.4%} | {60 * found['by_time']:.0f} |",
            flush=True,
        )


def show_leases() -> None:
    """What a lease costs on a node on which so many trials have failed, and on another."""
    heading("| failed on a node and in line again | ms a lease there | on another node |")
    for n_tried in N_TRIED:
        there, elsewhere = leasing(n_tried)
        print(f"| {n_tried:,} | {1000 * there:.3f} | {1000 * elsewhere:.3f} |")


def leasing(n_tried: int) -> tuple[float, float]:
    """Median seconds of a lease on the node that failed them, and on one that failed none."""
    now = 0.0
    orders = [Order(f"t{i}", {}, "nowhere", shape="s") for i in range(n_tried + 1000)]
    leases = Leases(orders, Rules(), clock=lambda: now)
    leases.poll(False, {node: Site(node) for node in "xyz"})
    for slot in range(1, 9):  # what keeps the first node's trials waiting
        leases.lease(slot, "", 1, "y")
    n_failed = 0
    while n_failed < n_tried:
        now += LONGEST_REST  # a suspect is given one now and then
        order = leases.lease(0, f"{now}", 1, "x")
        if isinstance(order, Order):
            leases.report(0, Failure(order.trial_id, "bug", "E", "", "alike"))
            n_failed += 1
    took: dict[str, list[float]] = {"x": [], "z": []}
    for _ in range(200):
        for slot, node in ((0, "x"), (9, "z")):
            started = time.perf_counter()
            order = leases.lease(slot, "last", 1, node)
            took[node].append(time.perf_counter() - started)
            if isinstance(order, Order):
                leases.report(slot, Outcome(order.trial_id, 1, "stopped", 0.0))
    return statistics.median(took["x"]), statistics.median(took["z"])


def command(folder: Path, *arguments: object) -> tuple[float, float, float]:
    """Seconds that a command of sweeper takes, those of the processor, and the MiB it needs."""
    started = time.monotonic()
    words = [sys.executable, "-m", "sweeper", *map(str, arguments)]
    with subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    return time.monotonic() - started, cpu, used.ru_maxrss / 1024


def show_files() -> None:
    """What trials that train leave outside the store."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "grid.yaml").write_text(SMALL)
        command(Path(folder), "launch", "grid.yaml", "--executor", "local", "-y")
        found = left(Path(folder))
    print(f"\n{N_TRAINED} trials that train leave {found['files']:.0f} files outside the store")


def show_plan() -> None:
    heading("| command | trials | s | CPU s | MiB |")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "grid.yaml").write_text(LARGE)
        seconds, cpu, size = command(Path(folder), "plan", "grid.yaml", "--force")
    print(f"| `plan` | {N_PLANNED:,} | {seconds:.1f} | {cpu:.1f} | {size:.0f} |")


def show_status() -> None:
    print(flush=True)
    subprocess.run([sys.executable, Path(__file__).with_name("status.py")], check=True)


if __name__ == "__main__":
    main()
