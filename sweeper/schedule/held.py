"""Which process of which slot holds which order, and which of them are to be killed; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.attempt import Order
from sweeper.schedule.packing import Share


@dataclass
class Held:
    """An order in a slot: whose process has it and where, when that spoke, and how far it is."""

    order: Order
    process: str
    node: str
    share: Share
    spoke: float
    step: int = -1


class Holders:
    """The orders that slots hold, one each, until they end."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._doomed: dict[int, str] = {}  # of each slot the process that is to be killed
        self._condemned: set[int] = set()  # slots of which that has not been told yet

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, slot: object) -> bool:
        return slot in self._held

    def __iter__(self) -> Iterator[tuple[int, Held]]:
        """The slots and what they hold; what ends meanwhile disturbs nothing."""
        yield from list(self._held.items())

    def give(self, slot: int, held: Held) -> None:
        """A slot has an order from now on."""
        self._held[slot] = held

    def of(self, slot: int, trial_id: str, process: str | None) -> Held | None:
        """What the slot holds, if it is this trial and its process is this one; None for any."""
        held = self._held.get(slot)
        if held is None or held.order.trial_id != trial_id:
            return None
        return held if process is None or process == held.process else None

    def end(self, slot: int) -> Held:
        """A slot holds its order no more."""
        return self._held.pop(slot)

    def speaks(self, slot: int, process: str, now: float) -> Held | None:
        """A process gives a sign of life; what it holds."""
        held = self._held.get(slot)
        if held is None or held.process != process:
            return None
        held.spoke = now
        return held

    def excuse(self, now: float) -> None:
        """Take all of them to have spoken."""
        for held in self._held.values():
            held.spoke = now

    def condemn(self, slot: int) -> None:
        """The process that holds the slot's order is to be killed."""
        self._condemned.add(slot)
        self._doomed[slot] = self._held[slot].process

    def is_doomed(self, slot: int, process: str) -> bool:
        """Whether this process is to be killed."""
        return self._doomed.get(slot) == process

    def take_condemned(self) -> list[int]:
        """The slots whose process is to be killed, told once."""
        condemned, self._condemned = sorted(self._condemned), set()
        return condemned
