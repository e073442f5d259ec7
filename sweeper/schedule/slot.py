"""A slot's process: it leases orders from the driver's queue and runs them one after another."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from sweeper.schedule.code import code_here, difference, forget_sources, own_hash
from sweeper.schedule.executor import Runner
from sweeper.schedule.retry import Failure
from sweeper.schedule.surroundings import own_surroundings

BEAT_SECONDS = 1.0  # between two signs of life
AGREE_SECONDS = 75.0  # in which a node must see the driver's code: NFS may keep names for 60
AGAIN_SECONDS = 5.0  # between two looks at it
WAIT_SECONDS = 0.2  # before a slot that found no order asks again


def occupy(
    queue: Any,
    slot: int,
    per_gpu: int,
    threads: int,
    runner: Runner,
    code: Mapping[str, str],
    plug_ins: Collection[str],
) -> None:
    """Serve in surroundings of its own, unless no trial may run on this node.

    Parameters
    ----------
    code : what the driver runs (`code_here`), with these plug-ins.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(own_surroundings(threads, ray.get_gpu_ids()))
            problem = _problem(queue, code, plug_ins)  # plug-ins see what a trial sees
            if problem and _is_passing(lambda: _problem(queue, code, plug_ins)):
                return  # another process takes this one's place: this one may have loaded old code
        except Exception as error:  # of whatever kind: it is the node's, and no trial's
            reason = f"its worker could not start: {type(error).__name__}: {error}"
            ray.get(queue.died.remote(slot, reason, _node()))
            return
        if problem:
            ray.get(queue.unfit.remote(_node(), problem))
        else:
            serve(queue, slot, per_gpu, runner)


def _problem(queue: Any, code: Mapping[str, str], plug_ins: Collection[str]) -> str:
    """In what the code here differs from the driver's; empty where it does not."""
    source = "the source of sweeper"
    here, drivers = {source: own_hash()}, {source: ray.get(queue.own_hash.remote())}
    return difference(code_here(plug_ins), code) or difference(here, drivers)


def _is_passing(
    ask: Callable[[], str],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Whether a problem is gone within `AGREE_SECONDS`.

    A folder that nodes share is seen as it was for a while after a change, as NFS does.
    """
    deadline = clock() + AGREE_SECONDS
    while clock() < deadline:
        sleep(AGAIN_SECONDS)
        forget_sources()
        if not ask():
            return True
    return False


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def serve(queue: Any, slot: int, per_gpu: int, runner: Runner) -> None:
    """Run orders until there is none for this slot, or until it is told to leave.

    An attempt that raises is reported and raises on, so that the process ends: no trial runs in
    what a failed one left behind. SIGTERM and SIGUSR1, as before a preemption, make the attempt
    checkpoint and the slot leave; so does the loss of the queue. To be called in the main thread.

    Parameters
    ----------
    queue : the handle of the actor that is the driver's `Leases`.
    """
    process, node, alive = uuid.uuid4().hex, _node(), _Pulse(queue, slot)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: alive.leaving.set())
    alive.start(process)
    while not alive.leaving.is_set():
        order = ray.get(queue.lease.remote(slot, process, per_gpu, node))
        if order == "leave":
            return
        if order == "wait":
            time.sleep(WAIT_SECONDS)
            continue
        try:
            with alive.working_on(order.trial_id):
                event: Any = runner(
                    order, alive.should_stop, lambda said: queue.report.remote(slot, said, process)
                )
        except Exception as error:
            ray.get(queue.report.remote(slot, Failure.of(order.trial_id, error), process))
            raise
        ray.get(queue.report.remote(slot, event, process))


class _Pulse:
    """Tells the queue that the slot lives, and hears from it whether to stop."""

    def __init__(self, queue: Any, slot: int) -> None:
        self.leaving = threading.Event()
        self._queue, self._slot = queue, slot
        self._trial_id: str | None = None
        self._stop = threading.Event()

    def start(self, process: str) -> None:
        threading.Thread(target=self._beat, args=(process,), daemon=True).start()

    @contextmanager
    def working_on(self, trial_id: str) -> Iterator[None]:
        """While the trial runs."""
        self._trial_id, self._stop = trial_id, threading.Event()
        try:
            yield
        finally:
            self._trial_id = None

    def should_stop(self) -> bool:
        """Whether the trial that runs is to checkpoint and end."""
        return self._stop.is_set() or self.leaving.is_set()

    def _beat(self, process: str) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            trial_id, stop = self._trial_id, self._stop
            told = self._queue.beat.remote(self._slot, process, trial_id)
            try:
                if ray.get(told, timeout=60):
                    stop.set()
            except ray.exceptions.GetTimeoutError:
                continue  # a busy queue, or one that is cut off for a while
            except Exception:  # of whatever kind: without its driver the slot leaves
                self.leaving.set()
                return
