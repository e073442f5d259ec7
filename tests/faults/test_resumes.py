"""A sweep goes on with more to do, elsewhere, by a newer version, and when it is told to."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeper import sweep_dir
from sweeper.cli import main
from sweeper.journal import read_events
from sweeper.store import open_store
from sweeper.sweep_dir import STALE_SECONDS, SweepDir

ROOT = Path(__file__).parents[2]

# The first trial has the most work and so runs first; the second is slow until its gate is there.
GRID = """
name: resumed
base:
  data.name: digits
  optim: {{name: adam, lr: 0.002, batch_size: 256}}
  record.schedule: log
axes:
  trial:
    - {{model.name: cnn, epochs: 4}}
    - {{model: {{name: 'tests.faults.misbehaving:slow', gate: {gate}}}, epochs: 100}}
  seed: {seeds}
"""


@dataclass
class Done:
    """How a command ended."""

    code: int
    said: str
    printed: str


@pytest.fixture
def sweeper(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["sweeper", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed, said = capfd.readouterr()
        return Done(int(ended.value.code or 0), said, printed)

    return run


@dataclass
class Grid:
    """A grid file, the gate of its slow trials, and the sweep directory of its sweep."""

    path: Path
    gate: Path
    folder: Path

    def write(self, *seeds: int) -> None:
        self.path.write_text(GRID.format(gate=self.gate, seeds=list(seeds)))

    def launching(self, *options: str) -> list[str]:
        options = ("--executor", "local", "--checkpoint-every", "0", "-y", *options)
        return ["launch", str(self.path), "--sweep-dir", str(self.folder), *options]

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = read_events(self.folder / "journal.jsonl").events
        return [event for event in found if event["event"] == kind]

    def digests(self) -> dict[str, str]:
        return open_store(self.folder).trials()["digest"].dropna().to_dict()


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    made = Grid(tmp_path / "grid.yaml", tmp_path / "gate", tmp_path / "sweep")
    made.write(0)
    return made


@contextmanager
def driven(grid: Grid) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in a process of its own, once it runs the slow trial."""
    command = [sys.executable, "-m", "sweeper", *grid.launching()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, **quiet)
    try:
        wait_for(lambda: len(grid.events("started")) == 2, process)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    while not there():
        assert process is None or process.poll() is None, "the driver has ended"
        time.sleep(0.1)


def test_a_grid_that_is_extended_amid_its_sweep_runs_only_what_is_new(
    grid: Grid, sweeper: Callable[..., Done], tmp_path: Path
):
    with driven(grid) as driver:
        assert sweeper("stop", grid.folder).code == 0
        assert driver.wait() == 4
    (stopped,), before = grid.events("stopped"), grid.digests()
    assert len(before) == 1

    grid.write(0, 1)
    grid.gate.touch()
    done = sweeper(*grid.launching())

    assert done.code == 0
    assert "4 trials, 1 complete, 3 to run" in done.said
    again = grid.events("started")[2:]
    assert len({event["trial"] for event in again}) == 3
    assert not before.keys() & {event["trial"] for event in again}
    (went_on,) = (event for event in again if event["trial"] == stopped["trial"])
    assert went_on["step"] > 0
    after = grid.digests()
    assert before.items() <= after.items()
    whole = Grid(grid.path, grid.gate, tmp_path / "undisturbed")
    assert sweeper(*whole.launching()).code == 0
    assert after == whole.digests()


def test_a_second_driver_is_refused_and_what_it_is_told_to_do_helps(
    grid: Grid, sweeper: Callable[..., Done]
):
    with driven(grid) as driver:
        names = ("grid.yaml", "plan.parquet", "manifest.json", "driver.lock")
        before = [(grid.folder / name).read_bytes() for name in names]
        grid.write(0, 1)

        refused = sweeper(*grid.launching())

        assert refused.code == 2
        assert f"held by another driver, process {driver.pid} on {socket.gethostname()}" in (
            refused.said
        )
        assert [(grid.folder / name).read_bytes() for name in names] == before
        assert len(grid.events("launched")) == 1
        assert driver.poll() is None
        (hint,) = re.findall(r"`sweeper (stop [^`]+)`", refused.said)
        assert sweeper(*hint.split()).code == 0
        assert driver.wait() == 4
    grid.gate.touch()
    assert sweeper(*grid.launching()).code == 0
    assert len(grid.digests()) == 4


