"""Which slot runs which order; knows no Ray, so that it can be tested by itself."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal

from sweeper.attempt import Order, Outcome
from sweeper.schedule.executor import Event, Failure, Lost
from sweeper.schedule.retry import LOST_BUDGET


class Leases:
    """The orders of a sweep, each leased to one slot at a time until it ends.

    A slot asks with `lease` and answers with `report`. A slot that asks while it holds a lease
    has died and come back: its order is lost, and waits to be run again, last in line.
    """

    def __init__(self, orders: Sequence[Order]) -> None:
        self._waiting = deque(orders)
        self._held: dict[int, Order] = {}
        self._lost: Counter[str] = Counter()
        self._events: list[Event] = []
        self._draining = False

    def lease(self, slot: int) -> Order | Literal["wait", "leave"]:
        """The slot's next order; `wait` while others' orders may come back; `leave` at the end."""
        if slot in self._held:
            self._lose(self._held.pop(slot))
        if self._waiting and not self._draining:
            order = self._waiting.popleft()
            self._held[slot] = order
            return order
        return "leave" if self._draining or not self._held else "wait"

    def report(self, slot: int, event: Event) -> None:
        """Take a slot's event; an outcome or failure ends the lease of the trial it names.

        One that comes late, from a process that was taken for dead, counts while the order still
        waits; afterwards its new holder answers for it.
        """
        if isinstance(event, (Outcome, Failure)) and not self._end(slot, event.trial_id):
            return
        self._events.append(event)

    def _end(self, slot: int, trial_id: str) -> bool:
        """Take the order off the books; whether the slot's word on it still counts."""
        if slot in self._held and self._held[slot].trial_id == trial_id:
            del self._held[slot]
            return True
        late = [order for order in self._waiting if order.trial_id == trial_id]
        for order in late:
            self._waiting.remove(order)
        return bool(late)

    def take_events(self) -> list[Event]:
        """The events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Give out no more orders."""
        self._draining = True

    def is_draining(self) -> bool:
        """Whether attempts in progress should checkpoint and end."""
        return self._draining

    def _lose(self, order: Order) -> None:
        self._lost[order.trial_id] += 1
        if self._lost[order.trial_id] > LOST_BUDGET:
            message = f"its worker died {self._lost[order.trial_id]} times"
            self._events.append(Failure(order.trial_id, "lost", "WorkerDied", message))
            return
        self._events.append(Lost(order.trial_id))
        self._waiting.append(order)
