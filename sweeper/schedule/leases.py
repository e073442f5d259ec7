"""Which slot runs which order, and what becomes of an order that fails; knows no Ray.

All of it is bookkeeping on a clock that is passed in, so that it can be tested by itself.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Literal

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.schedule.absent import Absent
from sweeper.schedule.code import own_hash
from sweeper.schedule.executor import Avoided, Event, Halt, Packed, Retry
from sweeper.schedule.held import Held, Holders
from sweeper.schedule.line import Line
from sweeper.schedule.nodes import Alive, Nodes, Site
from sweeper.schedule.packing import Demand, Packing, Share
from sweeper.schedule.patience import Patience
from sweeper.schedule.polled import Polled
from sweeper.schedule.retry import BUDGETS, Breaker, Failure, Retries
from sweeper.schedule.rules import Rules
from sweeper.schedule.seats import Place, Seat, Seats

DEAF_SECONDS = 30.0  # between two polls: the queue, not the slots, was away
LEASE_SECONDS = 120.0  # without a sign of life from its slot, before an order is given to another

NODE_IS_GONE, PREEMPTED = "its node is gone", "its node was preempted"

Answer = Order | Literal["wait", "leave"]


class Leases:
    """The orders of a sweep, each leased to one slot at a time until it ends.

    A slot's process asks with `lease`, says with `beat` that it lives, and answers with `report`.
    A new process of a slot that holds an order means that the one before has died. An order whose
    attempt fails waits to be run again, last in line, for as long as its failure is worth it; and
    on another node, if there is one. A node that fails what goes well elsewhere is avoided.

    Parameters
    ----------
    orders : in the order in which they are to run; those of one shape together.
    has_gpus : whether slots have shares of GPUs; without, every slot fits every order.
    clock : seconds.
    grows : whether nodes of a kind that is not there may be waited for.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        rules: Rules,
        has_gpus: bool = False,
        clock: Callable[[], float] = time.monotonic,
        *,
        grows: bool = False,
    ) -> None:
        self._line, self._seats, self._nodes = Line(orders), Seats(), Nodes()
        self._held = Holders()
        self._barren = ""
        self._has_gpus, self._clock, self._grows = has_gpus, clock, grows
        self._packing, self._patience = Packing(rules, has_gpus, grows), Patience(rules)
        self._absent, self._retries, self._breaker = Absent(), Retries(), Breaker()
        self._events: list[Event] = []
        self._draining = False
        self._polled = clock()

    # --- what slots say -------------------------------------------------------------------

    def lease(self, slot: int, process: str = "", per_gpu: int = 1, node: str = "") -> Answer:
        """The slot's next order; `wait` while there may be one; `leave` when there is none for it.

        Parameters
        ----------
        per_gpu : how many slots of this size share a GPU.
        """
        if self._held.is_doomed(slot, process) or not self._seats.is_newest(slot, process):
            return "leave"
        self._seats.asks(slot, Seat(node, per_gpu, self._clock()))
        if slot in self._held:
            self._lose(slot, "its worker died")
        answer = self._answer(slot, process, Share(self._nodes.kind(node), per_gpu), node)
        if answer == "leave":
            self._seats.leaves(slot)
        return answer

    def beat(self, slot: int, process: str, trial_id: str | None) -> bool:
        """Take a sign of life; whether to stop: the sweep drains, or the lease is another's."""
        held = self._held.speaks(slot, process, self._clock())
        is_its = trial_id is None or (held is not None and held.order.trial_id == trial_id)
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
        held = self._held.of(slot, event.trial_id, process)
        if isinstance(event, Waiting):
            self._patience.lives(event.trial_id, self._clock())
            self._events.append(event)
        elif isinstance(event, Outcome):
            node = held.node if held else self._seats.node(slot)
            self._seats.speaks(slot, self._clock())
            order = self._held.end(slot).order if held else self._line.withdraw(event.trial_id)
            if order is not None:
                self._succeed(order, event, node)
        elif held is not None and isinstance(event, Progress):
            self._take_progress(held, event)
        elif held is not None and isinstance(event, Failure):
            self._fail(self._held.end(slot), event)

    def own_hash(self) -> str:
        """The hash of sweeper's own source, as it is now where the driver is."""
        return own_hash()

    def unfit(self, node: str, reason: str) -> None:
        """A slot's process has seen that no trial may run on its node."""
        self._note_avoided(self._nodes.avoid(node, reason))

    # --- what the driver says and asks ----------------------------------------------------

    def poll(self, drain: bool, sites: Mapping[str, Site] | None = None) -> Polled:
        """All that the driver asks for, at once.

        Parameters
        ----------
        drain : whether to give out no more orders.
        sites : the nodes that have room for slots, by their ids; None when nothing has changed.
        """
        if drain:
            self.drain()
        if sites is not None:
            self._nodes.sees(sites)
            bad = self._nodes.avoided
            fit = {site.kind for node, site in sites.items() if node not in bad}
            self._absent.sees(fit)
            self._packing.sees(fit, avoided={site.kind for site in sites.values()} - fit)
        self._excuse_silence()
        condemned, stranded = self.look(), self._stranded()
        nodes, avoided = self._seats.nodes(), self._nodes.avoided
        astray = frozenset(slot for slot, node in nodes.items() if node in avoided)
        held = [one.share for slot, one in self._held if slot not in astray]
        known = {slot: node for slot, node in nodes.items() if self._nodes.is_known(node)}
        return Polled(
            events=self.take_events(),
            condemned=condemned,
            demands=self.demands(),
            running=Counter(held),
            kinds={slot: self._nodes.kind(node) for slot, node in known.items()},
            avoided=avoided,
            astray=astray,
            is_done=self.is_done(),
            barren=self._barren or ("" if self._held else self._nodes.why_none),
            stranded=stranded,
        )

    def _stranded(self) -> str:
        """Tell once of what waits for GPUs that are gone; and what, if nothing else is left."""
        if self._draining:
            return ""
        waiting = [
            (first.shape, [share.kind for share in self._packing.shares(first.shape)], n_orders)
            for first, n_orders in self._line.runs()
        ]
        found = self._absent.stranded(waiting, self._clock())
        self._events += self._absent.news(found)
        n_left = sum(n_orders for *_, n_orders in waiting) - sum(each.n_trials for each in found)
        is_all = not (n_left or self._held or self._line.is_backing_off or self._grows)
        return "; ".join(map(str, found)) if is_all else ""

    def _excuse_silence(self) -> None:
        """Start to wait anew when nobody could be heard: signs of life may be in the mail."""
        now = self._clock()
        if now - self._polled > DEAF_SECONDS:
            self._held.excuse(now)
        self._polled = now

    def died(self, slot: int, reason: str, node: str = "") -> None:
        """A slot's process has died, as its keeper knows; and where, if that is known."""
        node = node or self._seats.node(slot)
        if slot in self._held:
            self._lose(slot, reason)
        if reason in (NODE_IS_GONE, PREEMPTED):
            self._seats.leaves(slot)
            self._nodes.gone(node)
        elif self._seats.died(slot, node):
            self._cannot_start(node, reason)

    def _cannot_start(self, node: str, reason: str) -> None:
        if node:
            self.unfit(node, reason)
        elif not self._held and not self._seats.nodes():
            self._barren = reason

    def look(self) -> list[int]:
        """Give up what hangs or is silent, and nodes; the slots whose process is to be killed."""
        now = self._clock()
        for slot, held in self._held:
            trial_id = held.order.trial_id
            stalled = self._patience.stalled(trial_id, now)
            if self._patience.is_over_limit(trial_id, now):
                self._held.condemn(slot)
                self._exceed(slot)
            elif stalled is not None:
                self._held.condemn(slot)
                self._lose(slot, f"no step for {stalled:.0f} s: it was taken to hang")
            elif now - held.spoke > LEASE_SECONDS:
                self._held.condemn(slot)
                self._lose(slot, f"no sign of life for {now - held.spoke:.0f} s")
        self._note_avoided(self._nodes.judge(self._seats.nodes().values()))
        return self._held.take_condemned()

    def take_events(self) -> list[Event]:
        """The events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Give out no more orders."""
        self._draining = True

    def is_done(self) -> bool:
        """Whether no order is left to run, or none will be given out and none is held."""
        is_left = self._line or self._line.is_backing_off
        return not self._held and (self._draining or not is_left)

    def demands(self) -> list[Demand]:
        """How many orders could start now, in their order, and in which shares."""
        self._line.wake(self._clock())
        ready: Counter[tuple[Share, ...]] = Counter()
        for first, n_orders in self._line.runs():
            ready[self._packing.shares(first.shape)] += n_orders
        return [] if self._draining else [Demand(shares, n) for shares, n in ready.items()]

    # --- orders ---------------------------------------------------------------------------

    def _alive(self) -> dict[Place, bool]:
        return self._seats.alive(self._clock(), self._held)

    def _answer(self, slot: int, process: str, share: Share, node: str) -> Answer:
        if self._draining or node in self._nodes.avoided:
            return "leave"
        if not self._nodes.is_open(node):  # one that has just come, or has gone
            return "wait"
        self._line.wake(self._clock())
        alive = functools.cache(self._alive)  # most orders need no look at it
        others = self._nodes.rests_for(node, alive, self._clock())

        def may(order: Order) -> bool:
            """Whether it is not to be left to another node, which may do better."""
            trial_id, needed = order.trial_id, self._needed(order.shape)
            if self._nodes.tried(trial_id):
                return not self._nodes.is_to_wait(trial_id, node, alive, needed, self._clock())
            return not any(map(needed, others))

        def size(shape: str) -> int:
            return self._packing.needed(shape, share.kind)

        order = self._line.take(size, share.per_gpu, may)
        if order is not None:
            return self._give(slot, process, share, node, order)
        # For slots of another size this one makes room, unless they would find nothing here either.
        for first, _ in self._line.runs():
            needed = size(first.shape)
            if needed != share.per_gpu and (not needed or may(first)):
                return "leave"
        return "wait" if self._line or self._held or self._line.is_backing_off else "leave"

    def _needed(self, shape: str) -> Callable[[str], int]:
        """How many slots of the size that a shape needs share a GPU of a node; 0 for none."""
        of = functools.cache(lambda: {s.kind: s.per_gpu for s in self._packing.shares(shape)})
        return lambda node: of().get(self._nodes.kind(node), 0)

    def _give(self, slot: int, process: str, share: Share, node: str, order: Order) -> Order:
        order, now = replace(order, per_gpu=share.per_gpu), self._clock()
        self._held.give(slot, Held(order, process, node, share, now))
        self._nodes.gives(node, now)
        self._patience.begins(order.trial_id, order.shape, now)
        return order

    # --- how attempts end -----------------------------------------------------------------

    def _take_progress(self, held: Held, progress: Progress) -> None:
        trial_id, shape, kind = progress.trial_id, held.order.shape, held.share.kind
        self._patience.reports(progress, self._clock())
        self._events.append(progress)
        held.step = max(held.step, progress.step)
        self._nodes.reached(trial_id, held.node, progress.step)
        if not self._has_gpus:
            return
        peak, there = progress.peak_bytes, progress.device_bytes
        self._packing.has(kind, there)
        if progress.epoch < 1:  # which will have shown both training and evaluation
            return
        per_gpu = self._packing.measured(shape, peak, there, kind)
        if per_gpu is not None:
            self._events.append(Packed(shape, per_gpu, "measured", peak, there, trial_id, kind))

    def _succeed(self, order: Order, outcome: Outcome, node: str) -> None:
        stopped = outcome.state == "stopped"
        self._patience.ends(order.trial_id, self._clock(), for_good=not stopped)
        self._events.append(outcome)
        if not stopped:
            self._nodes.completed(order.trial_id, node)
            self._retries.forget(order.trial_id)
            self._breaker.completed()
        elif not self._draining:  # its machine asked the worker to leave
            self._line.put_first(order, self._nodes.tried(order.trial_id))

    def _fail(self, held: Held, failure: Failure, is_node_gone: bool = False) -> None:
        order, share, now = held.order, held.share, self._clock()
        if failure.kind == "data" and self._nodes.is_known(held.node):
            self._miss_data(held, failure)
            return
        if failure.kind == "oom" and self._has_gpus:
            self._demote(held)
        is_larger_left = share.per_gpu > 1 or not self._packing.needed(order.shape, share.kind)
        alive, is_tried = functools.cache(self._alive), failure.kind in BUDGETS
        excused = self._tried(held, failure, is_node_gone, alive) if is_tried else frozenset()
        delay = self._retries.delay(
            failure,
            is_larger_left=self._has_gpus and is_larger_left,
            node="" if is_node_gone else held.node,
            excused=excused,
        )
        self._patience.ends(order.trial_id, now, for_good=delay is None)
        if delay is None:
            self._give_up(failure)
            return
        self._events.append(Retry(failure, round(delay, 3)))
        first = is_tried and not is_node_gone and self._nodes.matters(held.node, alive)
        self._nodes.waits(order.trial_id, now + delay)
        tried = self._nodes.tried(order.trial_id)
        self._line.put_later(order, now + delay, tried, first=first)

    def _miss_data(self, held: Held, failure: Failure) -> None:
        """A node is without the data: that is no failure of the trial's."""
        self._patience.ends(failure.trial_id, self._clock(), for_good=False)
        self._events.append(Retry(failure, 0.0))
        self._line.put_first(held.order, self._nodes.tried(failure.trial_id))
        self.unfit(held.node, failure.message)

    def _demote(self, held: Held) -> None:
        trial_id, shape, kind = held.order.trial_id, held.order.shape, held.share.kind
        fewer = self._packing.out_of_memory(shape, held.share.per_gpu, kind)
        if fewer is not None:
            self._events.append(Packed(shape, fewer, "out of memory", trial_id=trial_id, kind=kind))

    def _tried(self, held: Held, failure: Failure, is_node_gone: bool, alive: Alive) -> Set[str]:
        """Note on which node it failed; the nodes whose failures show nothing of the trial."""
        trial_id, nodes = failure.trial_id, self._nodes
        nodes.failed(trial_id, held.node, held.step, failure.signature, is_gone=is_node_gone)
        return nodes.excused(trial_id, alive, self._needed(held.order.shape))

    def _note_avoided(self, found: Sequence[Avoided]) -> None:
        for event in found:
            self._retries.forgive(event.node)
            self._events.append(event)

    def _give_up(self, failure: Failure) -> None:
        self._retries.forget(failure.trial_id)
        self._nodes.ended(failure.trial_id)
        self._events.append(failure)
        n_failed = self._breaker.failed(failure)
        if n_failed is not None and not self._draining:
            self._events.append(Halt(failure, n_failed))
            self._draining = True

    def _lose(self, slot: int, reason: str) -> None:
        held = self._held.end(slot)
        failure = Failure.lost(held.order.trial_id, reason)
        self._fail(held, failure, is_node_gone=reason in (NODE_IS_GONE, PREEMPTED))

    def _exceed(self, slot: int) -> None:
        trial_id = self._held.end(slot).order.trial_id
        reason = "ran longer than --time-limit"
        if not self._patience.has_ended_epoch(trial_id):
            reason += ", before its first epoch ended"
        self._patience.ends(trial_id, self._clock(), for_good=True)
        self._retries.forget(trial_id)
        self._nodes.ended(trial_id)
        # Not one for the breaker: that several are slow is no sign that all is broken.
        failure = Failure.lost(trial_id, reason, "TimeLimit")
        self._events.append(failure)
