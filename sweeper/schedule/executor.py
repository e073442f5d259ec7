"""What an executor is: something that runs orders in slots and says what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.errors import SweeperError
from sweeper.schedule.retry import classify

MESSAGE_LENGTH = 500  # characters of an error that the journal and the display carry


@dataclass(frozen=True)
class Failure:
    """An attempt raised; `kind` is its failure class."""

    trial_id: str
    kind: str
    error: str
    message: str

    @classmethod
    def of(cls, trial_id: str, error: BaseException) -> Failure:
        """The failure that `error` is."""
        try:
            text = str(error).strip()
        except Exception:  # a plug-in's own exception may fail even at this
            text = "its message cannot be shown"
        if isinstance(error, SweeperError) and error.hint:
            text = f"{text} (hint: {error.hint})"
        text = text.encode("utf-8", "backslashreplace").decode()
        if len(text) > MESSAGE_LENGTH:
            text = f"{text[:MESSAGE_LENGTH]} … (the rest is in the trial's log)"
        return cls(trial_id, classify(error), type(error).__name__, text)


@dataclass(frozen=True)
class Lost:
    """A worker died in the middle of an attempt; the trial is run again."""

    trial_id: str


Event = Progress | Waiting | Outcome | Failure | Lost
Runner = Callable[[Order, Callable[[], bool], Callable[[Progress | Waiting], None]], Outcome]


class Executor(Protocol):
    """Runs orders in slots.

    Contract (one test class holds every executor to it): each order ends in exactly one
    `Outcome` or `Failure`; one that fails stops no other; a slot whose worker dies comes back and
    its order is run again; after `should_stop` turns true the attempts in progress checkpoint and
    end as `stopped`, and no other starts. Events reach `on_event` one at a time, in the driver's
    process.
    """

    n_slots: int

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Run all orders; returns when each has ended, or when drained."""
