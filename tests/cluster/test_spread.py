"""Distances on several nodes: what a killed process or a lost node had is computed again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from analysis.fill import fill
from analysis.squares import Part, Piece, Plan
from analysis.tiles import Tiling, open_distances
from sweeper.errors import ClusterError, StoreError
from sweeper.schedule.spread import spread
from tests.cluster.test_nodes import Nodes

pytestmark = pytest.mark.cluster

M, TILING, ABOUT = 11, Tiling(11, 2), {"fingerprint": "one"}
EXPECTED = (np.abs(np.arange(M)[:, None] - np.arange(M)) / 7).astype(np.float32)


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    nodes = Nodes(folder)
    nodes.add()
    nodes.add()
    yield nodes
    nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


class Source:
    """|i − j| / 7, a tile a square; leaves a mark of who computed it, and may end its process."""

    def __init__(self, marks: Path, deadly: tuple[int, int] | None = None, times: int = 0) -> None:
        self.marks, self.deadly, self.times = marks, deadly, times

    def plan(self, missing, layout):
        return Plan(tuple((tile,) for tile in missing), 1)

    def compute(self, square, layout, run):
        [tile] = square
        name = f"{tile[0]}.{tile[1]}"
        (self.marks / f"{name}-{time.time_ns()}").write_text(str(os.getppid()))
        n_times = len(list(self.marks.glob(f"{name}-*")))
        if tile == self.deadly and n_times <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # so that both nodes have some
        pieces = [Piece(p, q, np.abs(p.rows[:, None] - q.rows) / 7) for p, q in layout.pairs(tile)]
        references = [(p, np.stack([p.rows, p.rows])) for p, q in layout.pairs(tile) if p is q]
        yield 1.0
        yield Part(tile, pieces, references)


def who(marks: Path) -> set[str]:
    """The raylets below which tiles were computed."""
    return {mark.read_text() for mark in marks.iterdir()}


def test_both_nodes_compute_and_what_a_killed_process_had_is_done_again(two_nodes, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    with spread(two_nodes.address) as (map, n_nodes):
        assert n_nodes == 2
        assert fill(Path("d"), Source(marks, (1, 2), 2), TILING, ABOUT, map) == 21
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)
    assert len(who(marks)) == 2
    assert len(list(marks.iterdir())) == 23


def test_a_process_that_is_killed_each_time_ends_it_and_what_is_finished_is_kept(
    two_nodes, tmp_path
):
    (marks := tmp_path / "marks").mkdir()
    lost = pytest.raises(ClusterError, match="a process was lost 3 times")
    with lost, spread(two_nodes.address) as (map, _):
        fill(Path("d"), Source(marks, (1, 2), 99), TILING, ABOUT, map)
    n_before = len(list(marks.iterdir()))
    fill(Path("d"), Source(marks), TILING, ABOUT)
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)
    assert len(list(marks.iterdir())) - n_before < 21


def test_a_lost_node_is_done_without(two_nodes, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    lost = two_nodes._cluster.list_all_nodes()[-1]

    def progress(done: float, total: int) -> None:
        if isinstance(done, int) and done == 3:
            two_nodes._cluster.remove_node(lost, allow_graceful=False)

    with spread(two_nodes.address) as (map, _):
        fill(Path("d"), Source(marks), TILING, ABOUT, map, progress)
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)


def test_an_error_of_a_call_is_raised_as_it_is(two_nodes, tmp_path):
    def damaged(item):
        raise StoreError("trial t1", "damaged", hint="mend it")

    with pytest.raises(StoreError) as caught, spread(two_nodes.address) as (map, _):
        list(map(damaged, [1, 2]))
    assert str(caught.value) == "trial t1: damaged"
    assert caught.value.hint == "mend it"