def test_a_sweep_goes_on_on_another_machine_once_the_first_is_silent(
    grid: Grid, sweeper: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    grid.gate.touch()
    here, lock = socket.gethostname(), grid.folder / "driver.lock"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        sweep_dir.environment.cache_clear()
        assert sweeper(*grid.launching("--limit", "1")).code == 0
    sweep_dir.environment.cache_clear()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 4321}))  # as if killed amid the next
    before = (grid.folder / "manifest.json").read_bytes()

    fresh = sweeper(*grid.launching())
    assert fresh.code == 2
    assert "process 4321 on elsewhere" in fresh.said
    assert (grid.folder / "manifest.json").read_bytes() == before

    then = time.time() - STALE_SECONDS - 20
    os.utime(lock, (then, then))
    assert sweeper("resume", grid.folder, "--executor", "local").code == 0
    assert [event["host"] for event in grid.events("launched")] == ["elsewhere", here]
    assert [event["host"] for event in grid.events("started")] == ["elsewhere", here]
    launches = SweepDir(grid.folder).read_manifest()["launches"]
    assert [launch["host"] for launch in launches] == ["elsewhere", here]
    assert len(grid.digests()) == 2


# A sweeper to come: its ids are of schema 2, in which a batch has 64 samples unless told otherwise.
UPGRADED = """
import dataclasses
from sweeper import config

kept, was = config.upgrade, config.schema()["optim.batch_size"].default
(field,) = (f for f in dataclasses.fields(config.OptimConfig) if f.name == "batch_size")
field.default = 256
assert was != 256
for cached in (config.schema, config._layout):
    cached.cache_clear()
config.SCHEMA_VERSION = 2
config.content_id.__defaults__ = (2,)
config.upgrade = lambda flat, version: {"optim.batch_size": was, **kept(flat, version)}

from sweeper.cli import main
main()
"""


def test_a_sweep_goes_on_after_the_id_schema_was_upgraded(grid: Grid, sweeper: Callable[..., Done]):
    def upgraded(*arguments: object) -> Done:
        command = [sys.executable, "-c", UPGRADED, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stderr, done.stdout)

    grid.gate.touch()
    grid.write(0, 1)
    assert sweeper(*grid.launching("--limit", "3")).code == 0
    before, old = grid.digests(), {event["trial"] for event in grid.events("started")}

    counts = json.loads(upgraded("status", grid.folder, "--json").printed)["counts"]
    assert (counts["complete"], counts["waiting"]) == (3, 1)
    done = upgraded(*grid.launching())

    assert done.code == 0, done.said
    assert "4 trials, 3 complete, 1 to run" in done.said
    (new,) = grid.events("started")[3:]
    assert new["trial"] not in old
    assert set(open_store(grid.folder).complete_ids()) == {*before, new["trial"]}
    assert before.items() <= grid.digests().items()
    counts = json.loads(upgraded("status", grid.folder, "--json").printed)["counts"]
    assert (counts["complete"], counts["waiting"]) == (4, 0)


def test_a_launch_that_stops_by_the_clock_goes_on_from_its_checkpoints(
    grid: Grid, sweeper: Callable[..., Done]
):
    done = sweeper(*grid.launching("--stop-after", "3s"))
    assert done.code == 4
    assert "goes on from the checkpoints" in done.said
    assert [event["reason"] for event in grid.events("ended")] == ["stopped"]
    (stopped,) = grid.events("stopped")
    grid.gate.touch()
    assert sweeper("resume", grid.folder, "--executor", "local").code == 0
    steps = [e["step"] for e in grid.events("started") if e["trial"] == stopped["trial"]]
    assert len(steps) == 2
    assert steps[1] > 0
    assert len(grid.digests()) == 2


def test_a_driver_in_the_background_is_seen_by_status_and_ended_by_stop(
    grid: Grid, sweeper: Callable[..., Done]
):
    command = [sys.executable, "-m", "sweeper", *grid.launching("--detach")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (pid,) = map(int, re.findall(r"process (\d+) drives it", done.stderr))
    try:
        wait_for(lambda: len(grid.events("started")) == 2)
        status = json.loads(sweeper("status", grid.folder, "--json").printed)
        assert status["driver"]["pid"] == pid
        assert (status["counts"]["complete"], status["counts"]["running"]) == (1, 1)
        stopped = sweeper("stop", grid.folder)
        assert stopped.code == 0
        assert f"sweeper resume {grid.folder}" in stopped.said
    finally:
        if SweepDir(grid.folder).driver():
            os.kill(pid, 9)
    assert json.loads(sweeper("status", grid.folder, "--json").printed)["driver"] is None
    assert [event["reason"] for event in grid.events("ended")] == ["stopped"]
    assert "goes on from the checkpoints" in (grid.folder / "driver.log").read_text()
