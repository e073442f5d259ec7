"""A Ray cluster on this machine whose nodes can be killed like machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80 << 20
_SETTINGS = {  # a cluster that finds out within seconds which of its nodes are gone
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Process:
    """A process as the kernel shows it; `started` tells it from a later one of its number."""

    pid: int
    parent: int
    title: str
    started: str
    state: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def processes() -> dict[int, Process]:
    """All processes that run, dead ones that nobody has waited for left out."""
    found = (_process(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {process.pid: process for process in found if process and process.state != "Z"}


def _process(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return None
    return Process(pid, int(fields[1]), title, fields[19], fields[0])


def below(parent: int, among: dict[int, Process]) -> list[Process]:
    """The descendants of a process, the parent of each before it."""
    children = [process for process in among.values() if process.parent == parent]
    return children + [found for child in children for found in below(child.pid, among)]


class Machines:
    """A head without slots, and nodes with two processors and a pretended GPU each.

    Parameters
    ----------
    folder : below which Ray keeps its own; every process of the cluster has files open there.
    """

    def __init__(self, folder: Path, n_nodes: int) -> None:
        os.environ.update(_SETTINGS)
        self.folder, self._n_nodes = folder, n_nodes
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "temp_dir": str(self.folder),
            },
        )
        self.nodes: list[Any] = []
        self._due: list[float] = []  # when others join
        for _ in range(self._n_nodes):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        """A node joins."""
        self.nodes.append(
            self._cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=OBJECT_STORE_BYTES)
        )

    def replace(self) -> None:
        """Add the nodes that are due."""
        now = time.monotonic()
        due, self._due = [t for t in self._due if t <= now], [t for t in self._due if t > now]
        for _ in due:
            self.add()

    # --- who is there ---------------------------------------------------------------------

    def workers(self, title: str) -> list[Process]:
        """The cluster's processes that work for Ray under this name."""
        return [found for found in self.left() if found.title.startswith(f"ray::{title}")]

    def slots(self) -> list[Process]:
        """The slots' processes, by the names that Tune gives to `_Slot`."""
        return [*self.workers("_Slot"), *self.workers("_Inner")]

    def left(self) -> list[Process]:
        """All processes of the cluster; a driver has files there too, and ends by itself."""
        there = [found for found in processes().values() if "-m sweeper" not in found.title]
        return [found for found in there if _is_below(found.pid, self.folder)]

    # --- what befalls them ----------------------------------------------------------------

    def kill_raylet(self, node: Any, seconds: float) -> None:
        """Kill a node's own process; another node joins after so long."""
        os.kill(_raylet(node), signal.SIGKILL)
        self._lose(node, seconds)

    def kill_machine(self, node: Any, seconds: float) -> None:
        """Kill all that runs on a node, at once; another joins after so long."""
        there = below(_raylet(node), processes())
        os.kill(_raylet(node), signal.SIGKILL)
        for process in there:
            process.kill()
        self._lose(node, seconds)

    def kill_head(self) -> None:
        """Kill the head, where the cluster's own state, drivers and their queues are."""
        head = self._cluster.head_node
        own = [info.process.pid for infos in head.all_processes.values() for info in infos]
        there = [found for pid in own for found in below(pid, processes())]
        for pid in own:
            os.kill(pid, signal.SIGKILL)
        for process in there:
            process.kill()

    def renew(self) -> None:
        """Another cluster in the place of one without a head; its nodes end before."""
        self.close()
        self._start()

    def _lose(self, node: Any, seconds: float) -> None:
        self.nodes.remove(node)
        self._cluster.worker_nodes.remove(node)
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._due.append(time.monotonic() + seconds)

    def close(self) -> list[Process]:
        """Shut the cluster down; the processes that are left of it, which are then killed."""
        self._cluster.shutdown()
        deadline = time.monotonic() + 20
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            process.kill()
        return left


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_below(pid: int, folder: Path) -> bool:
    """Whether a process has a file open below a folder."""
    if pid == os.getpid():
        return False
    try:
        names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(name.startswith(f"{folder}/") for name in names)


@contextlib.contextmanager
def machines(n_nodes: int) -> Iterator[Machines]:
    """A cluster of so many nodes. Fails if a process of it outlives it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    made = Machines(folder, n_nodes)
    try:
        yield made
    finally:
        left = made.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left of the cluster: {left}"
