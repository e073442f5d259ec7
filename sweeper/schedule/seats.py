"""Which slots there are, where each sits, and which of its processes is the newest; pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import NamedTuple

BARREN_DEATHS = 5  # on a node where no slot asked in between: none can start there
PROCESSES_KEPT = 16  # of a slot: one that is older than so many has long been dead
SILENT_SECONDS = 30.0  # in which a slot without an order must have asked for one


class Place(NamedTuple):
    """Where slots of one size sit: on which node, and how many share a GPU."""

    node: str
    per_gpu: int


@dataclass(frozen=True)
class Seat:
    """A slot that has asked for an order: on which node, how many share its GPU, and when."""

    node: str
    per_gpu: int
    asked: float


class Seats:
    """The slots that have asked for orders, until they leave or die."""

    def __init__(self) -> None:
        self._seats: dict[int, Seat] = {}
        self._processes: dict[int, deque[str]] = {}  # of each slot, the newest last
        self._deaths: Counter[str] = Counter()  # on each node, since a slot there asked

    def is_newest(self, slot: int, process: str) -> bool:
        """Whether the process is the slot's newest: one not seen before is."""
        known = self._processes.setdefault(slot, deque(maxlen=PROCESSES_KEPT))
        if process not in known:
            known.append(process)
        return known[-1] == process

    def asks(self, slot: int, seat: Seat) -> None:
        """A slot asks for an order: what starts there is sound."""
        self._seats[slot] = seat
        self._deaths.pop(seat.node, None)

    def speaks(self, slot: int, now: float) -> None:
        """A slot has done what it asked for, and will ask again."""
        if slot in self._seats:
            self._seats[slot] = replace(self._seats[slot], asked=now)

    def leaves(self, slot: int) -> None:
        """A slot goes, or its process has died."""
        self._seats.pop(slot, None)

    def died(self, slot: int, node: str) -> bool:
        """A slot's process has died there; whether too many did before they asked for an order."""
        if slot in self._seats:
            self.leaves(slot)
            return False
        self._deaths[node] += 1
        return self._deaths[node] >= BARREN_DEATHS

    def node(self, slot: int) -> str:
        """Where a slot sits; empty where that is not known."""
        seat = self._seats.get(slot)
        return seat.node if seat else ""

    def nodes(self) -> dict[int, str]:
        """Where each of them sits."""
        return {slot: seat.node for slot, seat in self._seats.items()}

    def alive(self, now: float, busy: Container[int]) -> dict[Place, bool]:
        """Where there are slots that answer, and whether one of them there is idle.

        Busy ones answer until their lease is over.
        """
        found: dict[Place, bool] = {}
        for slot, seat in self._seats.items():
            is_idle = slot not in busy
            if not is_idle or now - seat.asked <= SILENT_SECONDS:
                place = Place(seat.node, seat.per_gpu)
                found[place] = is_idle or found.get(place, False)
        return found
