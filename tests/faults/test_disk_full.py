"""A sweep on a disk that gets full pauses, says so, and goes on when there is room."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeper import room
from sweeper.attempt import Waiting
from sweeper.cli import main
from sweeper.grid import Trial, expand, load_grid
from sweeper.journal import read_events
from sweeper.plan import make_plan
from sweeper.room import is_full
from sweeper.schedule.driver import Counts, Launch, complete_trials, drive
from sweeper.schedule.local import LocalExecutor
from sweeper.store import open_store
from sweeper.store.seal import seal
from sweeper.store.verify import verify
from sweeper.sweep_dir import SweepDir
from sweeper.trial import size_of
from tests.full_disk import BLOCK, FullDisk, leave, mounted, use_up

GRID = """
name: full
base:
  data.name: digits
  model: {name: fc, widths: [8]}
  optim: {name: adam, lr: 0.01, batch_size: 512}
  record.schedule: log
  epochs: 2
axes: {seed: [0, 1]}
"""

# The command line with a shorter wait between two looks at the disk.
IMPATIENT = """
from sweeper import room
from sweeper.cli import main
room.ROOM_SECONDS = 0.1
main()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk in memory, on which there are few bytes and files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a disk is not permitted here")
        yield folder


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder, and what is in them."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- a snapshot ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A place for a store, how to leave no room in it, and how to make room again."""

    path: Path
    fill: Callable[[], object]
    make_room: Callable[[], object]


