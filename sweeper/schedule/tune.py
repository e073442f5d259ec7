"""Slots on a Ray cluster: the driver's side of the queue that they lease trials from.

Ray Tune places and restarts slots (`placement`); which trial runs where, what is run again and how
many share a GPU is decided by the `Leases` in the queue's actor. Ray is never asked what was done:
the store knows.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.attempt import Order
from sweeper.errors import ClusterError, SweeperError
from sweeper.schedule.cluster import GO_ON, Node, joined, kinds, nodes
from sweeper.schedule.code import HINT, code_here
from sweeper.schedule.executor import Event, Runner, Tick
from sweeper.schedule.leases import Leases
from sweeper.schedule.nodes import Site
from sweeper.schedule.packing import Devices
from sweeper.schedule.rules import Rules
from sweeper.train.sources.place import data_root
from sweeper.trial import run_attempt

if TYPE_CHECKING:
    from sweeper.schedule.placement import Placement
    from sweeper.schedule.polled import Polled

POLL_SECONDS = 0.2  # how often the driver asks for events
COUNT_SECONDS = 5.0  # how often it counts the cluster's devices
END_SECONDS = 30.0  # that Tune may take to end

_GONE_HINT = f"{GO_ON} when one has joined; `--slots N` waits for nodes of a cluster that grows"

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
    on_joined : called with the cluster's nodes before anything runs there; what it raises ends it.
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
        on_joined: Callable[[Sequence[Node]], None] = lambda nodes: None,
    ) -> None:
        self._threads, self._address, self._asked = threads, address, n_slots
        self._n_cpus, self._n_gpus = n_cpus, n_gpus
        self._runner, self._on_joined = runner, on_joined
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
        with joined(self._address, self._n_cpus, self._n_gpus) as scratch:
            there = nodes()
            has_gpus = any(node.n_gpus for node in there)
            self._has_gpus = has_gpus or (self._is_to_grow and bool(rules.per_gpu))
            self._count()
            self._check_room(rules)
            self._on_joined(there)
            queue = _make_queue(orders, rules, self._has_gpus, self._is_to_grow)
            plug_ins = sorted({name for order in orders for name in order.plug_ins})
            self._serve(queue, plug_ins, on_event, should_stop, scratch)

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
            beside = " beside a GPU" * self._has_gpus
            raise ClusterError(
                "ray",
                f"no node has {self._threads} processors for a slot{beside}",
                "at least one such node",
                "`--slots N` waits for nodes of a cluster that grows",
            )

    def _count(self, avoided: Collection[str] = ()) -> tuple[Devices, dict[str, Site]]:
        """What the cluster has for slots at the moment, and where.

        Whether slots have GPUs does not change while it runs, though all of them may be gone.
        """
        with_gpus = [node for node in nodes() if node.n_gpus or not self._has_gpus]
        there = [node for node in with_gpus if node.n_cpus >= self._threads]
        of = kinds(there) if self._has_gpus else {node.node_id: "" for node in there}
        gpus, slots = Counter[str](), Counter[str]()
        for node in there:
            if node.node_id not in avoided:
                gpus[of[node.node_id]] += node.n_gpus
                slots[of[node.node_id]] += node.n_cpus // self._threads
        self.n_gpus, self.n_slots = gpus.total(), self._asked or slots.total()
        sites = {node.node_id: Site(node.host, of[node.node_id]) for node in there}
        devices = Devices(slots, gpus if self._has_gpus else None, self._asked, self._is_to_grow)
        return devices, sites

    def _serve(
        self,
        queue: Any,
        plug_ins: Collection[str],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        scratch: Path,
    ) -> None:
        from sweeper.schedule.placement import Placement

        placement, code = Placement(self._threads, queue.died.remote), code_here(plug_ins)
        # Tune blocks for as long as slots live; this thread keeps the signals and the journal.
        placing = _Placing(
            lambda: placement.run(queue, self._runner, code, plug_ins, str(data_root()), scratch)
        )
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
        raise ClusterError("ray", "Tune ended before the sweep did", hint=GO_ON)

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

        (devices, sites), counted = self._count(), time.monotonic()
        avoided: Collection[str] = frozenset()
        news: dict[str, Site] | None = sites
        while placing.is_alive():
            found: Polled = ray.get(queue.poll.remote(should_stop(), news))
            news = None
            for event in found.events:
                on_event(event)
            if found.is_done:
                return True
            if found.barren:
                raise ClusterError("ray", f"no node is left for trials: {found.barren}", hint=HINT)
            if found.stranded:
                raise ClusterError("ray", found.stranded, "at least one such node", _GONE_HINT)
            if found.avoided != avoided or time.monotonic() - counted > COUNT_SECONDS:
                avoided, counted = found.avoided, time.monotonic()
                devices, sites = self._count(avoided)
                news = sites
                on_event(Tick())
            placement.kill(found.condemned)
            placement.want(found, devices, sites)
            placing.join(POLL_SECONDS)
        return False


def _make_queue(orders: Sequence[Order], rules: Rules, has_gpus: bool, grows: bool) -> Any:
    """Start the queue beside the driver, so that no other node's end takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=1, scheduling_strategy=here)(Leases)
    return actor.remote(list(orders), rules, has_gpus, grows=grows)


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
