"""Seconds of each stage of the demo, and trials per minute.

    python tests/benchmarks/spine.py [--trials N]

Prints a table; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeper.sweep_dir import environment

GRID = Path(__file__).parents[2] / "grids" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10**6, help="of the demo's grid")
    asked = parser.parse_args()
    here = environment()
    print(time.strftime("%Y-%m-%d"), here["processor"], f"{here['cpus']} cores", here["versions"])
    with tempfile.TemporaryDirectory() as folder:
        stages(Path(folder), asked.trials)


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


if __name__ == "__main__":
    main()
