"""Nodes of one cluster that are not alike: other GPUs, a fault that trials meet, other code."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sweeper
from sweeper.attempt import Order, Outcome, Progress
from sweeper.errors import ClusterError
from sweeper.registry import source_hash
from sweeper.schedule.executor import Avoided, Event, Packed, Retry, Tick
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.tune import TuneExecutor

pytestmark = pytest.mark.cluster

STORE_BYTES = 80 << 20


class Nodes:
    """A head without slots, and nodes that are told apart by their environment."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder)}
        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={**head, "object_store_memory": STORE_BYTES},
        )
        self.address = str(self._cluster.address)

    def add(self, kind: str = "", n_gpus: int = 0, **environment: str) -> str:
        """A node joins; its id."""
        resources = {f"accelerator_type:{kind}": 1} if kind else {}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            node = self._cluster.add_node(
                num_cpus=2, num_gpus=n_gpus, resources=resources, object_store_memory=STORE_BYTES
            )
        return str(node.node_id)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.chdir(tmp_path)  # else its nodes would look for code in the working directory
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    nodes = Nodes(folder)
    yield nodes
    nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


def run(
    nodes: Nodes,
    n_trials: int,
    runner: Callable[..., Outcome],
    on_event: Callable[[Event], None] = lambda event: None,
    **order: Any,
) -> list[Event]:
    orders = [Order(f"t{i}", {}, "nowhere", shape="s", **order) for i in range(n_trials)]
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        on_event(event)

    TuneExecutor(address=nodes.address, runner=runner).run(orders, take, lambda: False, Rules())
    return [event for event in events if not isinstance(event, Tick)]


def of(events: Sequence[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def make_runner(seen: Path, n_before: int) -> Callable[..., Outcome]:
    """A trial that fails where the node is bad, and ends elsewhere after so many have failed.

    It writes down what it finds around it.
    """

    def runner(order: Order, should_stop: object, report: Callable[[Progress], None]) -> Outcome:
        kind, gib = os.environ["KIND"], 1 << 30
        there = {"A": 24 * gib, "B": 80 * gib, "": 0}[kind]
        around = [kind, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TMPDIR"]]
        bad = "BAD" in os.environ
        with (seen / f"{'bad' * bad}{order.trial_id}").open("a") as file:
            print(*around, os.getpid(), file=file)
        report(Progress(order.trial_id, 1, 0, 2, kind, "gpu"))
        if bad:
            raise RuntimeError("an unhealthy GPU")
        while len(list(seen.glob("bad*"))) < n_before:
            time.sleep(0.05)
        report(Progress(order.trial_id, 1, 1, 2, kind, "gpu", 1.0, order.per_gpu, 8 * gib, there))
        return Outcome(order.trial_id, 1, "complete", 0.2)

    return runner


def test_a_node_that_fails_what_goes_well_elsewhere_is_avoided(cluster: Nodes, tmp_path: Path):
    bad = cluster.add("A", 1, KIND="A", BAD="1")
    cluster.add("B", 1, KIND="B")

    events = run(cluster, 12, make_runner(tmp_path, n_before=3))

    assert sorted(event.trial_id for event in of(events, Outcome)) == sorted(
        f"t{i}" for i in range(12)
    )
    assert of(events, Failure) == []
    [avoided] = of(events, Avoided)
    assert avoided.node == bad
    assert len(set(avoided.trial_ids)) == 3
    assert "an unhealthy GPU" in avoided.signature
    assert {event.failure.host for event in of(events, Retry)} == {avoided.host}
    assert [(e.kind, e.per_gpu) for e in of(events, Packed)] == [("B", 4)]

    found = [line.split() for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert {kind for kind, *_ in found} == {"A", "B"}
    assert {gpu for _, gpu, *_ in found} == {"0"}
    assert len({tmp for *_, tmp, _ in found}) == len({pid for *_, pid in found})
    assert not any(Path(tmp).exists() for *_, tmp, _ in found)


def copy_of_sweeper(folder: Path) -> Path:
    shutil.copytree(Path(sweeper.__file__).parent, folder / "sweeper")
    return folder / "sweeper"


def test_a_node_with_other_code_is_avoided_and_the_others_go_on(cluster: Nodes, tmp_path: Path):
    other = copy_of_sweeper(tmp_path / "other")
    (other / "more.py").write_text("# of another version\n")
    broken = copy_of_sweeper(tmp_path / "broken")
    (broken / "__init__.py").write_text("import no_such_module\n")
    seen = tmp_path / "seen"
    seen.mkdir()
    cluster.add(KIND="")
    differs = cluster.add(KIND="", PYTHONPATH=str(other.parent))
    fails = cluster.add(KIND="", PYTHONPATH=str(broken.parent))

    def note(event: Event) -> None:  # what runs waits for this
        if isinstance(event, Avoided):
            (seen / f"bad-{event.node}").touch()

    events = run(cluster, 8, make_runner(seen, n_before=2), note)

    assert len(of(events, Outcome)) == 8
    assert of(events, Retry) == of(events, Failure) == []
    avoided = {event.node: event.reason for event in of(events, Avoided)}
    assert set(avoided) == {differs, fails}
    assert "the source of sweeper is" in avoided[differs]
    assert "no_such_module" in avoided[fails]


def test_where_no_node_has_the_drivers_code_nothing_is_run(
    cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plug_in = "plug_in_that_differs"
    for place, text in (("there", "x = 1"), ("here", "x = 2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{plug_in}.py").write_text(text)
    cluster.add(KIND="", PYTHONPATH=str(tmp_path / "there"))
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    source_hash(f"{plug_in}:x")
    (tmp_path / "here" / f"{plug_in}.py").unlink()  # the disk is not the node's
    with pytest.raises(ClusterError, match=f"the source of `{plug_in}:x` is .* there") as told:
        run(cluster, 1, make_runner(tmp_path, 0), plug_ins={f"{plug_in}:x": "0123"})
    assert "install sweeper, its libraries and the plug-ins alike" in told.value.hint
    assert list(tmp_path.glob("t[0-9]*")) == []
