"""A Ray cluster whose nodes are hosts of their own, which can lose their power or their network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cluster.hosts import Host, Network, ip, network

ROOT = Path(__file__).parents[2]
PORT = 6379
HIDDEN = "10.99.0.1"
UP_SECONDS = 120.0
LEAVES_SECONDS = 60.0  # in which Ray leaves a host that its head takes for dead
# A node that says nothing is taken for dead after 16 s instead of 65: either is before the leases
# of its slots run out. A node without a head ends sooner, too.
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # else a token is asked for where this user happens to have one
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_prestart_worker_first_driver": "0",
}


class Cluster:
    """Hosts that are nodes: `head` and `login` without slots, all others with one each."""

    def __init__(self, hosts: Network, folder: Path) -> None:
        self.hosts, self._folder = hosts, folder
        self.up: dict[str, Host] = {}
        self._rays: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{self.up['head'].address}:{PORT}"

    def start(self, *names: str) -> None:
        """Bring up hosts, all at once, as the cluster's head and nodes."""
        for name in names:
            host = self.add(name)
            self._start(name, host.address)
        self._wait_for(names)

    def add(self, name: str) -> Host:
        """Bring up a host that is no node."""
        self.up[name] = self.hosts.add(name)
        return self.up[name]

    def start_behind_router(self, name: str) -> None:
        """Bring up a node that only the head can reach, but that can reach all."""
        host = self.add(name)
        ip(host, "address", "add", f"{HIDDEN}/32", "dev", "lo")
        ip(self.up["head"], "route", "add", f"{HIDDEN}/32", "via", host.address)
        self._start(name, HIDDEN)
        self._wait_for([name])

    def start_again(self, name: str) -> None:
        """Have a host join that Ray has left by itself, or is about to."""
        self._rays[name].wait(LEAVES_SECONDS)
        self._start(name, self.up[name].address)
        self._wait_for([name])

    def _wait_for(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + UP_SECONDS
        for name in names:
            while b"Ray runtime started" not in self._said(name).read_bytes():
                said = self._said(name).read_text()
                assert self._rays[name].poll() is None, f"{name} does not come up: {said}"
                assert time.monotonic() < deadline, f"{name} is not up yet: {said}"
                time.sleep(0.2)

    def _start(self, name: str, address: str) -> None:
        self._said(name).write_bytes(b"")
        where = ["--address", self.address]
        if name == "head":
            where = ["--head", "--port", str(PORT), "--include-dashboard=false"]
        own = ["--node-ip-address", address, "--temp-dir", str(self.up[name].tmp)]
        has = [
            "--num-cpus",
            "0" if name in ("head", "login") else "1",
            "--object-store-memory",
            str(80 << 20),
        ]
        command = ["ray", "start", "--block", *where, *own, *has]
        self._rays[name] = self.run(name, *command, out=self._said(name))

    def _said(self, name: str) -> Path:
        return self._folder / f"{name}.said"

    def kill(self, *names: str) -> None:
        """Hosts lose their power."""
        for name in names:
            self.hosts.kill(name)
            del self.up[name]

    def run(self, name: str, *command: str, out: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start one of this environment's programs on a host."""
        program = str(Path(sys.executable).parent / command[0])
        return self.hosts.start(
            self.up[name], program, *command[1:], cwd=ROOT, out=out, **_SETTINGS, **variables
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
