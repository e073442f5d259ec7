"""Which slot runs which order, and what becomes of an order that fails; knows no Ray.

All of it is bookkeeping on a clock that is passed in, so that it can be tested by itself.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.schedule.executor import Event, Halt, Packed, Retry
from sweeper.schedule.packing import Demand, Packing
from sweeper.schedule.patience import Patience
from sweeper.schedule.retry import Breaker, Failure, Retries
from sweeper.schedule.rules import Rules

DEAF_SECONDS = 30.0  # between two polls: the queue, not the slots, was away
BARREN_DEATHS = 5  # of a slot that never asked in between: it cannot start
PROCESSES_KEPT = 16  # of a slot: one that is older than so many has long been dead
LEASE_SECONDS = 120.0  # without a sign of life from its slot, before an order is given to another

_Run = tuple[str, int]  # orders of a shape that stand in line together
_LAST = -1  # the run of what has been tried

Answer = Order | Literal["wait", "leave"]


@dataclass
class _Held:
    """An order in a slot: whose process has it, and when that last spoke."""

    order: Order
    process: str
    spoke: float


@dataclass(frozen=True)
class Polled:
    """What the driver hears of the leases."""

    events: list[Event]
    condemned: list[int]  # slots whose process is to be killed
    demands: list[Demand]
    is_done: bool
    barren: str  # why slots die before they ask for an order; empty while they do not


class Leases:
    """The orders of a sweep, each leased to one slot at a time until it ends.

    A slot's process asks with `lease`, says with `beat` that it lives, and answers with `report`.
    A new process of a slot that holds an order means that the one before has died. An order whose
    attempt fails waits to be run again, last in line, for as long as its failure is worth it.

    Parameters
    ----------
    orders : in the order in which they are to run; those of one shape together.
    has_gpus : whether slots have shares of GPUs; without, every slot fits every order.
    clock : seconds.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        rules: Rules,
        has_gpus: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting: dict[_Run, deque[Order]] = {}
        runs = itertools.groupby(orders, key=lambda order: order.shape)
        for i, (shape, of_shape) in enumerate(runs):
            self._waiting[shape, i] = deque(of_shape)
        self._later: list[tuple[float, int, Order]] = []  # a heap of what backs off
        self._sequence = itertools.count()
        self._held: dict[int, _Held] = {}
        self._processes: dict[int, deque[str]] = {}  # of each slot, the newest last
        self._deaths: Counter[int] = Counter()  # of each slot since it last asked
        self._barren = ""
        self._doomed: dict[int, str] = {}  # of each slot the process that is to be killed
        self._condemned: set[int] = set()  # slots whose process is to be killed
        self._has_gpus, self._clock = has_gpus, clock
        self._packing, self._patience = Packing(rules), Patience(rules)
        self._retries, self._breaker = Retries(), Breaker()
        self._events: list[Event] = []
        self._draining = False
        self._polled = clock()

    # --- what slots say -------------------------------------------------------------------

    def lease(self, slot: int, process: str = "", per_gpu: int = 1) -> Answer:
        """The slot's next order; `wait` while there may be one; `leave` when there is none for it.

        Parameters
        ----------
        per_gpu : how many slots of this size share a GPU.
        """
        if self._doomed.get(slot) == process or not self._is_newest(slot, process):
            return "leave"
        self._deaths.pop(slot, None)
        if slot in self._held:
            self._lose(slot, "its worker died")
        if self._draining:
            return "leave"
        self._wake()
        run = self._choose(per_gpu)
        if run is not None:
            return self._give(slot, process, run, per_gpu)
        if self._waiting:  # for slots of another size: this one makes room for them
            return "leave"
        return "wait" if self._held or self._later else "leave"

    def beat(self, slot: int, process: str, trial_id: str | None) -> bool:
        """Take a sign of life; whether to stop: the sweep drains, or the lease is another's."""
        held = self._held.get(slot)
        is_holder = held is not None and held.process == process
        if held is not None and is_holder:
            held.spoke = self._clock()
        if trial_id is None:
            return self._draining
        is_its = is_holder and held is not None and held.order.trial_id == trial_id
        return self._draining or not is_its

    def report(
        self,
        slot: int,
        event: Progress | Waiting | Outcome | Failure,
        process: str | None = None,
    ) -> None:
        """Take a slot's event; an outcome or failure ends the lease of the trial it names.

        An outcome that comes late, from a process that was taken for dead, counts while the order
        still waits; afterwards its new holder answers for it. A late failure is none: that the
        process was lost has counted.

        Parameters
        ----------
        process : whose word it is; None for that of the slot's holder.
        """
        is_holder = self._is_holder(slot, event.trial_id, process)
        if isinstance(event, Progress):
            if is_holder:
                self._take_progress(self._held[slot].order, event)
        elif isinstance(event, Failure) and not is_holder:
            return
        elif isinstance(event, Waiting):
            self._patience.lives(event.trial_id, self._clock())
            self._events.append(event)
        else:
            order = self._end(slot, event.trial_id, is_holder)
            if order is not None and isinstance(event, Failure):
                self._fail(order, event)
            elif order is not None and isinstance(event, Outcome):
                self._succeed(order, event)

    # --- what the driver says and asks ----------------------------------------------------

    def poll(self, drain: bool) -> Polled:
        """All that the driver asks for, at once; `drain` to give out no more orders."""
        if drain:
            self.drain()
        self._excuse_silence()
        condemned = self.look()
        events, demands = self.take_events(), self.demands()
        return Polled(events, condemned, demands, self.is_done(), self._barren)

    def _excuse_silence(self) -> None:
        """Start to wait anew when nobody could be heard: signs of life may be in the mail."""
        now = self._clock()
        if now - self._polled > DEAF_SECONDS:
            for held in self._held.values():
                held.spoke = now
        self._polled = now

    def died(self, slot: int, reason: str) -> None:
        """A slot's process has died, as its keeper knows."""
        self._deaths[slot] += 1
        if self._deaths[slot] >= BARREN_DEATHS and not self._held:  # else it is this node alone
            self._barren = reason
        if slot in self._held:
            self._lose(slot, reason)

    def look(self) -> list[int]:
        """Give up what hangs or is silent; the slots whose process is to be killed for it."""
        now = self._clock()
        for slot, held in list(self._held.items()):
            trial_id = held.order.trial_id
            stalled = self._patience.stalled(trial_id, now)
            if self._patience.is_over_limit(trial_id, now):
                self._condemn(slot)
                self._exceed(slot)
            elif stalled is not None:
                self._condemn(slot)
                self._lose(slot, f"no step for {stalled:.0f} s: it was taken to hang")
            elif now - held.spoke > LEASE_SECONDS:
                self._condemn(slot)
                self._lose(slot, f"no sign of life for {now - held.spoke:.0f} s")
        condemned, self._condemned = sorted(self._condemned), set()
        return condemned

    def _condemn(self, slot: int) -> None:
        self._condemned.add(slot)
        self._doomed[slot] = self._held[slot].process

    def take_events(self) -> list[Event]:
        """The events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Give out no more orders."""
        self._draining = True

    def is_done(self) -> bool:
        """Whether no order is left to run, or none will be given out and none is held."""
        return not self._held and (self._draining or not (self._waiting or self._later))

    def demands(self) -> list[Demand]:
        """How many orders of each share could start now and how many run, in their order."""
        self._wake()
        ready: Counter[int] = Counter()
        for (shape, _), orders in self._waiting.items():
            ready[self._per_gpu(shape)] += len(orders)
        running = Counter(held.order.per_gpu for held in self._held.values())
        if self._draining:
            ready.clear()
        return [Demand(k, ready[k], running[k]) for k in dict.fromkeys([*ready, *running])]

    # --- orders ---------------------------------------------------------------------------

    def _per_gpu(self, shape: str) -> int:
        return self._packing.per_gpu(shape) if self._has_gpus else 1

    def _choose(self, per_gpu: int) -> _Run | None:
        """The first run that waits for a slot of this size; else a single order for a smaller."""
        smaller = []
        for run in self._waiting:
            needed = self._per_gpu(run[0])
            if needed == per_gpu:
                return run
            if needed > per_gpu:
                smaller.append(run)
        # Several orders for smaller shares are better off with such slots in this one's place.
        is_single = len(smaller) == 1 and len(self._waiting[smaller[0]]) == 1
        return smaller[0] if is_single else None

    def _give(self, slot: int, process: str, run: _Run, per_gpu: int) -> Order:
        order = replace(self._waiting[run].popleft(), per_gpu=per_gpu)
        if not self._waiting[run]:
            del self._waiting[run]
        now = self._clock()
        self._held[slot] = _Held(order, process, now)
        self._patience.begins(order.trial_id, order.shape, now)
        return order

    def _is_holder(self, slot: int, trial_id: str, process: str | None) -> bool:
        held = self._held.get(slot)
        if held is None or held.order.trial_id != trial_id:
            return False
        return process is None or process == held.process

    def _end(self, slot: int, trial_id: str, is_holder: bool) -> Order | None:
        """Take the order off the books; None when the slot's word on it no longer counts."""
        if is_holder:
            return self._held.pop(slot).order
        for order in self._all_waiting():
            if order.trial_id == trial_id:
                self._withdraw(order)
                return order
        return None

    def _all_waiting(self) -> Iterator[Order]:
        yield from itertools.chain.from_iterable(self._waiting.values())
        yield from (order for _, _, order in self._later)

    def _withdraw(self, order: Order) -> None:
        for run, orders in self._waiting.items():
            if order in orders:
                orders.remove(order)
                if not orders:
                    del self._waiting[run]
                return
        self._later = [entry for entry in self._later if entry[2] != order]
        heapq.heapify(self._later)

    def _wake(self) -> None:
        """Put what has backed off for long enough back in line, at its end."""
        while self._later and self._later[0][0] <= self._clock():
            order = heapq.heappop(self._later)[2]
            self._waiting.setdefault((order.shape, _LAST), deque()).append(order)

    def _put_first(self, order: Order) -> None:
        """Put an order at the head of the line."""
        run = next(iter(self._waiting), None)
        if run is None or run[0] != order.shape:
            run = order.shape, -2 - next(self._sequence)  # like no other
            self._waiting = {run: deque(), **self._waiting}
        self._waiting[run].appendleft(order)

    def _is_newest(self, slot: int, process: str) -> bool:
        """Whether the process is the slot's newest: one not seen before is."""
        known = self._processes.setdefault(slot, deque(maxlen=PROCESSES_KEPT))
        if process not in known:
            known.append(process)
        return known[-1] == process

    # --- how attempts end -----------------------------------------------------------------

    def _take_progress(self, order: Order, progress: Progress) -> None:
        self._patience.reports(progress, self._clock())
        self._events.append(progress)
        # The first epoch has shown both training and evaluation.
        if progress.epoch >= 1 and self._has_gpus:
            shape, peak, there = order.shape, progress.peak_bytes, progress.device_bytes
            per_gpu = self._packing.measured(shape, peak, there)
            if per_gpu is not None:
                reason = "measured"
                trial_id = progress.trial_id
                self._events.append(Packed(shape, per_gpu, reason, peak, there, trial_id))

    def _succeed(self, order: Order, outcome: Outcome) -> None:
        stopped = outcome.state == "stopped"
        self._patience.ends(order.trial_id, self._clock(), for_good=not stopped)
        self._events.append(outcome)
        self._deaths.clear()
        if not stopped:
            self._retries.forget(order.trial_id)
            self._breaker.completed()
        elif not self._draining:  # its machine asked the worker to leave
            self._put_first(order)

    def _fail(self, order: Order, failure: Failure) -> None:
        now = self._clock()
        delay = self._retries.delay(failure, order.per_gpu if self._has_gpus else 1)
        self._patience.ends(order.trial_id, now, for_good=delay is None)
        if failure.kind == "oom" and self._has_gpus:
            fewer = self._packing.out_of_memory(order.shape, order.per_gpu)
            if fewer is not None:
                packed = Packed(order.shape, fewer, "out of memory", trial_id=order.trial_id)
                self._events.append(packed)
        if delay is None:
            self._give_up(failure)
            return
        self._events.append(Retry(failure, round(delay, 3)))
        heapq.heappush(self._later, (now + delay, next(self._sequence), order))

    def _give_up(self, failure: Failure) -> None:
        self._retries.forget(failure.trial_id)
        self._events.append(failure)
        n_failed = self._breaker.failed(failure)
        if n_failed is not None and not self._draining:
            self._events.append(Halt(failure, n_failed))
            self._draining = True

    def _lose(self, slot: int, reason: str) -> None:
        held = self._held.pop(slot)
        self._fail(held.order, Failure.lost(held.order.trial_id, reason))

    def _exceed(self, slot: int) -> None:
        trial_id = self._held.pop(slot).order.trial_id
        self._patience.ends(trial_id, self._clock(), for_good=True)
        self._retries.forget(trial_id)
        # Not one for the breaker: that several are slow is no sign that all is broken.
        failure = Failure.lost(trial_id, "ran longer than --time-limit", "TimeLimit")
        self._events.append(failure)
