"""A killed run goes on from the sums of squares that were under way, to the same bits."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis import fill as filling
from analysis import underway
from analysis.ahead import spans
from analysis.bhattacharyya import cpu, local_kernels
from analysis.bhattacharyya.portable import Portable, threads
from analysis.blocks import DistanceBlocks, Kernels
from analysis.distance import KINDS
from analysis.fill import fill, map_here
from analysis.select import select
from analysis.tiles import Tiling, open_distances, record_of, unfinished
from analysis.underway import Saved, Underway, begun
from analysis.union import open_union
from sweeper.durable import PARTIAL
from sweeper.room import Room
from tests.analysis.conftest import _write_trial, watched_runs

N_SAMPLES = 2500  # seven steps of the C kernel, a few of the others
TILING = Tiling(17, 6)
ABOUT = {"fingerprint": "one"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 snapshots of three trials, in chunks of all samples."""
    folder = tmp_path_factory.mktemp("underway")
    for trial, n in (("t0", 5), ("t1", 8), ("t2", 4)):
        _write_trial(folder, trial, n_snapshots=n, n_samples=N_SAMPLES)
    return folder


@contextlib.contextmanager
def portable(n_samples: int, n_classes: int) -> Iterator[list[Portable]]:
    with threads(1) as pool:
        yield [Portable(pool, 1, torch.device("cpu"), n_samples)]


@contextlib.contextmanager
def two(n_samples: int, n_classes: int) -> Iterator[list]:
    """As of a machine with two devices of different kinds."""
    with ThreadPoolExecutor(1) as pool:
        yield [cpu.Cpu(pool, 1), Portable(pool, 1, torch.device("cpu"), n_samples)]


HOW: dict[str, Kernels] = {
    "cpu": local_kernels,
    "portable": portable,
    "hellinger": KINDS["hellinger"].kernels,
    "two": two,
}


class InRuns(DistanceBlocks):
    """Reads 640 samples at once, where it would read all."""

    def plan(self, *arguments):
        found = super().plan(*arguments)
        object.__setattr__(found, "run", 640)
        return found


def source(folder: Path, how: str = "cpu", memory: int = 1 << 40) -> InRuns:
    selection = select(open_union([folder]))
    homes = {trial_id: str(folder) for trial_id in selection.homes}
    closed = how != "hellinger"
    return InRuns(homes, selection.rows, "test", functools.partial(int, memory), HOW[how], closed)


class Killed(BaseException):
    """Of which nobody takes notice, as of a kill."""


def killed(folder: Path, to: Path, crash_at: str, how: str = "cpu") -> None:
    """A run that stores its sums after each run of samples, until it is killed."""
    step, _, count = crash_at.partition(":")
    passed: list[str] = []

    def crash(here: str) -> None:
        passed.extend([here] if here == step else [])
        if len(passed) == int(count):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(underway, "SECONDS", 0.0)
        patch.setattr(underway, "SHARE", math.inf)
        for module in (underway, filling):
            patch.setattr(module, "crash_point", crash)
        with pytest.raises(Killed):
            fill(to, source(folder, how), TILING, ABOUT)


@pytest.fixture(scope="module")
def expected(sweep: Path, tmp_path_factory: pytest.TempPathFactory):
    """Distances and references of a run that nothing disturbed, by kernel."""
    found = {}

    def compute(how: str) -> tuple[np.ndarray, np.ndarray]:
        if how not in found:
            to = tmp_path_factory.mktemp(how) / "d.zarr"
            fill(to, source(sweep, how), TILING, ABOUT)
            found[how] = content(to)
        return found[how]

    return compute


def content(path: Path) -> tuple[np.ndarray, np.ndarray]:
    D = open_distances(path)
    return D[:, :], D.references


def assert_same(path: Path, expected: tuple[np.ndarray, np.ndarray]) -> None:
    assert all(map(np.array_equal, content(path), expected))
    assert not (path / "underway").exists()


def go_on(sweep: Path, to: Path, how: str = "cpu", **options) -> tuple[list[str], list[int]]:
    """What is said, and from which sample on each square is read."""
    said: list[str] = []
    with watched_runs() as seen:
        fill(to, source(sweep, how, **options), TILING, ABOUT, say=said.append)
    return said, [first for _, first in seen]


SCRIPT = """
import math, sys
from pathlib import Path
from analysis import underway
from analysis.fill import fill
from tests.analysis.test_underway import ABOUT, TILING, source
underway.SECONDS, underway.SHARE = 0.0, math.inf
fill(Path(sys.argv[2]), source(Path(sys.argv[1])), TILING, ABOUT)
"""


