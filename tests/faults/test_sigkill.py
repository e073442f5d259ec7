"""A sweep that is killed, whenever and however often, ends as if it had not been.

`SWEEPER_FAULT_KILLS=20 pytest tests/faults` is the long form: 20 seeded instants per executor.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.store import open_store

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SWEEPER_FAULT_KILLS", "2"))

GRID = """
name: faults
base: {data.name: digits, epochs: 2, record.schedule: log, regularize.dropout: 0.1}
axes:
  trial:
    - {model.name: fc, optim.name: adam, optim.lr: 0.002}
    - {model.name: cnn, optim.name: sgd-nesterov, optim.lr: 0.05, augment.name: shift}
    - {model.name: vit, optim.name: adamw, optim.lr: 0.002}
    - {model.name: fc, optim.name: sgd, optim.lr: 0.1, augment.name: shift}
"""

# In the order in which a sweep passes them; each is the n-th passing of that step in the process
# that makes it. The sweep goes on from one crash to the next.
CRASHES = [
    "journal:2",
    "claim:1",
    "snapshot:3",
    "checkpoint:5",
    "checkpoint-removed:6",
    "seal-arrays:1",
    "seal-publish:1",
    "seal-removed:1",
    "snapshot:12",
    "journal:3",
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "faults.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def undisturbed(
    grid: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    """The digests of a sweep that nobody kills, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    started = time.monotonic()
    assert launch(grid, folder).wait() == 0
    return digests(folder), time.monotonic() - started


def launch(grid: Path, folder: Path, executor: str = "local", crash: str = "") -> subprocess.Popen:
    """`sweeper launch` in a process group of its own, checkpointing after every step."""
    command = [sys.executable, "-m", "sweeper", "launch", str(grid), "-y"]
    command += ["--sweep-dir", str(folder), "--executor", executor, "--checkpoint-every", "0"]
    environment = os.environ | ({"SWEEPER_CRASH_AT": crash} if crash else {})
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def digests(folder: Path) -> dict[str, str]:
    return open_store(folder).trials()["digest"].to_dict()


def test_a_crash_after_any_durability_step_loses_nothing(
    grid: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
):
    for crash in CRASHES:
        assert launch(grid, tmp_path, crash=crash).wait() == -signal.SIGKILL, crash
    assert launch(grid, tmp_path).wait() == 0

    assert digests(tmp_path) == undisturbed[0]
    leftovers = [str(path) for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    leftovers += [str(path) for path in (tmp_path / "checkpoints").glob("*")]
    leftovers += [str(path) for path in (tmp_path / "predictions.zarr/staging").glob("*")]
    assert not leftovers


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_kill_at_any_instant_loses_nothing(
    seed: int, grid: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
):
    expected, seconds = undisturbed
    kill_after(launch(grid, tmp_path), random.Random(seed).uniform(0, seconds))
    assert launch(grid, tmp_path).wait() == 0
    assert digests(tmp_path) == expected


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(KILLS // 2 if KILLS < 20 else KILLS))
def test_a_kill_of_a_sweep_on_a_cluster_loses_nothing(
    seed: int, grid: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
):
    expected, seconds = undisturbed
    # A cluster takes a while to come up: the later half of instants falls into the trials.
    kill_after(launch(grid, tmp_path, "tune"), random.Random(seed).uniform(0, 10 + 2 * seconds))
    assert launch(grid, tmp_path, "tune").wait() == 0
    assert digests(tmp_path) == expected


def kill_after(process: subprocess.Popen, seconds: float) -> None:
    """SIGKILL the whole process group after so long, unless it ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