@pytest.fixture(params=["bytes", "half a snapshot", "files", "write", "fsync", "quota"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Small:
    """A small disk in memory that has no bytes left, or no files, and one that only says so."""
    if request.param in ("write", "fsync", "quota"):
        step = "fsync" if request.param == "fsync" else "write"
        code = errno.EDQUOT if request.param == "quota" else errno.ENOSPC
        full = FullDisk(request.getfixturevalue("monkeypatch"), step, code)
        return Small(tmp_path / "store", full.fill, full.make_room)
    disk = request.getfixturevalue("disk")
    if request.param == "files":
        fillers = disk / "fillers"
        return Small(disk / "store", lambda: use_up(fillers), lambda: shutil.rmtree(fillers))
    n_bytes = 0 if request.param == "bytes" else 4 * BLOCK
    return Small(disk / "store", lambda: leave(disk, n_bytes), (disk / "filler").unlink)


def test_what_finds_no_room_leaves_nothing_and_succeeds_once_there_is_some(
    small: Small, make_tiny: Callable[..., Any], make_samples: Callable[..., Any], tmp_path: Path
):
    samples = {"test": make_samples(n_samples=5000)}  # 30 kB a snapshot
    expected = make_tiny(tmp_path / "expected", samples)
    digest = open_store(tmp_path / "expected").trial_attributes(expected.sealed())["digest"]
    tiny = make_tiny(small.path, samples)
    writer = tiny.record(stop=2)
    trial = writer.header.trial_id

    def fails(write: Callable[[], object]) -> None:
        small.fill()
        before = tree(small.path)
        for _ in range(2):
            with pytest.raises(OSError, match=r"No space left|quota") as error:
                write()
            assert is_full(error.value)
        after = tree(small.path)
        published = {key: data for key, data in after.items() if not key.startswith("trials/")}
        assert published == before
        assert f"trials/{trial}/zarr.json" not in after
        assert verify(open_store(small.path)).damages == ()
        small.make_room()

    for snapshot in (2, 3):
        fails(lambda snapshot=snapshot: tiny.append(writer, 1, snapshot))
        tiny.append(writer, 1, snapshot)
    fails(lambda: seal(tiny.objects, trial, "complete", writer.attempt))
    assert seal(tiny.objects, trial, "complete", writer.attempt) == digest
    report = verify(open_store(small.path))
    assert (report.n_snapshots, report.damages, report.orphans) == (4, (), ())


# --- a sweep ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "full.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def trials(grid: Path) -> list[Trial]:
    return list(expand(load_grid(grid)).trials)


@pytest.fixture(scope="module")
def expected(trials: list[Trial], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of a sweep that always finds room."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(folder, trials).n_complete == len(trials)
    return digests(folder)


def launch(
    path: Path, trials: list[Trial], on_event: Callable[..., None] = lambda *_: None
) -> Counts:
    folder = SweepDir(path)
    plan = make_plan(trials, complete_trials(folder.root()), size_of)
    asked = Launch("full", GRID, checkpoint_seconds=0)
    return drive(folder, plan, asked, LocalExecutor(), on_event)


def digests(path: Path) -> dict[str, str]:
    return open_store(path).trials()["digest"].to_dict()


class Watch:
    """Follows a sweep that waits for room, and makes some at its fourth word of that."""

    def __init__(self, path: Path, make_room: Callable[[], object]) -> None:
        self.path, self.make_room, self.waits = path, make_room, list[Waiting]()
        self.trees: list[dict[str, bytes]] = []

    def __call__(self, event: Any, counts: Counts) -> None:
        if isinstance(event, Waiting):
            self.waits.append(event)
            if len(self.waits) in (1, 4):
                self.trees.append(tree(self.path))
            if len(self.waits) == 4:
                self.make_room()

    def check(self) -> None:
        """It waited, in words that name the place, and nothing moved meanwhile."""
        assert len(self.waits) >= 4
        for event in self.waits:
            assert event.reason.startswith(f"{self.path}: ")
            assert event.reason.endswith(("No space left on device", "quota exceeded"))
        first, last = (
            {k: v for k, v in seen.items() if _is_result(k, seen)} for seen in self.trees
        )
        assert last == first
        assert last["journal.jsonl"][-1:] in (b"", b"\n")

    def check_journal(self, trials: list[Trial]) -> None:
        """Every line is whole, and there once."""
        found = read_events(SweepDir(self.path).journal)
        assert found.torn == 0
        of_trials = [(kind, trial.trial_id) for trial in trials for kind in ("started", "finished")]
        assert Counter((event["event"], event.get("trial")) for event in found.events) == Counter(
            [("launched", None), *of_trials, ("ended", None)]
        )


def _is_result(name: str, seen: Mapping[str, bytes]) -> bool:
    """No log, no digest of the journal, and not of a seal that is not published: all made anew."""
    if "/trials/" in name:
        group = "/".join(name.split("/")[:3])
        return f"{group}/zarr.json" in seen
    return not name.startswith(("logs/", "status.json", "live.json"))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.01)


@pytest.mark.usefixtures("_impatient")
def test_a_sweep_goes_on_wherever_it_found_the_disk_full(
    disk: Path, trials: list[Trial], expected: dict[str, str]
):
    for n_blocks in range(7, 42, 2):
        sweep, filler = disk / "sweep", leave(disk, n_blocks * BLOCK)
        watch = Watch(sweep, filler.unlink)
        assert launch(sweep, trials, watch).n_complete == len(trials)
        watch.check()
        watch.check_journal(trials)
        assert digests(sweep) == expected
        assert not any(name.endswith(".partial") for name in tree(sweep))
        shutil.rmtree(sweep)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("step", "code"),
    [("write", errno.ENOSPC), ("write", errno.EDQUOT), ("fsync", errno.ENOSPC)],
    ids=["write", "quota", "fsync"],
)
def test_a_sweep_goes_on_from_whatever_step_found_no_room(
    step: str,
    code: int,
    trials: list[Trial],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    disk = FullDisk(monkeypatch, step, code)
    launched = []

    def count(event: Any, counts: Counts) -> None:
        launched.append(disk.n_steps)

    launch(tmp_path / "counted", trials, count)
    # Before the first event what is written down of the launch itself must have found room.
    for at in range(launched[0], disk.n_steps, 6):
        sweep = tmp_path / str(at)
        disk.n_steps, disk.at = 0, at
        watch = Watch(sweep, disk.make_room)
        assert launch(sweep, trials, watch).n_complete == len(trials)
        if watch.waits:  # what can be made again, such as the index, is not waited for
            watch.check()
        watch.check_journal(trials)
        assert digests(sweep) == expected
        disk.make_room()


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line in this process; its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["sweeper", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def paused(disk: Path, grid: Path) -> Iterator[tuple[Any, Path]]:
    """A launch that waits for room, and its sweep directory; `filler` beside it takes the room."""
    sweep = disk / "sweep"
    leave(disk, 24 * BLOCK)
    command = [sys.executable, "-c", IMPATIENT, "launch", str(grid), "-y", "--force"]
    command += ["--sweep-dir", str(sweep), "--executor", "local"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stderr or ():
                if "paused" in line:
                    break
            reason = "No space left on device; paused, goes on as soon as there is room"
            assert line == f"{sweep}: {reason}\n"
            yield process, sweep
        finally:
            process.kill()


def test_a_launch_says_once_that_it_waits_and_ends_as_any_other_when_there_is_room(
    paused: tuple[Any, Path], expected: dict[str, str]
):
    process, sweep = paused
    before = tree(sweep)
    time.sleep(0.5)  # several looks at the disk
    assert tree(sweep) == before
    assert process.poll() is None
    (sweep.parent / "filler").unlink()
    _, rest = process.communicate()
    assert process.returncode == 0
    assert "paused" not in rest
    assert "2/2 trials complete" in rest
    assert digests(sweep) == expected


def test_a_launch_that_is_interrupted_while_it_waits_can_be_resumed(
    paused: tuple[Any, Path], expected: dict[str, str], command: Callable[..., int]
):
    process, sweep = paused
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    assert process.returncode == 4
    assert f"`sweeper resume {sweep}` goes on from the checkpoints" in rest
    assert len(open_store(sweep).complete_ids()) < len(expected)
    (sweep.parent / "filler").unlink()
    assert command("resume", sweep, "--executor", "local", "-y") == 0
    assert digests(sweep) == expected


def test_a_launch_on_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    disk: Path,
    grid: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    leave(disk, 24 * BLOCK)
    assert command("launch", grid, "--sweep-dir", disk / "sweep", "-y") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {disk}/sweep: about ")
    assert f"bytes to write, {24 * BLOCK:,} are free; a disk on which the sweep fits" in said
    assert "--force" in said
    assert not (disk / "sweep").exists()