def test_a_process_that_is_killed_leaves_sums_to_go_on_from(sweep, tmp_path, expected):
    to = tmp_path / "d.zarr"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = os.environ | {"SWEEPER_CRASH_AT": "sums:2", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(sweep), str(to)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert go_on(sweep, to)[1] == [1280]
    assert_same(to, expected("cpu"))


@pytest.mark.parametrize("how", HOW)
def test_a_killed_run_goes_on_where_sums_were_stored_to_the_same_bits(
    how, sweep, tmp_path, expected
):
    with HOW[how](N_SAMPLES, 4) as kernels:
        step = math.lcm(*(kernel.step(4) for kernel in kernels))
    first = next(span.last for span in spans(N_SAMPLES, 640, step) if span.last)
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:1", how)
    said, firsts = go_on(sweep, to, how)
    assert firsts == [first]
    share = f"{first / N_SAMPLES:.0%}"
    assert said[0] == f"6 of 6 tiles were under way before, at {share} of the samples"
    assert_same(to, expected(how))


def test_a_run_may_be_killed_again_and_again(sweep, tmp_path, expected):
    to = tmp_path / "d.zarr"
    for _ in range(3):
        killed(sweep, to, "sums:1")
    assert go_on(sweep, to)[1] == [3 * 640]
    assert_same(to, expected("cpu"))


def test_a_square_of_which_some_tiles_are_finished_goes_on_with_the_others(
    sweep, tmp_path, expected
):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "tile:2")
    said, firsts = go_on(sweep, to)
    assert said[0].startswith("4 of 4 tiles were under way before, at ")
    assert firsts == [3 * 640]
    assert_same(to, expected("cpu"))


def test_with_less_memory_squares_are_smaller_and_go_on_all_the_same(
    sweep, tmp_path, expected, monkeypatch
):
    to, whole = tmp_path / "d.zarr", expected("cpu")
    killed(sweep, to, "sums:2")
    monkeypatch.setattr(underway, "SECONDS", 0.0)
    monkeypatch.setattr(underway, "SHARE", math.inf)
    n_files = []
    save = Underway.save

    def counting(self, *arguments):
        save(self, *arguments)
        n_files.append(len(list((unfinished(to) / "underway").iterdir())))

    monkeypatch.setattr(Underway, "save", counting)
    _, firsts = go_on(sweep, to, memory=1_700_000)
    assert len(firsts) > 1
    assert set(firsts) == {1280}
    assert set(n_files) == {2}, "that of the whole, and of what is under way"
    assert_same(to, whole)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 100),  # of the sums
        lambda file: flip(file, -30),  # of what they are
        lambda file: flip(file, -3),  # of where that is
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[8:]),
        lambda file: file.write_bytes(b""),
    ],
    ids=range(6),
)
def test_damaged_sums_are_computed_again(damage, sweep, tmp_path, expected):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:2")
    [file] = (unfinished(to) / "underway").iterdir()
    damage(file)
    assert go_on(sweep, to)[1] == [0]
    assert_same(to, expected("cpu"))


def test_sums_of_another_kernel_are_not_used(sweep, tmp_path, expected):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:2", "cpu")
    assert go_on(sweep, to, "portable")[1] == [0]
    assert_same(to, expected("portable"))


def test_sums_of_something_else_are_removed(sweep, tmp_path, expected):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:2")
    fill(to, source(sweep), TILING, {"fingerprint": "two"})
    assert_same(to, expected("cpu"))


def growing(place: Path) -> Path:
    """A matrix that is not finished."""
    record_of(place).parent.mkdir(parents=True)
    record_of(place).touch()
    return place


