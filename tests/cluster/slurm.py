"""A Slurm cluster of several nodes on this machine: munged, slurmctld, and a slurmd a node.

The daemons are started by a keeper, which is this file run as a program. Whatever they and their
jobs leave behind becomes its child, and when the process that made it ends, in whichever way, it
kills them all and removes their folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

JOBS = 1000  # that a cluster may have; by their numbers it does not get in another's way

# One processor a node, and requeued jobs wait 5 s. `urgent` preempts with 25 s of grace.
_CONF = """\
ClusterName=sweeper
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=usual Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=25
PartitionName=urgent Nodes=ALL State=UP PriorityTier=9 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no Slurm can be brought up here; None where it can."""
    absent = [name for name in DAEMONS if _path(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up; its commands find it by `environment`."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """What a command of Slurm's prints. Fails with what it said."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, cwd: Path, *arguments: str, **variables: str) -> str:
        """The number of a job of `sbatch`, submitted from a folder."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **variables)

    def job(self, number: str) -> Mapping[str, str]:
        """What `scontrol` says of a job."""
        words = self.run("scontrol", "show", "--oneliner", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def limit(self, number: str, minutes: int) -> None:
        """Let a job run for so long, from when it started."""
        self.run("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")

    def wait(self, number: str, states: Sequence[str], seconds: float) -> Mapping[str, str]:
        """The job once it is in one of these states."""
        deadline = time.monotonic() + seconds
        while (found := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{self.logs()}"
            time.sleep(0.5)
        return found

    def logs(self) -> str:
        """The last that the daemons said."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in files)


@contextlib.contextmanager
def slurm(n_nodes: int) -> Iterator[Slurm]:
    """A cluster of so many nodes with one processor each, `n1`, `n2`, …; all of it ends with it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    first, conf = JOBS * (1 + secrets.randbelow(60_000)), folder / "slurm.conf"
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    with subprocess.Popen(
        [sys.executable, __file__, str(folder), str(first)],
        env=environment,
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # or what ends a test's process group would end it, too
    ) as keeper:
        assert keeper.stdin is not None
        conf.write_text(_conf(folder, first, n_nodes))
        for command in _daemons(folder, n_nodes):
            print(json.dumps(command), file=keeper.stdin, flush=True)
        found = Slurm(folder, environment)
        _wait_for(lambda: found.run("sinfo", "-h", "-o", "%T %D"), f"idle {n_nodes}", found)
        yield found


def _names(n_nodes: int) -> list[str]:
    return [f"n{index + 1}" for index in range(n_nodes)]


def _conf(folder: Path, first: int, n_nodes: int) -> str:
    ports = _free_ports(1 + n_nodes)
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
        for name, port in zip(_names(n_nodes), ports[1:], strict=True)
    )
    return _CONF.format(host=host, ports=ports, folder=folder, first=first, nodes=nodes)


def _daemons(folder: Path, n_nodes: int) -> Iterator[list[str]]:
    """The command of each, in their order. Munge's has a key and a socket of its own."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    paths = {name: f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file")}
    seed = f"--seed-file={folder}/munge.seed"
    yield ["munged", "--foreground", "--force", f"--key-file={key}", *paths.values(), seed]
    (folder / "state").mkdir()
    yield ["slurmctld", "-D"]
    for name in _names(n_nodes):
        (folder / f"spool.{name}").mkdir()
        yield ["slurmd", "-D", "-N", name]


def _wait_for(ask: Callable[[], str], wanted: str, found: Slurm) -> None:
    """Wait until something says what is wanted; at first nothing may answer."""
    deadline = time.monotonic() + 30
    said = ""
    while said != wanted:
        assert time.monotonic() < deadline, f"{said}: {found.logs()}"
        time.sleep(0.2)
        with contextlib.suppress(AssertionError):
            said = ask()


def _free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# --- the keeper ------------------------------------------------------------------------------


def _keep(folder: Path, first: int) -> None:
    """Start the commands that are read, a line each; after the last leave nothing of them."""
    adopt = 36  # PR_SET_CHILD_SUBREAPER
    assert ctypes.CDLL(None).prctl(adopt, 1, 0, 0, 0) == 0
    # Handlers, since what is ignored would be so in the daemons, too.
    signal.signal(signal.SIGCHLD, lambda *_: _collect())
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    for line in sys.stdin:
        _start(folder, json.loads(line))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:  # whose own children come next
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
        _collect()
    rays = Path("/tmp").glob(f"sw-{os.getuid()}-{first // JOBS}[0-9][0-9][0-9]")
    for path in (folder, *rays):
        shutil.rmtree(path, ignore_errors=True)


def _collect() -> None:
    """Take note of the children that have ended, adopted ones included."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _start(folder: Path, command: Sequence[str]) -> None:
    path = _path(command[0])
    assert path is not None
    with (folder / f"{command[0]}.out").open("ab") as out:
        subprocess.Popen([path, *command[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=out)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
