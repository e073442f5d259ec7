"""The state of every trial of a sweep by its store alone, for who has not its directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeper.journal import Tally
from sweeper.status.states import LISTING_SECONDS, Seen
from sweeper.sweep_dir import STALE_SECONDS

if TYPE_CHECKING:
    from sweeper.store.sweeps import StoredSweep


class StoredSight:
    """What `Sight` sees, as far as a store can tell: there is no journal.

    What has begun and is not complete is `running` while there is a driver, and what failed is
    `waiting`, or else `interrupted`. Whether a driver elsewhere lives the first look cannot tell:
    it is there as its claim says, until it was seen to say nothing for `STALE_SECONDS`.
    """

    def __init__(self, sweep: StoredSweep, ids: Sequence[str]) -> None:
        from sweeper.store import Store
        from sweeper.store.root import Root

        self._sweep, self._ids = sweep, ids
        self._store = Store(Root(sweep.root).predictions)
        self._listed = float("-inf")
        self._heard = float("-inf")
        self._driver: dict[str, Any] | None = None
        self._begun: set[str] = set()
        self._ended: dict[str, str] = {}

    def look(self) -> Seen:
        """The sweep as it is now, as far as it was listed not long ago."""
        driver = self._look_for_driver()
        now = time.monotonic()
        if now - self._listed >= LISTING_SECONDS:
            self._list()
            self._listed = now
        begun = "running" if driver else "interrupted"
        states = {trial: self._state(trial, begun) for trial in self._ids}
        return Seen(states, Tally(), driver, None, False)

    def _look_for_driver(self) -> dict[str, Any] | None:
        from sweeper.store.claim import driver_of

        driver, now = driver_of(self._sweep.objects), time.monotonic()
        if driver != self._driver:
            self._driver, self._heard = driver, now
        return driver if now - self._heard < STALE_SECONDS else None

    def _list(self) -> None:
        # What is staged first: it may be sealed meanwhile, and is then found among the others.
        self._begun = set(self._store.objects.names("staging"))
        found = self._store.summaries()
        self._ended = {trial: summary.state for trial, summary in found.items()}

    def _state(self, trial: str, begun: str) -> str:
        return self._ended.get(trial) or (begun if trial in self._begun else "waiting")
