"""What the driver hears of the leases, each time that it asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.schedule.executor import Event
from sweeper.schedule.packing import Demand, Share


@dataclass(frozen=True)
class Polled:
    """The events since the last time, and how things are.

    Parameters
    ----------
    condemned : slots whose process is to be killed.
    running : slots that run an order, by share; those astray are left out.
    kinds : of GPU, of the slots that sit on a node that the driver knows.
    avoided : nodes that get no more orders.
    astray : slots there, which leave when they have ended what they run.
    barren : why no slot can run anything; empty while one can.
    stranded : what waits for GPUs that are gone, when nothing else is left; else empty.
    """

    events: Sequence[Event]
    condemned: Sequence[int]
    demands: Sequence[Demand]
    running: Mapping[Share, int]
    kinds: Mapping[int, str]
    avoided: frozenset[str]
    astray: frozenset[int]
    is_done: bool
    barren: str
    stranded: str
