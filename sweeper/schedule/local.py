"""One slot in this process: for debugging, and for tests that need no cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sweeper.attempt import Order
from sweeper.schedule.executor import Event, Failure, Runner
from sweeper.trial import run_attempt


class LocalExecutor:
    """Runs orders one after another in this process (see `Executor`)."""

    n_slots = 1

    def __init__(self, runner: Runner = run_attempt) -> None:
        self._runner = runner

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Run all orders; returns when each has ended, or when drained."""
        telling = threading.Lock()

        def tell(event: Event) -> None:
            with telling:  # an attempt that waits for room says so from the thread that records
                on_event(event)

        for order in orders:
            if should_stop():
                return
            try:
                outcome = self._runner(order, should_stop, tell)
            except Exception as error:
                tell(Failure.of(order.trial_id, error))
            else:
                tell(outcome)
