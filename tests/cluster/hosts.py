"""Separate hosts on this machine: each has its own network, name, processes and temporary folder.

A host is a process in namespaces of its own. When that process ends, all that runs on the host
ends at once and its network is gone, as when a machine loses its power; and it ends with the
process that made it, so that nothing is left behind whatever befalls a test. The hosts share the
file system. The switch between them is a bridge in a network of its own: nothing of this machine's
network is touched, and two runs at once do not see each other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "unshare", "nsenter", "hostname")
PREFIX = "10.77.0."
# The shell collects what its children leave behind, and ends when its input does.
_INIT = 'ip link set lo up && hostname "$0" && echo up && cat; :'
_SWITCH = "ip link add switch type bridge && ip link set switch up && echo up && cat; :"


def missing() -> str | None:
    """Why no hosts can be had here; None where they can."""
    absent = [name for name in TOOLS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2, util-linux, hostname)"
    if os.geteuid() != 0:
        return "namespaces need root"
    try:
        with _namespaces(_SWITCH, "--net"), _namespaces(_INIT, *_OF_A_HOST):
            return None
    except OSError as error:
        return f"namespaces are not permitted: {error}"


@dataclass(frozen=True)
class Host:
    """A host that is up.

    Parameters
    ----------
    pid : of its first process, as the machine that it is on numbers it.
    tmp : its own folder for what is temporary.
    """

    name: str
    address: str
    pid: int
    tmp: Path


class Network:
    """Hosts on one switch, which can be taken off it, put back on, and switched off.

    Parameters
    ----------
    folder : below which every host has a temporary folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._switch = self._stack.enter_context(_namespaces(_SWITCH, "--net"))
        self._up: dict[str, contextlib.ExitStack] = {}
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._names: list[str] = []

    def add(self, name: str) -> Host:
        """A host of this name joins the network, at the address of the last one of that name."""
        if name not in self._names:
            self._names.append(name)
        address, tmp = f"{PREFIX}{self._names.index(name) + 1}", self._folder / name
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        self._up[name], self._started[name] = contextlib.ExitStack(), []
        pid = self._up[name].enter_context(_namespaces(_INIT, *_OF_A_HOST, name=name))
        self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        host = Host(name, address, pid, tmp)
        ip(host, "address", "add", f"{address}/24", "dev", "eth0")
        ip(host, "link", "set", "eth0", "up")
        # To nowhere; but programs ask for the way out in order to learn their own address.
        ip(host, "route", "add", "default", "via", f"{PREFIX}254")
        self.heal(name)
        self._ip("link", "set", name, "up")
        return host

    def start(
        self, host: Host, *command: str, cwd: Path, out: Path, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, with which it ends; what it says goes to a file's end."""
        into = [f"--target={host.pid}", "--net", "--uts", "--pid", "--mount", f"--wd={cwd}"]
        with out.open("ab") as sink:
            process = subprocess.Popen(
                ["nsenter", *into, "--", *command],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self._started[host.name].append(process)
        return process

    def cut(self, name: str) -> None:
        """Take a host off the switch: what it sends and is sent is lost without a word."""
        self._ip("link", "set", name, "nomaster")

    def heal(self, name: str) -> None:
        """Put it back."""
        self._ip("link", "set", name, "master", "switch")

    def kill(self, name: str) -> None:
        """Switch a host off, with all that runs there."""
        self._ip("link", "delete", name)  # first: not a word of farewell
        self._up.pop(name).close()
        for process in self._started.pop(name):
            process.wait()

    def close(self) -> None:
        """Switch all of them off."""
        for name in list(self._up):
            self.kill(name)
        self._stack.close()

    def _ip(self, *arguments: str) -> None:
        _ip(self._switch, *arguments)


_OF_A_HOST = ("--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without hosts; those that join it end with it."""
    folder = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))  # a socket's path must be short
    found = Network(folder)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _namespaces(script: str, *kinds: str, name: str = "host") -> Iterator[int]:
    """Namespaces for as long as this lasts, or this process: the number of their first process.

    Raises
    ------
    OSError : they cannot be had.
    """
    command = ["unshare", *kinds, "sh", "-c", script, name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            if process.stdout.readline() != b"up\n":
                raise OSError(process.stderr.read().decode().strip())
            forked = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield int(forked[0]) if "--fork" in kinds else process.pid
        finally:
            process.kill()


def ip(host: Host, *arguments: str) -> None:
    """Run `ip` on a host."""
    _ip(host.pid, *arguments)


def _ip(pid: int, *arguments: str) -> None:
    """Run `ip` in the network of a process."""
    subprocess.run(["nsenter", f"--target={pid}", "--net", "ip", *arguments], check=True)
