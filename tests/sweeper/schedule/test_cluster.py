"""Joining a cluster, its nodes, and what each of them answers."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import ray

from sweeper.errors import ClusterError, SweeperError
from sweeper.schedule.cluster import Node, _node, ask_every_node, joined, nodes, of_kind
from sweeper.train.sources.place import data_root

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.50.1
    Python: 3.12.4
This process on node 10.0.0.2 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.fixture
def address():
    """Where something listens, whatever clusters this machine has."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def joining_raises(monkeypatch):
    """Let Ray end with this when a cluster is joined."""

    def use(error):
        def init(**_):
            raise error

        monkeypatch.setattr(ray, "init", init)

    return use


def test_another_version_of_ray_is_named_with_ours(joining_raises, address):
    joining_raises(RuntimeError(MISMATCH))
    with pytest.raises(SweeperError) as refused, joined(address):
        pytest.fail("joined")
    assert str(refused.value) == (
        f"--address: the cluster at `{address}` runs Ray 2.50.1 and Python 3.12.4, and here is "
        "Ray 2.60.0 and Python 3.11.7; the same versions"
    )
    assert "the same versions here and on every node" in refused.value.hint
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError])
def test_a_token_that_is_not_the_clusters_is_asked_for(joining_raises, address, kind):
    """Ray 2.60 makes one by itself, and says of a driver without it that there is no cluster."""
    error = kind("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError("RPC error: InvalidAuthToken: missing or incorrect")
    joining_raises(error)
    with pytest.raises(SweeperError, match="asks for a token") as refused, joined(address):
        pytest.fail("joined")
    assert "RAY_AUTH_TOKEN" in refused.value.hint


def test_what_else_ray_ends_with_is_an_error_of_the_cluster(joining_raises, address):
    joining_raises(RuntimeError("The raylet is gone\nmore of it"))
    with pytest.raises(ClusterError, match=r"RuntimeError: The raylet is gone$"), joined(address):
        pytest.fail("joined")


def test_where_nothing_listens_is_known_at_once(joining_raises):
    joining_raises(AssertionError("asked Ray"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    said = f"no cluster at `{address}` .nothing answers"
    with pytest.raises(SweeperError, match=said), joined(address):
        pytest.fail("joined")


def test_no_cluster_on_this_machine_is_said_in_the_first_line_that_ray_has(joining_raises, address):
    joining_raises(ConnectionError("Could not find any running Ray instance.\nPlease specify"))
    with pytest.raises(SweeperError) as refused, joined(address):
        pytest.fail("joined")
    assert f"no cluster at `{address}` (Could not find any running Ray instance.)" in str(
        refused.value
    )


def test_a_node_is_what_ray_knows_of_it():
    known = {
        "NodeID": "abc",
        "NodeManagerHostname": "gpu-1",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "memory": 1e9},
    }
    node = _node(known)
    assert node == Node("abc", "gpu-1", "10.0.0.1", 16, 8, "H100")
    assert str(node) == "gpu-1 (10.0.0.1)"
    assert of_kind(node.kind).keys() <= known["Resources"].keys()
    head = _node(known | {"Resources": {"memory": 1e9}, "NodeManagerHostname": "10.0.0.1"})
    assert (head.n_cpus, head.n_gpus, head.kind) == (0, 0, "")
    assert str(head) == "10.0.0.1"
    assert of_kind(head.kind) == {}


def its_view() -> tuple[int, str]:
    """What a node's process has: its number, and where data is."""
    return os.getpid(), str(data_root())


def ends_badly() -> None:
    raise LookupError("no such thing\nhere")


@pytest.mark.ray
@pytest.mark.slow
def test_every_node_answers_as_a_slot_would_or_says_why_not(
    tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[3])])
    capfd.readouterr()
    with joined("local", n_cpus=1) as scratch:
        assert scratch.is_dir()
        (node,) = nodes()
        assert node.n_cpus == 1
        told: list[object] = []
        (view,) = ask_every_node(its_view, 120, lambda answer, left: told.append((answer, left)))
        assert told == [(view, [])]
        (failure,) = ask_every_node(ends_badly, 120)
        print("what is said meanwhile")
    assert view.node == failure.node == node
    assert view.problem == ""
    pid, data = view.said
    assert pid != os.getpid()
    assert data == str(tmp_path)
    assert failure.said is None
    assert failure.problem == "LookupError: here"
    assert not scratch.exists()
    assert capfd.readouterr() == ("", "")
    assert not ray.is_initialized()
