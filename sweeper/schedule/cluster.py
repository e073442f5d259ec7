"""A Ray cluster: started here or joined, the nodes that it has, and what each of them answers."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sweeper.errors import ClusterError, SweeperError, first_line
from sweeper.schedule.joining import join
from sweeper.schedule.surroundings import temporary_folder
from sweeper.train.memory import MALLOC_SETTINGS
from sweeper.train.sources.place import ROOT_VARIABLE, data_root

T = TypeVar("T")

HEAD_SECONDS = 60.0  # in which a head must answer, as Ray has it
LEAVE_SECONDS = 10.0  # in which it must take leave
ANSWER_SECONDS = 10.0  # in which the driver must answer a node
TELL_SECONDS = 30.0  # after which it is said that nodes have not answered yet
OBJECT_STORE_BYTES = 128 << 20  # nothing large passes through Ray
_PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", "600")  # seconds until Ray ends a driver
GO_ON = "nothing is lost: launch again to go on"

UNKNOWN = "unknown"  # kind of GPUs

_KIND = "accelerator_type:"  # what Ray calls the resource that names a node's GPUs
_SETTINGS = {  # read by Ray when it starts; slots inherit them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **MALLOC_SETTINGS,
}


@dataclass(frozen=True)
class Node:
    """A node that is up: what it has for slots, and of which kind its GPUs are, if Ray knows."""

    node_id: str
    host: str
    address: str
    n_cpus: int
    n_gpus: int
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.host} ({self.address})" if self.host != self.address else self.host


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a node said, or why it did not."""

    node: Node
    said: T | None
    problem: str = ""


@contextmanager
def joined(
    address: str = "local", n_cpus: int | None = None, n_gpus: int | None = None
) -> Iterator[Path]:
    """Join a cluster, or have one here for as long as this lasts; a folder for scratch.

    What Ray prints goes to a file meanwhile; the process's signals stay as they are.

    Parameters
    ----------
    address : of a cluster to join, as `host:port` or `auto`; `local` for one of this process.
    n_cpus, n_gpus : what a local cluster has; None for what the machine has.

    Raises
    ------
    SweeperError : no cluster answers at the address.
    ClusterError : it is lost on the way, or Ray fails.
    """
    os.environ.update(_SETTINGS)
    if address != "local":
        os.environ.setdefault(*_PATIENCE)
    with temporary_folder(Path(tempfile.gettempdir())) as scratch, _quiet(scratch):
        import ray

        with _signals_kept():
            _connect(address, {"num_cpus": n_cpus, "num_gpus": n_gpus})
        try:
            yield scratch
        finally:
            ray.shutdown() if address == "local" else _leave()


def nodes() -> list[Node]:
    """The nodes that are up, of the cluster that this process has joined.

    Raises
    ------
    ClusterError : its head does not answer.
    """
    import ray

    return [_node(found) for found in _soon(ray.nodes, HEAD_SECONDS) if found["Alive"]]


def _node(found: dict[str, Any]) -> Node:
    has = found["Resources"]
    kinds = [name.removeprefix(_KIND) for name in has if name.startswith(_KIND)]
    return Node(
        found["NodeID"],
        found["NodeManagerHostname"],
        found["NodeManagerAddress"],
        int(has.get("CPU", 0)),
        int(has.get("GPU", 0)),
        min(kinds, default=""),
    )


def kinds(among: Sequence[Node]) -> dict[str, str]:
    """The kind of each node's GPUs, by its id: `UNKNOWN` where Ray knows only those of others."""
    otherwise = UNKNOWN if any(node.kind for node in among) else ""
    return {node.node_id: node.kind or otherwise for node in among}


def of_kind(kind: str) -> dict[str, float]:
    """The resource by which a slot asks for a node whose GPUs are of this kind, if there is one."""
    return {f"{_KIND}{kind}": 0.001} if kind not in ("", UNKNOWN) else {}