def test_sums_are_stored_after_a_while_and_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    now, disk_takes = [0.0], 0.1
    write = underway.write_parts

    def slow(path, parts):
        write(path, parts)
        now[0] += disk_takes

    monkeypatch.setattr(underway.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(underway, "write_parts", slow)
    growing(tmp_path)
    keeping, stored = Underway(tmp_path, ((0, 0),), 0), []
    for minute in range(1, 240):
        disk_takes = 0.1 if minute < 60 else 90.0
        now[0] = 60.0 * minute
        if keeping.is_due():
            keeping.save(minute, minute / 240, {"x": torch.zeros(3).double()})
            [(_, saved)] = begun(tmp_path, [(0, 0)])
            assert (saved.n_samples, saved.share) == (minute, minute / 240)
            stored.append(minute)
    early, late = ([m for m in stored if (m < 60) == is_early] for is_early in (True, False))
    assert set(np.diff(early)) <= {5, 6}
    assert set(np.diff(late)) == {32}, "90 seconds of half an hour"


@pytest.mark.parametrize(("free", "is_stored"), [(1000, True), (999, False), (None, True)])
def test_sums_leave_room_for_tiles(tmp_path, monkeypatch, free, is_stored):
    monkeypatch.setattr(underway, "SECONDS", 0.0)
    monkeypatch.setattr(underway, "free_room", lambda folder: Room(free, None))
    growing(tmp_path)
    Underway(tmp_path, ((0, 0),), 976).save(1, 0.1, {"x": torch.zeros(3).double()})
    assert bool(begun(tmp_path, [(0, 0)])) == is_stored


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_run_that_cannot_store_sums_stores_tiles_all_the_same(
    number, sweep, tmp_path, monkeypatch, expected
):
    def failing(path, parts):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(underway, "SECONDS", 0.0)
    monkeypatch.setattr(underway, "write_parts", failing)
    go_on(sweep, tmp_path / "d.zarr")
    assert_same(tmp_path / "d.zarr", expected("cpu"))


def test_sums_make_way_for_tiles_that_would_not_fit(sweep, tmp_path, monkeypatch, expected):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:2")
    [file] = (unfinished(to) / "underway").iterdir()

    def free(folder: Path) -> Room:
        return Room(100 if file.exists() else 100_000, None)

    monkeypatch.setattr(filling, "free_room", free)
    assert go_on(sweep, to)[1] == [0]
    assert_same(to, expected("cpu"))


def test_a_worker_that_was_given_up_leaves_nothing_where_the_matrix_was_finished(tmp_path):
    place = growing(tmp_path / "d.unfinished.zarr")
    late = Underway(place, ((0, 0),), 0)
    shutil.rmtree(place)
    late.save(1, 0.1, {"x": torch.zeros(3).double()})
    assert not place.exists()


def test_what_another_worker_is_writing_is_not_read_and_what_a_killed_one_left_is_removed(tmp_path):
    place = growing(tmp_path / "d.unfinished.zarr")
    sums = {"x": torch.zeros(3).double()}
    Underway(place, ((0, 0),), 0).save(5, 0.5, sums)
    [file] = (place / "underway").iterdir()
    left = file.rename(file.with_name(f"{file.name}.0{PARTIAL}"))
    other = file.with_name(f"ffffffffffffffff.0{PARTIAL}")
    other.write_bytes(left.read_bytes())
    assert begun(place, [(0, 0)]) == []
    Underway(place, ((0, 0),), 0).save(6, 0.6, sums)
    assert sorted((place / "underway").iterdir()) == sorted([file, other])


def test_sums_that_vanish_while_they_are_read_are_computed_again(
    sweep, tmp_path, monkeypatch, expected
):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:2")
    copy = Saved.copy

    def vanishing(self, name, into):
        if name.startswith("Cpu truth"):
            self.path.unlink(missing_ok=True)
        copy(self, name, into)

    monkeypatch.setattr(Saved, "copy", vanishing)
    assert go_on(sweep, to)[1] == [0]
    assert_same(to, expected("cpu"))


def test_sums_stay_until_the_last_tile_is_recorded(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(underway, "SECONDS", 0.0)
    to = tmp_path / "d.zarr"
    folder, seen = unfinished(to) / "underway", []

    def watching(task, squares, unfit):
        for square in squares:
            yield from map_here(task, [square], unfit)
            seen.append(list(folder.iterdir()))

    def progress(done: float, total: int) -> None:
        if done in (1, 5):
            seen.append(len(list(folder.iterdir())))

    fill(to, source(sweep), TILING, ABOUT, map=watching, progress=progress)
    assert seen == [1, 1, []]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 30), st.data())
def test_what_is_left_is_worked_on_as_it_would_have_been(n_samples, run, step, data):
    whole = [span for span in spans(n_samples, run, step) if span.first < span.last]
    place = data.draw(st.integers(0, len(whole) - 1))
    left = list(spans(n_samples, run, step, whole[place].first))
    worked_on = [(span.first, span.last) for span in left if span.first < span.last]
    assert worked_on == [(span.first, span.last) for span in whole[place:]]
    assert left[0].start == left[0].first


def test_the_folder_is_gone_with_the_matrix(sweep, tmp_path):
    to = tmp_path / "d.zarr"
    killed(sweep, to, "sums:1")
    shutil.rmtree(unfinished(to))
    assert go_on(sweep, to) == (["each snapshot is decoded once"], [0])
