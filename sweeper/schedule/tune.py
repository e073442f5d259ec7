"""Slots on a Ray cluster: the driver's side of the queue that they lease trials from.

Ray Tune places and restarts slots (`placement`); which trial runs where, what is run again and how
many share a GPU is decided by the `Leases` in the queue's actor. Ray is never asked what was done:
the store knows.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.attempt import Order
from sweeper.errors import ClusterError, SweeperError
from sweeper.schedule.executor import Event, Runner, Tick
from sweeper.schedule.leases import Leases
from sweeper.schedule.packing import Devices
from sweeper.schedule.rules import Rules
from sweeper.train.memory import MALLOC_SETTINGS
from sweeper.train.sources.place import data_root
from sweeper.trial import run_attempt

if TYPE_CHECKING:
    from sweeper.schedule.placement import Placement

POLL_SECONDS = 0.2  # how often the driver asks for events
COUNT_SECONDS = 5.0  # how often it counts the cluster's devices
END_SECONDS = 30.0  # that Tune may take to end
ANSWER_SECONDS = 10.0  # in which a cluster's address must answer
OBJECT_STORE_BYTES = 128 << 20  # nothing large passes through Ray

_GO_ON = "nothing is lost: launch again to go on"
_SAME_CODE = "sweeper and the plug-ins must be installed alike on every node"

# Read by Tune when it is imported or run: no files of its own, no talk, no signal handlers.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **MALLOC_SETTINGS,  # slots inherit them
}


class TuneExecutor:
    """Runs orders in slots on a Ray cluster (see `Executor`).

    Parameters
    ----------
    threads : processors that a slot has.
    address : of a cluster to join; `local` for one that lives as long as `run`.
    n_slots : slots to ask for; None for as many as the cluster has room for at the moment. A
        cluster that grows does so for slots that wait for a place.
    n_cpus, n_gpus : what a local cluster has; None for what the machine has.
    """

    def __init__(
        self,
        threads: int = 1,
        *,
        address: str = "local",
        n_slots: int | None = None,
        n_cpus: int | None = None,
        n_gpus: int | None = None,
        runner: Runner = run_attempt,
    ) -> None:
        self._threads, self._address, self._asked = threads, address, n_slots
        self._local = {"num_cpus": n_cpus, "num_gpus": n_gpus}
        self._runner = runner
        self.n_slots, self.n_gpus = n_slots or 0, 0  # what there is, while it runs
        self._has_gpus = False

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        rules: Rules,
    ) -> None:
        """Run all orders; returns when each has ended, or when drained.

        Raises
        ------
        ClusterError : the cluster cannot be reached, or is lost on the way.
        """
        if not orders:
            return
        os.environ.update(_TUNE_SETTINGS)
        # That Tune's folder cannot be emptied at once is no error of the sweep.
        folder = tempfile.TemporaryDirectory(prefix="sweeper-", ignore_cleanup_errors=True)
        with folder as scratch, _quiet(Path(scratch)):
            import ray

            self._connect()
            try:
                self._count()
                self._check_room(rules)
                self._has_gpus = self.n_gpus > 0 or (self._is_to_grow and bool(rules.per_gpu))
                queue = _make_queue(orders, rules, self._has_gpus)
                self._serve(queue, on_event, should_stop, Path(scratch))
            finally:
                ray.shutdown()

    def _connect(self) -> None:
        """Start or join the cluster; the process's signals stay as they are."""
        quiet = {"log_to_driver": False, "logging_level": "error"}
        with _signals_kept():
            self._init(quiet)

    def _init(self, quiet: dict[str, Any]) -> None:
        import ray

        if self._address == "local":
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **self._local,
                **quiet,
            )
        else:
            _check_answers(self._address)
            environment = {"env_vars": dict(MALLOC_SETTINGS)}
            try:
                ray.init(address=self._address, runtime_env=environment, **quiet)
            except (ConnectionError, ValueError) as error:
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise _no_cluster(self._address, first) from error

    @property
    def _is_to_grow(self) -> bool:
        """Whether more is asked for of a cluster than it may have at the moment."""
        return self._address != "local" and self._asked is not None

    def _check_room(self, rules: Rules) -> None:
        """Refuse to wait for ever for a slot that has no place, or to leave out its GPU."""
        if rules.per_gpu and not self.n_gpus and not self._is_to_grow:
            hint = "`--slots N` waits for nodes of a cluster that grows"
            raise SweeperError("--per-gpu", "the cluster has no GPU", "one at least", hint)
        if self.n_slots == 0 and not self._is_to_grow:
            raise ClusterError(
                "ray",
                f"no node has {self._threads} processors for a slot",
                "at least one such node",
                "`--slots N` waits for nodes of a cluster that grows",
            )

    def _count(self) -> Devices:
        """What the cluster has at the moment, or what it was asked to grow to.

        Whether slots have GPUs does not change while it runs, though all of them may be gone.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        n_slots = sum(int(node.get("CPU", 0)) // self._threads for node in nodes)
        self.n_gpus, self.n_slots = n_gpus, self._asked or n_slots
        return Devices((self._asked or n_gpus) if self._has_gpus else None, self.n_slots)

    def _serve(
        self,
        queue: Any,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        scratch: Path,
    ) -> None:
        from sweeper.schedule.placement import Placement

        placement = Placement(self._threads, queue.died.remote)
        # Tune blocks for as long as slots live; this thread keeps the signals and the journal.
        placing = _Placing(lambda: placement.run(queue, self._runner, str(data_root()), scratch))
        placing.start()
        try:
            is_done = self._watch(queue, placement, placing, on_event, should_stop)
        finally:
            placement.end()
            placing.join(END_SECONDS)
        if is_done:
            return  # whatever Tune then met on its way out
        if placing.failure is not None:
            raise placing.failure
        raise ClusterError("ray", "Tune ended before the sweep did", hint=_GO_ON)

    def _watch(
        self,
        queue: Any,
        placement: Placement,
        placing: _Placing,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Follow the queue for as long as Tune runs; whether every order has ended."""
        import ray

        devices, counted = self._count(), time.monotonic()
        while placing.is_alive():
            found = ray.get(queue.poll.remote(should_stop()))
            for event in found.events:
                on_event(event)
            if found.is_done:
                return True
            if found.barren:
                raise ClusterError("ray", f"no slot can start: {found.barren}", hint=_SAME_CODE)
            if time.monotonic() - counted > COUNT_SECONDS:
                devices, counted = self._count(), time.monotonic()
                on_event(Tick())
            placement.kill(found.condemned)
            placement.want(found.demands, devices)
            placing.join(POLL_SECONDS)
        return False


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


def _no_cluster(address: str, found: str) -> SweeperError:
    hint = "`ray status` on the cluster's head tells whether it is up"
    where = f"no cluster at `{address}` ({found})"
    return SweeperError("--address", where, "`auto`, or the `host:port` of a Ray cluster", hint)


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers, for which Ray would wait a minute twenty times."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, and what else Ray may know
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"nothing answers: {error}") from error


def _make_queue(orders: Sequence[Order], rules: Rules, has_gpus: bool) -> Any:
    """Start the queue beside the driver, so that no other node's end takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=1, scheduling_strategy=here)(Leases)
    return actor.remote(list(orders), rules, has_gpus)


class _Placing(threading.Thread):
    """Runs Tune; `failure` is what it ended with."""

    def __init__(self, place: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._place = place
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._place()
        except BaseException as error:
            self.failure = error


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
    with talk.open("w", buffering=1) as sink:
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
    first = (str(error).strip().splitlines() or [""])[0]
    return ClusterError(
        "ray",
        f"{type(error).__name__}: {first}",
        hint="\n".join([_GO_ON, *(["Ray's last words:", *tail] if tail else [])]),
    )