def ask_every_node(
    ask: Callable[[], T],
    seconds: float,
    tell: Callable[[Answer[T] | None, Sequence[Node]], None] = lambda answer, left: None,
) -> list[Answer[T]]:
    """Call a function on every node, heads without processors included, all at once.

    Nodes that go meanwhile are left out.

    Parameters
    ----------
    ask : a function of this package or of a plug-in, or a partial of one: it goes by its name.
    seconds : in which a node must answer.
    tell : is told of each answer as it comes, or of none for half a minute, and of the nodes that
        have not answered yet.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    ours = [ray.put(None)]  # in a list, so that a node has to ask this process for it
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        ).remote(list(sys.path), str(data_root()), ask, ours): node
        for node in nodes()
    }
    heard: list[Answer[T]] = []
    deadline, left = time.monotonic() + seconds, dict(asked)
    while left:
        wait = min(max(deadline - time.monotonic(), 0), TELL_SECONDS)
        answers, _ = ray.wait(list(left), num_returns=1, timeout=wait)
        if not answers and time.monotonic() >= deadline:
            answers = list(left)
        if not answers:
            tell(None, list(left.values()))
        for answer in answers:
            heard.append(_heard(left.pop(answer), answer))
            tell(heard[-1], list(left.values()))
    there = {node.node_id for node in nodes()} if any(each.problem for each in heard) else set()
    heard.sort(key=lambda each: list(asked.values()).index(each.node))
    return [each for each in heard if not each.problem or each.node.node_id in there]


def _answer(
    import_path: Sequence[str], data: str, ask: Callable[[], T], drivers: Sequence[Any]
) -> T:
    """On a node: answer as a slot would, with its import path and its data.

    Raises
    ------
    ConnectionError : the driver can be answered, but not be asked, as slots do all the time.
    """
    import ray

    set_up(import_path, data)
    try:
        ray.get(drivers[0], timeout=ANSWER_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as error:
        raise ConnectionError("the driver's host cannot be reached from here") from error
    return ask()


def set_up(import_path: Sequence[str], data: str) -> None:
    """Make this process, on whichever node, look for code and data where the driver does."""
    sys.path[:] = list(dict.fromkeys([*import_path, *sys.path]))
    os.environ[ROOT_VARIABLE] = data


def _heard(node: Node, answer: Any) -> Answer[Any]:
    """What a node has said by now."""
    import ray

    try:
        return Answer(node, ray.get(answer, timeout=0.1))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        return Answer(node, None, "it does not answer")
    except ray.exceptions.RayError as error:
        return Answer(node, None, _last_line(error))


def _last_line(error: BaseException) -> str:
    """The last line of an error, or of what caused it in another process."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


# --- joining --------------------------------------------------------------------------------


def _connect(address: str, local: dict[str, int | None]) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **local,
            **quiet,
        )
        return
    join(address, runtime_env={"env_vars": dict(MALLOC_SETTINGS)}, **quiet)


def _leave() -> None:
    """Leave a cluster; one whose head is gone by ending this process when it comes to its end.

    Else Ray would wait for the head for minutes, and end the process with a code of its own.
    """
    import ray

    lost = sys.exception()
    try:
        _soon(ray.shutdown, LEAVE_SECONDS)
    except ClusterError:
        atexit.register(_end, getattr(lost, "exit_code", ClusterError.exit_code))


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _soon(ask: Callable[[], T], seconds: float) -> T:
    """What a call to the head returns, for which Ray would wait for as long as it takes.

    Raises
    ------
    ClusterError : it does not return; it is left behind.
    """
    said = Future[T]()

    def call() -> None:
        try:
            said.set_result(ask())
        except BaseException as error:
            said.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return said.result(seconds)
    except TimeoutError:
        found = f"the cluster's head has not answered for {seconds:.0f} s"
        raise ClusterError("ray", found, hint=GO_ON) from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Start Ray without giving the process's signals to it, and let it survive the terminal.

    Ray's own handler of SIGTERM would end the driver on the spot. What it starts ignores SIGHUP:
    when a terminal is closed the driver has it checkpoint and ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet(scratch: Path) -> Iterator[None]:
    """Send what Ray and Tune print to a file, and show its end if they fail.

    Tune prints the traceback of every slot that is restarted, which is our normal life. Its C++
    parts write to the file descriptors, so these are redirected too; what shows progress must
    write to a descriptor of its own, made before.
    """
    talk = scratch / "ray.log"
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with talk.open("w", buffering=1, errors="replace") as sink:
        for number in kept:
            os.dup2(sink.fileno(), number)
        sys.stdout = sys.stderr = sink
        try:
            yield
        except (SweeperError, OSError):  # of the driver, not of Ray
            raise
        except Exception as error:
            raise _cluster_error(error, talk) from error
        finally:
            sys.stdout, sys.stderr = streams
            for number, original in kept.items():
                os.dup2(original, number)
                os.close(original)


def _cluster_error(error: Exception, talk: Path) -> ClusterError:
    """What Ray ended with, and the last that it said."""
    tail = talk.read_text(errors="replace").strip().splitlines()[-15:]
    is_remote = hasattr(error, "cause")  # then its own text is a traceback
    return ClusterError(
        "ray",
        _last_line(error) if is_remote else f"{type(error).__name__}: {first_line(error)}",
        hint="\n".join([GO_ON, *(["Ray's last words:", *tail] if tail else [])]),
    )
