"""The orders of a sweep that wait: those in line, and those that back off before they are."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sweeper.attempt import Order

Run = tuple[str, int]  # orders of a shape that stand together

_LAST = -1  # the run of what has been tried


class Line:
    """Orders in the order in which they are to run; those of one shape stand together, in runs.

    Parameters
    ----------
    orders : those of one shape together.
    """

    def __init__(self, orders: Sequence[Order]) -> None:
        self._runs: dict[Run, deque[Order]] = {}
        for i, (shape, run) in enumerate(itertools.groupby(orders, key=lambda order: order.shape)):
            self._runs[shape, i] = deque(run)
        self._later: list[tuple[float, int, bool, Order]] = []  # a heap of what backs off
        self._sequence = itertools.count()

    def __bool__(self) -> bool:
        """Whether any order is in line."""
        return bool(self._runs)

    @property
    def is_backing_off(self) -> bool:
        """Whether any order will be in line later."""
        return bool(self._later)

    def runs(self) -> Iterator[tuple[str, int]]:
        """The shape of each run, and how many orders stand in it."""
        for (shape, _), orders in self._runs.items():
            yield shape, len(orders)

    def take(
        self, needed: Callable[[str], int], per_gpu: int, may: Callable[[Order], bool]
    ) -> Order | None:
        """Take out the first order that needs a slot of this size, else a single one for a smaller.

        Parameters
        ----------
        needed : how many slots of the size that a shape needs share a GPU; 0 if there are none.
        may : whether an order may be taken.
        """
        smaller = []
        for run, orders in self._runs.items():
            size = needed(run[0])
            if size < per_gpu:
                continue
            order = next(filter(may, orders), None)
            if order is not None and size == per_gpu:
                return self._remove(run, order)
            if order is not None:
                smaller.append((run, order))
        # Several orders for smaller shares are better off with such slots in this one's place.
        is_single = len(smaller) == 1 and len(self._runs[smaller[0][0]]) == 1
        return self._remove(*smaller[0]) if is_single else None

    def _remove(self, run: Run, order: Order) -> Order:
        self._runs[run].remove(order)
        if not self._runs[run]:
            del self._runs[run]
        return order

    def put_first(self, order: Order) -> None:
        """Put an order at the head of the line."""
        run = next(iter(self._runs), None)
        if run is None or run[0] != order.shape:
            run = order.shape, -2 - next(self._sequence)  # like no other
            self._runs = {run: deque(), **self._runs}
        self._runs[run].appendleft(order)

    def put_later(self, order: Order, at: float, *, first: bool) -> None:
        """Put an order in line when it is `at`: at its end, or at its head."""
        heapq.heappush(self._later, (at, next(self._sequence), first, order))

    def wake(self, now: float) -> None:
        """Put what has backed off for long enough back in line."""
        while self._later and self._later[0][0] <= now:
            _, _, first, order = heapq.heappop(self._later)
            if first:
                self.put_first(order)
            else:
                self._runs.setdefault((order.shape, _LAST), deque()).append(order)

    def withdraw(self, trial_id: str) -> Order | None:
        """Take a trial's order off, wherever it waits; None where it does not."""
        for run, orders in self._runs.items():
            for order in orders:
                if order.trial_id == trial_id:
                    return self._remove(run, order)
        for entry in self._later:
            if entry[3].trial_id == trial_id:
                self._later.remove(entry)
                heapq.heapify(self._later)
                return entry[3]
        return None
