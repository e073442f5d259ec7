"""Distances on several nodes: what a killed process or a lost node had is computed again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from analysis.fill import fill
from analysis.squares import Part, Piece, Plan
from analysis.tiles import Tiling, open_distances
from sweeper.errors import ClusterError, StoreError
from sweeper.schedule import spread as spreading
from sweeper.schedule.spread import spread
from tests.cluster.test_nodes import Nodes

pytestmark = pytest.mark.cluster

M, TILING, ABOUT = 11, Tiling(11, 2), {"fingerprint": "one"}
EXPECTED = (np.abs(np.arange(M)[:, None] - np.arange(M)) / 7).astype(np.float32)


@pytest.fixture
def no_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    nodes = Nodes(folder)
    yield nodes
    nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_nodes(no_nodes: Nodes) -> Nodes:
    no_nodes.add()
    no_nodes.add()
    return no_nodes


@dataclass(frozen=True)
class Rate:
    """What a node answers."""

    rate: float
    sees: tuple[str, ...]


def rate() -> Rate:
    if "BROKEN" in os.environ:
        raise RuntimeError("this node has no such kernel")
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return Rate(float(os.environ.get("RATE", 1)), tuple(os.environ.get(name, "") for name in names))


class Source:
    """|i − j| / 7, a tile a square, by nodes of which RATE is 1 or more.

    Leaves a mark of who computed it. May end its process, or wait for a node of RATE 2.
    """

    def __init__(
        self,
        marks: Path,
        deadly: tuple[int, int] | None = None,
        times: int = 0,
        waits: bool = False,
    ) -> None:
        self.marks, self.deadly, self.times, self.waits = marks, deadly, times, waits

    def plan(self, missing, layout, ask, begun):
        self.answers = [answer for _, answer in ask(rate)]
        return Plan(tuple((tile,) for tile in missing), 1, rate=1)

    def compute(self, square, layout, run, underway):
        [tile] = square
        name = f"{tile[0]}.{tile[1]}"
        mark = f"{os.getppid()} {os.environ.get('RATE', 1)}"
        (self.marks / f"{name}-{time.time_ns()}").write_text(mark)
        n_times = len(list(self.marks.glob(f"{name}-*")))
        if tile == self.deadly and n_times <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # so that both nodes have some
        while self.waits and not any(mark.endswith(" 2") for mark in who(self.marks)):
            time.sleep(0.05)
        pieces = [Piece(p, q, np.abs(p.rows[:, None] - q.rows) / 7) for p, q in layout.pairs(tile)]
        references = [(p, np.stack([p.rows, p.rows])) for p, q in layout.pairs(tile) if p is q]
        yield 1.0
        yield Part(tile, pieces, references)


def who(marks: Path) -> set[str]:
    """The raylets below which tiles were computed, and their nodes' RATE."""
    return {mark.read_text() for mark in marks.iterdir()}


def test_both_nodes_compute_and_what_a_killed_process_had_is_done_again(two_nodes, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    with spread(two_nodes.address) as (map, ask):
        assert fill(Path("d"), Source(marks, (1, 2), 2), TILING, ABOUT, map, ask=ask) == 21
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)
    assert len(who(marks)) == 2
    assert len(list(marks.iterdir())) == 23


def test_a_process_that_is_killed_each_time_ends_it_and_what_is_finished_is_kept(
    two_nodes, tmp_path
):
    (marks := tmp_path / "marks").mkdir()
    lost = pytest.raises(ClusterError, match="a process was lost 3 times")
    with lost, spread(two_nodes.address) as (map, ask):
        fill(Path("d"), Source(marks, (1, 2), 99), TILING, ABOUT, map, ask=ask)
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

    with spread(two_nodes.address) as (map, ask):
        fill(Path("d"), Source(marks), TILING, ABOUT, map, progress, ask=ask)
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)


def test_nodes_are_asked_with_all_that_they_have_and_those_that_will_not_do_compute_nothing(
    no_nodes, tmp_path, capfd
):
    (marks := tmp_path / "marks").mkdir()
    no_nodes.add(n_gpus=2)
    no_nodes.add(RATE="0.5", CUDA_VISIBLE_DEVICES="0")  # hidden from Ray: not for us
    no_nodes.add(BROKEN="1")
    source = Source(marks)
    with spread(no_nodes.address) as (map, ask):
        fill(Path("d"), source, TILING, ABOUT, map, ask=ask)
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)
    assert sorted(source.answers, key=lambda answer: answer.rate) == [
        Rate(0.5, ("", "2")),
        Rate(1, ("0,1", "2")),
    ]
    [only] = who(marks)
    assert only.endswith(" 1")
    assert "is not used: this node has no such kernel" in capfd.readouterr().err


def test_nodes_that_come_are_asked_as_well(no_nodes, tmp_path, monkeypatch):
    (marks := tmp_path / "marks").mkdir()
    no_nodes.add()
    said: list[str] = []

    def asked(question):
        answers = ask(question)
        no_nodes.add(RATE="0.5")
        return answers

    def say(text: str) -> None:
        said.append(text)
        no_nodes.add(RATE="2")

    monkeypatch.setattr(spreading, "say", say)
    with spread(no_nodes.address) as (map, ask):
        fill(Path("d"), Source(marks, waits=True), TILING, ABOUT, map, ask=asked)
    assert np.array_equal(open_distances("d")[:, :], EXPECTED)
    assert {mark.split()[1] for mark in who(marks)} == {"1", "2"}
    [text] = said
    assert text.endswith("is not used: too slow")


def test_without_a_fit_node_it_ends_and_what_is_finished_is_kept(no_nodes, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    fit = no_nodes.add()
    no_nodes.add(RATE="0.5")

    def progress(done: float, total: int) -> None:
        if isinstance(done, int) and done == 3:
            lost = next(n for n in no_nodes._cluster.list_all_nodes() if n.node_id == fit)
            no_nodes._cluster.remove_node(lost, allow_graceful=False)

    left = pytest.raises(ClusterError, match=r"no fit node is left \(.*: too slow\)")
    with left, spread(no_nodes.address) as (map, ask):
        fill(Path("d"), Source(marks), TILING, ABOUT, map, progress, ask=ask)
    assert fill(Path("d"), Source(marks), TILING, ABOUT) == 18


def test_an_error_of_a_call_is_raised_as_it_is(two_nodes, tmp_path):
    def damaged(item):
        raise StoreError("trial t1", "damaged", hint="mend it")

    with spread(two_nodes.address) as (map, ask):
        ask(rate)
        with pytest.raises(StoreError) as caught:
            list(map(damaged, [1, 2], lambda answer: ""))
    assert str(caught.value) == "trial t1: damaged"
    assert caught.value.hint == "mend it"
