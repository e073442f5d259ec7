"""A Slurm cluster of several nodes on this machine: munged, slurmctld, and a slurmd a node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

# One processor a node, and requeued jobs wait 5 s. `urgent` preempts with 25 s of grace.
_CONF = """\
ClusterName=sweeper
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
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
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield _brought_up(folder, n_nodes, started)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _brought_up(folder: Path, n_nodes: int, started: list[subprocess.Popen[bytes]]) -> Slurm:
    ports = _free_ports(1 + n_nodes)
    host = socket.gethostname().partition(".")[0]
    names = [f"n{index + 1}" for index in range(n_nodes)]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
        for name, port in zip(names, ports[1:], strict=True)
    )
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, ports=ports, folder=folder, nodes=nodes))
    (folder / "state").mkdir()
    _start_munge(folder, started)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    for name in names:
        (folder / f"spool.{name}").mkdir()
    commands = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in names)]
    for command in commands:
        _start(folder, command, started, environment)
    found = Slurm(folder, environment)
    _wait_for(lambda: found.run("sinfo", "-h", "-o", "%T %D"), f"idle {n_nodes}", found)
    return found


def _start_munge(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """A munged with a key and a socket of its own."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    paths = {name: f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file")}
    seed = f"--seed-file={folder}/munge.seed"
    command = ["munged", "--foreground", "--force", f"--key-file={key}", *paths.values(), seed]
    _start(folder, command, started, os.environ)


def _start(
    folder: Path,
    command: Sequence[str],
    started: list[subprocess.Popen[bytes]],
    environment: Mapping[str, str],
) -> None:
    path = _path(command[0])
    assert path is not None
    with (folder / f"{command[0]}.out").open("ab") as out:
        started.append(
            subprocess.Popen([path, *command[1:]], env=environment, stdout=out, stderr=out)
        )


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
