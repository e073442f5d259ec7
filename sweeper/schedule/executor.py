"""What an executor is: something that runs orders in slots and says what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules

_NO_NODE = "a node that has room for a slot, and there is none any more"


@dataclass(frozen=True)
class Retry:
    """An attempt failed in a way that is worth another one, in `delay` seconds or later."""

    failure: Failure
    delay: float

    @property
    def trial_id(self) -> str:
        """The trial that is run again."""
        return self.failure.trial_id


@dataclass(frozen=True)
class Packed:
    """Trials of a shape share a GPU by so many from now on, because of what is named.

    `kind` is that of the GPU, where one is known; `per_gpu` is 0 if such a GPU is too small.
    """

    shape: str
    per_gpu: int
    reason: str
    peak_bytes: int = 0
    device_bytes: int = 0
    trial_id: str = ""  # which trial showed it
    kind: str = ""


@dataclass(frozen=True)
class Avoided:
    """A node is given no more trials in this launch, for what failed there alone or for its code.

    `trial_ids` failed there, most of them with this signature, and went well elsewhere.
    """

    node: str
    host: str
    reason: str
    trial_ids: tuple[str, ...] = ()
    signature: str = ""
    trial_id: str = ""  # of no trial in particular

    def __str__(self) -> str:
        alike = f" ({self.signature})" if self.signature else ""
        return f"{self.host} is avoided: {self.reason}{alike}"


@dataclass(frozen=True)
class Stranded:
    """Trials have waited for long for GPUs of kinds of which there is no node any more.

    Of one kind without a name, where there is no node at all.
    """

    kinds: tuple[str, ...]
    shapes: tuple[str, ...]
    n_trials: int
    trial_id: str = ""  # of no trial in particular

    def __str__(self) -> str:
        kinds, shapes = (", ".join(f"`{name}`" for name in of) for of in (self.kinds, self.shapes))
        wait = "trial waits" if self.n_trials == 1 else "trials wait"
        gone = f"a GPU of kind {kinds}, which no node has" if any(self.kinds) else _NO_NODE
        return f"{self.n_trials:,} {wait} for {gone}: {shapes}"


@dataclass(frozen=True)
class Halt:
    """Too many trials in a row failed alike; the sweep drains."""

    failure: Failure
    n_failed: int

    @property
    def trial_id(self) -> str:
        """The last of them."""
        return self.failure.trial_id


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    trial_id: str = ""


Event = Tick | Progress | Waiting | Outcome | Failure | Retry | Packed | Avoided | Stranded | Halt
Runner = Callable[[Order, Callable[[], bool], Callable[[Progress | Waiting], None]], Outcome]


class Executor(Protocol):
    """Runs orders in slots.

    Contract (one test class holds every executor to it): each order ends in exactly one
    `Outcome` or `Failure`, after as many `Retry` as its failures are worth, and as many stopped
    outcomes as its workers were told to leave; one that fails stops no other; a slot whose worker
    dies comes back and its order is run again; after `should_stop` turns true the attempts in
    progress checkpoint and end as `stopped`, and no other starts.
    Events reach `on_event` one at a time, in the driver's process.
    """

    n_slots: int  # what there is at the moment
    n_gpus: int

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        rules: Rules,
    ) -> None:
        """Run all orders; returns when each has ended, or when drained."""
