"""Sweeps on a cluster of separate hosts, of which some lose their power or their network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeper.journal import read_events
from sweeper.store import open_store
from tests.cluster.hosts import missing
from tests.cluster.ray_hosts import PORT, ROOT, Cluster, cluster
from tests.faults.sweep_checks import Undisturbed, check_sweep

WORKERS = ("node1", "node2", "node3")
GIVES_UP = 120.0  # seconds in which a driver ends whose cluster is gone
EXIT_OK, EXIT_ERROR, EXIT_STOPPED = 0, 2, 4

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(500)]

# Every step takes its time for as long as there is no gate; with it all are done in no time.
GRID = """
name: hosts
base:
  data.name: digits
  epochs: 3
  record.schedule: manifold
  model: {{name: 'tests.faults.misbehaving:slow', gate: {gate}}}
  optim: {{name: sgd, lr: 0.01, batch_size: 8}}
axes:
  seed: {{range: [0, 24]}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head, three hosts with a slot each, and one without, for drivers."""
    if (reason := missing()) is not None:
        pytest.skip(f"{reason}; tests/faults/ has several nodes on one host")
    with cluster(tmp_path_factory.mktemp("said")) as found:
        found.start("head")
        found.start("login", *WORKERS)
        yield found


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While it is there, training is quick."""
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def grid(gate: Path) -> Path:
    path = gate.with_name("grid.yaml")
    path.write_text(GRID.format(gate=gate))
    return path


@pytest.fixture(scope="module")
def undisturbed(grid: Path, gate: Path) -> Undisturbed:
    """The same grid in one process."""
    gate.touch()
    folder = grid.with_name("undisturbed")
    command = [sys.executable, "-m", "sweeper", "launch", str(grid), "--sweep-dir", str(folder)]
    subprocess.run([*command, "--executor", "local", "-y"], cwd=ROOT, check=True)
    gate.unlink()
    return Undisturbed.of(folder)


class Sweep:
    """A sweep in a folder that all hosts share, and its driver on one of them."""

    def __init__(self, lab: Cluster, grid: Path, folder: Path) -> None:
        self.lab, self.grid, self.folder = lab, grid, folder
        self._said = folder.with_name("said")
        self._driver: subprocess.Popen[bytes] | None = None

    def launch(self, host: str, *options: str, address: str = "", **variables: str) -> None:
        self._driver = self.lab.run(
            host,
            *("python", "-m", "tests.cluster.impatient", "launch", str(self.grid), "-y"),
            *("--sweep-dir", str(self.folder), "--address", address or self.lab.address, *options),
            out=self._said,
            **variables,
        )

    def end(self, seconds: float) -> int:
        """The driver's exit code."""
        assert self._driver
        try:
            code = self._driver.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {seconds} s: {self.said()}")
        assert "Traceback" not in self.said()
        return code

    def said(self) -> str:
        return self._said.read_text()

    def events(self, name: str) -> list[Mapping[str, Any]]:
        events = read_events(self.folder / "journal.jsonl").events
        return [event for event in events if event["event"] == name]

    def hosts(self) -> dict[str, str]:
        """By trial the host of its last attempt."""
        return {event["trial"]: event["host"] for event in self.events("started")}

    def wait_for(self, what: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self._driver
            assert self._driver.poll() is None, f"the driver has ended: {self.said()}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.said()}"
            time.sleep(0.2)

    def check(self, undisturbed: Undisturbed) -> Counter[str]:
        """Fail unless it is as the undisturbed one, every trial run once to its end."""
        told = check_sweep(self.folder, undisturbed)
        finished = Counter(event["trial"] for event in self.events("finished"))
        assert finished == dict.fromkeys(undisturbed.digests, 1)
        return told


@pytest.fixture
def sweep(lab: Cluster, grid: Path, tmp_path: Path, gate: Path) -> Iterator[Sweep]:
    gate.unlink(missing_ok=True)
    made = Sweep(lab, grid, tmp_path / "sweep")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: made._driver and made._driver.kill())
        yield made


def test_a_host_without_power_is_replaced_by_one_that_joins(
    lab: Cluster, sweep: Sweep, undisturbed: Undisturbed, gate: Path
):
    sweep.launch("head")
    sweep.wait_for(lambda: Counter(sweep.hosts().values()) == dict.fromkeys(WORKERS, 1))
    lost = {trial for trial, host in sweep.hosts().items() if host == "node1"}
    lab.kill("node1")
    lab.start("node4")
    sweep.wait_for(lambda: "node4" in sweep.hosts().values())
    sweep.wait_for(lambda: lost <= {event["trial"] for event in sweep.events("retried")})
    gate.touch()
    assert sweep.end(120) == EXIT_OK
    sweep.check(undisturbed)
    assert lost <= {event["trial"] for event in sweep.events("finished") if event["attempt"] == 2}


def test_a_host_that_was_cut_off_changes_nothing_and_comes_back(
    lab: Cluster, sweep: Sweep, undisturbed: Undisturbed, gate: Path
):
    sweep.launch("login", "--limit", "2", "--checkpoint-every", "1h")
    sweep.wait_for(lambda: len(sweep.hosts()) == 2)
    cut = next(iter(sweep.hosts().values()))
    late = {trial for trial, host in sweep.hosts().items() if host == cut}
    lab.hosts.cut(cut)
    sweep.wait_for(lambda: cut not in sweep.hosts().values())
    written = {trial: n_staged(sweep.folder, trial, 1) for trial in late}
    sweep.wait_for(lambda: all(n_staged(sweep.folder, t, 1) > n for t, n in written.items()))
    gate.touch()  # both have at it, and the late attempts have less left to do
    assert sweep.end(60) == EXIT_OK
    gate.unlink()
    lab.hosts.heal(cut)
    store = open_store(sweep.folder)
    assert {store.summary(trial).attempt for trial in late} == {2}
    lab.start_again(cut)
    sweep.launch("login")
    sweep.wait_for(lambda: cut in sweep.hosts().values())
    gate.touch()
    assert sweep.end(120) == EXIT_OK
    sweep.check(undisturbed)


def n_staged(folder: Path, trial: str, attempt: int) -> int:
    """How many files an attempt has written that is not sealed."""
    staged = folder / "predictions.zarr/staging" / trial / str(attempt)
    return sum(path.is_file() for path in staged.rglob("*"))


def test_a_sweep_goes_on_where_its_clusters_head_was_restarted(
    lab: Cluster, sweep: Sweep, undisturbed: Undisturbed, gate: Path
):
    sweep.launch("login")
    sweep.wait_for(lambda: len(sweep.hosts()) == 3)
    lab.kill("head")
    began = time.monotonic()
    assert sweep.end(GIVES_UP) == EXIT_STOPPED
    print(f"the driver has ended {time.monotonic() - began:.0f} s after the head")
    assert "the cluster's head has not answered" in sweep.said()
    assert "launch again to go on" in sweep.said()
    there = list(lab.up)
    lab.kill(*there)
    lab.start("head")
    lab.start(*there)
    sweep.launch("login")
    gate.touch()
    assert sweep.end(120) == EXIT_OK
    sweep.check(undisturbed)


def test_a_driver_that_is_no_node_or_cannot_be_reached_by_them_says_so(lab: Cluster, sweep: Sweep):
    """Each of these once ended in silence: Ray waits for a quarter of an hour, slots for ever."""
    host = lab.add("outside")
    own = ("python", "-m", "http.server", str(PORT), "--bind", "127.0.0.1")
    lab.run("outside", *own, out=sweep.folder.with_name("own"))
    sweep.launch("outside", RAY_gcs_server_request_timeout_seconds="2")
    assert sweep.end(60) == EXIT_ERROR
    assert f"no node of the cluster at `{lab.address}` runs on this host" in sweep.said()
    sweep.launch("outside", address=f"127.0.0.1:{PORT}")
    assert sweep.end(60) == EXIT_ERROR
    assert f"nothing answers at `{host.address}:{PORT}`, which Ray takes it for" in sweep.said()
    lab.start_behind_router("hidden")
    sweep.launch("hidden")
    assert sweep.end(120) == EXIT_ERROR
    assert "the driver's host cannot be reached from here" in sweep.said()
