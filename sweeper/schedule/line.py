"""The orders of a sweep that wait: those in line, and those that back off before they are."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sweeper.attempt import Order

_LAST, _FIRST = -1, -2  # the runs of what has been tried


class _Run(NamedTuple):
    """Orders that stand together: all may be taken, or none of them."""

    shape: str
    tried: frozenset[str]
    number: int


class Line:
    """Orders in the order in which they are to run, in runs: of one shape, and tried alike.

    Parameters
    ----------
    orders : those of one shape together.
    """

    def __init__(self, orders: Sequence[Order]) -> None:
        self._runs: dict[_Run, deque[Order]] = {}
        for i, (shape, run) in enumerate(itertools.groupby(orders, key=lambda order: order.shape)):
            self._runs[_Run(shape, frozenset(), i)] = deque(run)
        self._later: list[tuple[float, int, _Run, Order]] = []  # a heap of what backs off
        self._sequence = itertools.count()

    def __bool__(self) -> bool:
        """Whether any order is in line."""
        return bool(self._runs)

    @property
    def is_backing_off(self) -> bool:
        """Whether any order will be in line later."""
        return bool(self._later)

    def runs(self) -> Iterator[tuple[Order, int]]:
        """The first order of each run, and how many stand in it."""
        for orders in self._runs.values():
            yield orders[0], len(orders)

    def take(
        self, needed: Callable[[str], int], per_gpu: int, may: Callable[[Order], bool]
    ) -> Order | None:
        """Take out the first order that needs a slot of this size, else a single one for a smaller.

        Parameters
        ----------
        needed : how many slots of the size that a shape needs share a GPU; 0 if there are none.
        may : whether an order may be taken; it is asked of the first of each run.
        """
        smaller = []
        for run, orders in self._runs.items():
            size = needed(run.shape)
            if size < per_gpu or not may(orders[0]):
                continue
            if size == per_gpu:
                return self._remove(run, orders[0])
            smaller.append(run)
        # Several orders for smaller shares are better off with such slots in this one's place.
        is_single = len(smaller) == 1 and len(self._runs[smaller[0]]) == 1
        return self._remove(smaller[0], self._runs[smaller[0]][0]) if is_single else None

    def _remove(self, run: _Run, order: Order) -> Order:
        self._runs[run].remove(order)
        if not self._runs[run]:
            del self._runs[run]
        return order

    def put_first(self, order: Order, tried: frozenset[str] = frozenset()) -> None:
        """Put an order at the head of the line, behind what was put there and is tried alike.

        Parameters
        ----------
        tried : the nodes on which it has failed.
        """
        self._put(_Run(order.shape, tried, _FIRST), order)

    def put_later(self, order: Order, at: float, tried: frozenset[str], *, first: bool) -> None:
        """Put an order in line when it is `at`: at its end, or at its head."""
        run = _Run(order.shape, tried, _FIRST if first else _LAST)
        heapq.heappush(self._later, (at, next(self._sequence), run, order))

    def _put(self, run: _Run, order: Order) -> None:
        orders = self._runs.setdefault(run, deque())
        orders.append(order)
        if run.number == _FIRST and next(iter(self._runs)) != run:
            del self._runs[run]
            self._runs = {run: orders, **self._runs}

    def wake(self, now: float) -> None:
        """Put what has backed off for long enough back in line."""
        while self._later and self._later[0][0] <= now:
            _, _, run, order = heapq.heappop(self._later)
            self._put(run, order)

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
