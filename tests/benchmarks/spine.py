"""Seconds of each stage of the demo, trials per minute, and what a driver costs per trial.

    python tests/benchmarks/spine.py [--trials N] [--noops N]

Prints two tables; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeper.attempt import Order, Outcome, Progress
from sweeper.config import TrialConfig
from sweeper.grid import Trial
from sweeper.plan import Size, make_plan
from sweeper.schedule.driver import Launch, drive
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.tune import TuneExecutor
from sweeper.sweep_dir import SweepDir, environment

GRID = Path(__file__).parents[2] / "grids" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10**6, help="of the demo's grid")
    parser.add_argument("--noops", type=int, default=1000, help="trials that do nothing")
    asked = parser.parse_args()
    here = environment()
    print(time.strftime("%Y-%m-%d"), here["processor"], f"{here['cpus']} cores", here["versions"])
    with tempfile.TemporaryDirectory() as folder:
        stages(Path(folder), asked.trials)
        overhead(Path(folder), asked.noops)


def stages(folder: Path, n_trials: int) -> None:
    """The demo, stage by stage, each in a process of its own as a user starts it."""
    print("\n| stage | seconds | trials a minute |\n|---|---|---|")
    sweeps = {name: folder / name for name in ("tune", "local")}
    seconds = run("plan", GRID, "--sweep-dir", folder / "none")
    print(f"| `plan` | {seconds:.1f} | |")
    for name, sweep in sweeps.items():
        limit = ["--limit", n_trials]
        seconds = run("launch", GRID, "--sweep-dir", sweep, "--executor", name, "-y", *limit)
        first, last, count = span(sweep)
        rate = 60 * count / (last - first)
        print(
            f"| `launch --executor {name}` | {seconds:.1f} | {60 * count / seconds:.1f}; "
            f"{rate:.1f} once slots are up |"
        )
    for stage in ("distances", "inpca", "report"):
        print(f"| `analyze {stage}` | {run('analyze', stage, sweeps['tune']):.1f} | |")
    print(f"| `verify` | {run('verify', sweeps['tune']):.1f} | |")


def run(*arguments: object) -> float:
    """Seconds that a command takes."""
    started = time.monotonic()
    command = [sys.executable, "-m", "sweeper", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def span(sweep: Path) -> tuple[float, float, int]:
    """Times of the first start and the last end of a sweep, and the number of trials that ended."""
    events = [json.loads(line) for line in (sweep / "journal.jsonl").read_text().splitlines()]
    starts = [event["t"] for event in events if event["event"] == "started"]
    ends = [event["t"] for event in events if event["event"] == "finished"]
    return min(starts), max(ends), len(ends)


def overhead(folder: Path, n_trials: int) -> None:
    """What lease, reports, journal and fsync cost: trials that do nothing, per trial."""
    print(f"\n| executor | slots | {n_trials} no-op trials, s | ms a trial | start and end, s |")
    print("|---|---|---|---|---|")
    configs = [
        TrialConfig.from_flat(
            {
                "data.name": "digits",
                "model.name": "fc",
                "optim.name": "sgd",
                "optim.lr": 0.1,
                "epochs": 1,
                "seed": seed,
            }
        )
        for seed in range(n_trials)
    ]
    plan = make_plan([Trial(c.trial_id, c) for c in configs], set(), lambda config: Size(2, 0, 4))
    for executor in (LocalExecutor(no_op), TuneExecutor(2, runner=no_op)):
        times: list[float] = []
        started = time.monotonic()
        sweep = SweepDir(folder / f"no-op-{executor.n_slots}")
        drive(
            sweep,
            plan,
            Launch("no-op", ""),
            executor,
            lambda event, counts, times=times: times.append(time.monotonic()),
        )
        whole = time.monotonic() - started
        inner = times[-1] - times[0]
        print(
            f"| {type(executor).__name__} | {executor.n_slots} | {inner:.2f} | "
            f"{1000 * inner / n_trials:.2f} | {whole - inner:.1f} |"
        )


def no_op(order: Order, should_stop: object, on_progress: object) -> Outcome:
    """A trial that only reports, as every trial does."""
    on_progress(Progress(order.trial_id, 1, 0, 1, "here", "cpu"))
    return Outcome(order.trial_id, 1, "complete", 0.0)


if __name__ == "__main__":
    main()
