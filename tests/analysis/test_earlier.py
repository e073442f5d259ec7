"""What an earlier matrix has is copied from it, to the bit, and nothing else is computed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import stages
from analysis import tiles as tiling_of
from analysis.distance import BHATTACHARYYA, KINDS
from analysis.tiles import open_distances
from sweeper.errors import AnalysisError
from sweeper.store import open_store
from tests.analysis.test_squares import Watching, _write_trial

N_SAMPLES = 1000
TRIALS = {"a0": 5, "b0": 9, "c0": 4, "d0": 6}  # snapshots


@pytest.fixture
def kernels(monkeypatch) -> Watching:
    """Counts the pairs that are computed."""
    watching = Watching()
    kind = dataclasses.replace(KINDS[BHATTACHARYYA], kernels=watching)
    monkeypatch.setitem(KINDS, BHATTACHARYYA, kind)
    return watching


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(stages, "TILE", 6)


@pytest.fixture(scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "sweep"
    for trial, n in TRIALS.items():
        _write_trial(folder, trial, {"model.name": trial[0]}, n_snapshots=n, n_samples=N_SAMPLES)
    return folder


@pytest.fixture
def sweep(_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_store, tmp_path / "sweep"))


def add(sweep: Path, trial: str, n: int) -> None:
    _write_trial(sweep, trial, {"model.name": trial[0]}, n_snapshots=n, n_samples=N_SAMPLES)


def distances(sweep: Path, where: str | None = None) -> list[str]:
    said: list[str] = []
    stages.distances(sweep, where, say=said.append)
    return said


def afresh(sweep: Path, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    shutil.copytree(sweep, sweep.parent / "afresh", ignore=shutil.ignore_patterns("analysis"))
    stages.distances(sweep.parent / "afresh", where)
    D = open_distances(sweep.parent / "afresh")
    return D[:, :], D.references


def check_equals(sweep: Path, expected: tuple[np.ndarray, np.ndarray]) -> None:
    D = open_distances(sweep)
    assert np.array_equal(D[:, :], expected[0])
    assert np.array_equal(D.references, expected[1])


@pytest.mark.parametrize(
    ("trials", "n_new"), [({"b5": 3}, 3), ({"a1": 2, "e0": 7}, 9), ({"c1": 6}, 6), ({"0": 13}, 13)]
)
def test_adding_trials_computes_only_their_rows(sweep, kernels, trials, n_new):
    distances(sweep)
    for trial, n in trials.items():
        add(sweep, trial, n)
    kernels.seen.clear()
    said = distances(sweep)
    # With ignorance, each new row once; a new group with itself is a square of which half is used.
    n_old, pairs = 24, kernels.n_pairs
    assert n_new * n_old + n_new * (n_new + 1) // 2 <= pairs - n_new
    assert pairs - n_new <= n_new * n_old + n_new**2
    total = (n_old + n_new) * (n_old + n_new - 1) // 2
    assert f"{276:,} of {total:,} distances were there before" in said
    check_equals(sweep, afresh(sweep))


@pytest.mark.parametrize("where", ["model.name in ['b', 'd']", "model.name == 'c'"])
def test_a_subset_is_only_copied(sweep, kernels, where):
    distances(sweep)
    kernels.seen.clear()
    said = distances(sweep, where)
    assert kernels.seen == []
    M = open_distances(sweep).shape[0]
    assert f"{M * (M - 1) // 2} of {M * (M - 1) // 2} distances were there before" in said
    check_equals(sweep, afresh(sweep, where))


def test_processes_in_other_folders_find_what_is_copied(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    stages.distances(Path(sweep.name))
    add(sweep, "b5", 3)

    def map_elsewhere(task, squares, unfit):
        for square in squares:
            sent = pickle.dumps(task)
            with monkeypatch.context() as there:
                there.chdir(tmp_path.parent)
                done = list(pickle.loads(sent)(square))
            yield done

    said: list[str] = []
    stages.distances(Path(sweep.name), say=said.append, map=map_elsewhere)
    assert [line for line in said if "were there before" in line]
    check_equals(sweep, afresh(sweep))


def test_a_trial_that_came_out_differently_is_computed_again(sweep, kernels, tmp_path):
    distances(sweep)
    other = tmp_path / "other"
    for trial, n in TRIALS.items():
        n = 7 if trial == "c0" else n
        _write_trial(other, trial, {"model.name": trial[0]}, n_snapshots=n, n_samples=N_SAMPLES)
    shutil.copytree(sweep / "analysis", other / "analysis")
    kernels.seen.clear()
    assert f"{20 * 19 // 2} of {27 * 26 // 2} distances were there before" in distances(other)
    check_equals(other, afresh(other))


def test_other_samples_are_not_reused(sweep, kernels, tmp_path):
    distances(sweep)
    other = tmp_path / "other"
    for trial, n in TRIALS.items():
        _write_trial(other, trial, n_snapshots=n, n_samples=N_SAMPLES - 1)
    shutil.copytree(sweep / "analysis", other / "analysis")
    assert not [line for line in distances(other) if "were there before" in line]
    check_equals(other, afresh(other))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["d/c.0.2", "d/c.1.1", "references/c.0.1"])
def test_what_is_damaged_is_not_copied(sweep, name):
    distances(sweep)
    flip(sweep / "analysis" / "distances.zarr" / name)
    add(sweep, "b5", 3)
    distances(sweep)
    check_equals(sweep, afresh(sweep))


class StoppedError(Exception):
    """In the place of a kill."""


def stop_after(n: int):
    def progress(done: float, total: int) -> None:
        if isinstance(done, int) and done >= n:  # not a square that is under way
            raise StoppedError

    return progress


def test_a_run_that_was_stopped_before_more_trials_came_is_reused(sweep, kernels):
    with pytest.raises(StoppedError):
        stages.distances(sweep, progress=stop_after(9))  # of 10 tiles
    add(sweep, "e0", 2)
    kernels.seen.clear()
    [said] = [line for line in distances(sweep) if "were there before" in line]
    assert int(said.split()[0]) >= 276 - 15
    assert kernels.n_pairs < 24 * 25 / 2
    check_equals(sweep, afresh(sweep))
    names = {path.name for path in (sweep / "analysis").iterdir()}
    assert names == {"distances.zarr", "snapshots.parquet", "lock"}


def test_the_one_of_two_stopped_runs_is_kept_of_which_more_is_of_use(sweep, kernels):
    with pytest.raises(StoppedError):
        stages.distances(sweep, progress=stop_after(9))
    add(sweep, "e0", 2)
    with pytest.raises(StoppedError):
        stages.distances(sweep, progress=stop_after(0))
    add(sweep, "f0", 2)
    [said] = [line for line in distances(sweep) if "were there before" in line]
    assert int(said.split()[0]) >= 276 - 15
    check_equals(sweep, afresh(sweep))


def test_a_stopped_run_goes_on_with_what_is_copied_and_what_is_computed(sweep):
    distances(sweep)
    add(sweep, "b5", 3)
    expected = afresh(sweep)
    for n in (2, 4, 7, 9):
        with pytest.raises(StoppedError):
            stages.distances(sweep, progress=stop_after(n))
        assert open_distances(sweep).shape == (24, 24)
    distances(sweep)
    check_equals(sweep, expected)


KILLED = """
import sys
from pathlib import Path
from analysis import stages
stages.TILE = 6
stages.distances(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("crash_at", ["tile:2", "tile:9", "tile-data:4", "publish"])
def test_a_killed_run_leaves_what_was_there_and_goes_on(sweep, crash_at):
    distances(sweep)
    before = open_distances(sweep)[:, :]
    add(sweep, "b5", 3)
    environment = os.environ | {"SWEEPER_CRASH_AT": crash_at}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(sweep)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    if crash_at != "publish":  # between two renames, of which the next run makes the second
        assert np.array_equal(open_distances(sweep)[:, :], before)
    distances(sweep)
    check_equals(sweep, afresh(sweep))


def test_a_disk_without_room_is_refused_with_numbers_before_anything_is_written(sweep, monkeypatch):
    from analysis import fill
    from sweeper.room import Room

    monkeypatch.setattr(fill, "free_room", lambda folder: Room(3000, None))
    with pytest.raises(AnalysisError) as caught:
        distances(sweep)
    n_bytes = 10 * tiling_of.bytes_of(tiling_of.Tiling(24, 6))
    assert f"{n_bytes / 1024:.1f} KiB to write, 2.9 KiB are free" in str(caught.value)
    assert not list((sweep).rglob("distances*"))
    assert open_store(sweep).complete_ids()
