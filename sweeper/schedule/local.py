"""One slot in this process: for debugging, and for tests that need no cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from sweeper.attempt import Order, Outcome
from sweeper.schedule.executor import Event, Runner
from sweeper.schedule.leases import Leases
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules
from sweeper.trial import run_attempt

WAIT_SECONDS = 0.2  # between two looks whether what backs off may start


class LocalExecutor:
    """Runs orders one after another in this process (see `Executor`).

    A trial that hangs or ends the process takes the launch along; no limit of time holds here.
    """

    n_slots, n_gpus = 1, 0

    def __init__(self, runner: Runner = run_attempt) -> None:
        self._runner = runner

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        rules: Rules,
    ) -> None:
        """Run all orders; returns when each has ended, or when drained."""
        leases, telling = Leases(orders, rules), threading.Lock()

        def tell(event: Event) -> None:
            with telling:  # an attempt that waits for room says so from the thread that records
                on_event(event)

        while True:
            if should_stop():
                leases.drain()
            order = leases.lease(0)
            if order == "leave":
                return
            if order == "wait":
                time.sleep(WAIT_SECONDS)
                continue
            try:
                ended: Outcome | Failure = self._runner(order, should_stop, tell)
            except Exception as error:
                ended = Failure.of(order.trial_id, error)
            leases.report(0, ended)
            for event in leases.take_events():
                tell(event)
