"""A Ray cluster whose nodes are hosts of their own, which can lose their power or their network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cluster.hosts import Host, Network, network

ROOT = Path(__file__).parents[2]
PORT = 6379
UP_SECONDS = 120.0
LEAVES_SECONDS = 60.0  # in which Ray leaves a host that its head takes for dead
# Ray takes a node for dead that has said nothing for twenty seconds, and a node its head after ten.
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # else a token is asked for where this user happens to have one
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_prestart_worker_first_driver": "0",
}


class Cluster:
    """A head without slots, and what joins it."""

    def __init__(self, hosts: Network, folder: Path) -> None:
        self.hosts, self._folder = hosts, folder
        self.up: dict[str, Host] = {}
        self._rays: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{self.up['head'].address}:{PORT}"

    def start(self, *names: str, n_cpus: int = 2) -> None:
        """Bring up hosts, all at once, as the cluster's head and nodes."""
        for name in names:
            self.up[name] = self.hosts.add(name)
            self._start(name, 0 if name == "head" else n_cpus)
        self._wait_for(names)

    def start_again(self, name: str, n_cpus: int = 2) -> None:
        """Have a host join that Ray has left by itself, or is about to."""
        self._rays[name].wait(LEAVES_SECONDS)
        self._start(name, n_cpus)
        self._wait_for([name])

    def _wait_for(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + UP_SECONDS
        for name in names:
            while b"Ray runtime started" not in self._said(name).read_bytes():
                said = self._said(name).read_text()
                assert self._rays[name].poll() is None, f"{name} does not come up: {said}"
                assert time.monotonic() < deadline, f"{name} is not up yet: {said}"
                time.sleep(0.2)

    def _start(self, name: str, n_cpus: int) -> None:
        host = self.up[name]
        self._said(name).write_bytes(b"")
        where = ["--address", self.address]
        if name == "head":
            where = ["--head", "--port", str(PORT), "--include-dashboard=false"]
        own = ["--node-ip-address", host.address, "--temp-dir", str(host.tmp)]
        has = ["--num-cpus", str(n_cpus), "--object-store-memory", str(80 << 20)]
        command = ["ray", "start", "--block", *where, *own, *has]
        self._rays[name] = self.run(name, *command, out=self._said(name))

    def _said(self, name: str) -> Path:
        return self._folder / f"{name}.said"

    def kill(self, *names: str) -> None:
        """Hosts lose their power."""
        for name in names:
            self.hosts.kill(name)
            del self.up[name]

    def run(self, name: str, *command: str, out: Path) -> subprocess.Popen[bytes]:
        """Start one of this environment's programs on a host."""
        program = str(Path(sys.executable).parent / command[0])
        return self.hosts.start(
            self.up[name], program, *command[1:], cwd=ROOT, out=out, **_SETTINGS
        )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of no host yet; what is started of it ends with this.

    Parameters
    ----------
    folder : for what the nodes say.
    """
    with network() as hosts:
        yield Cluster(hosts, folder)
