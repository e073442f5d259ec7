"""Where no cluster can be joined, and clusters whose head is gone: said, and in bounded time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
import ray
from ray._private import services

from sweeper.errors import ClusterError, SweeperError
from sweeper.schedule import cluster
from sweeper.schedule.joining import join

TRIES = "RAY_gcs_server_port_wait_time_s"


@pytest.fixture
def address():
    """Where something listens: on this host's loopback alone."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def own(monkeypatch):
    """This host's own address, as Ray is to find it."""
    return lambda found: monkeypatch.setattr(services, "get_node_ip_address", lambda: found)


@pytest.fixture
def ray_joins(monkeypatch):
    """Let this be Ray's `init`."""
    return lambda init: monkeypatch.setattr(ray, "init", init)


def test_the_loopback_is_for_ray_the_hosts_own_address_and_there_it_must_answer(
    address, own, ray_joins
):
    """Else Ray tries for a quarter of an hour: the network may have come up after the head."""
    joined = []
    ray_joins(lambda address, **_: joined.append(address))
    own("127.0.0.1")
    join(address)
    assert joined == [address]
    own("127.0.0.77")
    meant = address.replace("127.0.0.1", "127.0.0.77")
    with pytest.raises(SweeperError) as refused:
        join(address)
    assert f"no cluster at `{address}` (nothing answers at `{meant}`, which Ray" in str(
        refused.value
    )
    assert joined == [address]


def test_a_cluster_that_is_gone_is_not_waited_for_where_ray_remembers_it(monkeypatch, ray_joins):
    ray_joins(lambda **_: pytest.fail("asked Ray"))
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *_: "127.0.0.1:1")
    monkeypatch.setattr(services, "get_node_ip_address", lambda: "127.0.0.1")
    with pytest.raises(
        SweeperError, match=r"no cluster at `auto` .nothing answers at `127.0.0.1:1`"
    ):
        join("auto")


@pytest.mark.parametrize("given", [None, "7"])
def test_a_head_is_tried_once_unless_the_user_wants_more(
    given, address, own, ray_joins, monkeypatch
):
    own("127.0.0.1")
    monkeypatch.delenv(TRIES, raising=False)
    if given:
        monkeypatch.setenv(TRIES, given)
    seen = []
    ray_joins(lambda **_: seen.append(os.environ[TRIES]))
    join(address)
    assert seen == [given or "1"]
    assert os.environ.get(TRIES) == given


def test_a_driver_on_a_host_that_is_no_node_is_told_so(address, own, ray_joins):
    def init(**_):
        cause = RuntimeError("No node info found matching attributes: '' when trying to resolve")
        raise ConnectionError("Failed to connect to Ray cluster") from cause

    own("127.0.0.1")
    ray_joins(init)
    with pytest.raises(SweeperError, match=r"no node of the cluster at .* runs on this host") as no:
        join(address)
    assert "--num-cpus 0" in no.value.hint
    assert no.value.exit_code == 2


def test_a_token_that_is_asked_for_and_not_there_is_no_failure_of_the_cluster(
    address, own, ray_joins
):
    def init(**_):
        raise ray.exceptions.AuthenticationError("no authentication token was found")

    own("127.0.0.1")
    ray_joins(init)
    with pytest.raises(SweeperError, match="asks for a token"):
        join(address)


def test_what_no_head_answered_is_said_with_the_last_that_ray_met(address, own, ray_joins):
    def init(**_):
        cause = RuntimeError("Failed to connect to GCS.\nRpcError: Timed out while waiting")
        raise ConnectionError("Failed to connect to Ray cluster") from cause

    own("127.0.0.1")
    ray_joins(init)
    with pytest.raises(SweeperError, match="Ray cluster: RpcError: Timed out while waiting"):
        join(address)


def test_a_head_that_does_not_say_which_nodes_there_are_is_lost(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(ray, "nodes", lambda: over.wait(60) and [])
    monkeypatch.setattr(cluster, "HEAD_SECONDS", 0.01)
    try:
        with pytest.raises(ClusterError, match="head has not answered") as lost:
            cluster.nodes()
    finally:
        over.set()
    assert lost.value.exit_code == 4
    monkeypatch.setattr(ray, "nodes", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cluster.nodes()


SCRIPT = """
    import sys, threading
    import ray
    from sweeper.errors import ClusterError
    from sweeper.schedule import cluster

    cluster.join = lambda *_, **__: None
    cluster.LEAVE_SECONDS = 0.01
    ray.shutdown = threading.Event().wait
    try:
        with cluster.joined("10.0.0.1:6379"):
            raise ClusterError("ray", "it is lost")
    except ClusterError as error:
        print("said")
        sys.exit(error.exit_code)
"""


def test_a_process_that_cannot_take_leave_of_its_cluster_ends_as_it_was_to():
    """Where Ray waits for a head that is gone, its own end of the process would be another."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "said\n"), done.stderr
