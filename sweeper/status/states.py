"""The state of every trial of a sweep, by its journal, its driver and its store. Reads only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeper.journal import Tally
from sweeper.status.live import Live, read_live
from sweeper.sweep_dir import PREDICTIONS, SweepDir

if TYPE_CHECKING:
    from sweeper.store.objects import Objects

STATES = ("complete", "diverged", "running", "failed", "interrupted", "waiting")
ENDED = ("complete", "diverged", "failed")  # whatever becomes of the rest of this launch
LISTING_SECONDS = 30.0  # between two listings of the store while it is watched

_LEFT = {"running": "interrupted", "stopped": "interrupted", "lost": "interrupted"}
_NEVER: Mapping[str, Any] = {"state": "waiting", "t": 0.0}


@dataclass(frozen=True)
class Seen:
    """A sweep at a moment; `states` has one of `STATES` for each of its trials, in their order.

    `live` is None without a driver, and in the first seconds of one.
    """

    states: dict[str, str]
    tally: Tally
    driver: dict[str, Any] | None
    live: Live | None
    is_draining: bool


class Sight:
    """A sweep directory that may be looked at again and again; a second look costs little.

    A trial is `running` only while its lease is alive: its driver lives and says so. What a killed
    driver left running is looked up in the store, and is otherwise `interrupted`.

    Parameters
    ----------
    ids : the trials that matter; None for those of the directory's plan.
    """

    def __init__(self, folder: SweepDir, ids: Sequence[str] | None = None) -> None:
        from sweeper.plan import planned_ids

        self.folder = folder
        self.ids = planned_ids(folder.plan) if ids is None else ids
        self._tally: Tally | None = None
        self._sealed: Objects | None = None
        self._stored: set[str] = set()
        self._known: Mapping[str, Any] = {}  # of the journal, when the store was listed
        self._listed = float("-inf")

    def look(self) -> Seen:
        """The sweep as it is now.

        Raises
        ------
        SweepDirError : the journal is damaged. StoreError : a trial's metadata are.
        """
        driver = self.folder.driver()  # first: what a driver wrote before it ended is then read
        live = read_live(self.folder.live, driver)
        tally = self._read_tally()
        self._list(tally)
        is_draining = driver is not None and self.folder.stop_request.exists()
        rule = _Rule(tally, driver is not None, live)
        states = {trial: self._state(rule, trial) for trial in self.ids}
        return Seen(states, tally, driver, live, is_draining or bool(live and live.is_draining))

    def _read_tally(self) -> Tally:
        if self._tally is None:
            self._tally = Tally.read(self.folder.status, self.folder.journal)
        else:
            self._tally.catch_up(self.folder.journal)
        return self._tally

    def _list(self, tally: Tally) -> None:
        """List what is stored, nearly all of it complete, without reading any metadata.

        It decides about the trials whose end the journal told before, not about those since: by
        what was read first, since clocks of two machines, or within a millisecond, cannot tell.
        """
        from sweeper.store.objects import open_objects

        now = time.time()
        if now - self._listed >= LISTING_SECONDS:
            self._sealed = open_objects(self.folder.root()).below(PREDICTIONS)
            self._stored, self._listed = set(self._sealed.names("trials")), now
            self._known = dict(tally.trials)

    def _state(self, rule: _Rule, trial: str) -> str:
        """What is complete the store decides; the journal saves opening it where both agree."""
        found = rule.tally.trials.get(trial, _NEVER)
        state = found["state"]
        is_stored = found.get("label", trial) in self._stored
        if state in ("complete", "diverged"):
            has_ended_since = found is not self._known.get(trial)
            return str(state) if is_stored or has_ended_since else "waiting"
        if rule.runs(trial, found):
            return "running"
        left = rule.left(state)
        return self._stored_state(trial, left) if is_stored else left

    def _stored_state(self, trial: str, otherwise: str) -> str:
        """Ask the store; only for what the journal leaves open."""
        from sweeper.store.schema import sealed_key

        found = self._sealed.attributes(sealed_key(trial)) if self._sealed else None
        return str(found["state"]) if found else otherwise


class _Rule:
    """What the driver's being there says about what the journal has."""

    def __init__(self, tally: Tally, is_driven: bool, live: Live | None) -> None:
        self.tally, self._is_driven = tally, is_driven
        self._leased: Mapping[str, Any] = live.running if live else {}
        self._said = live.t if live else 0.0
        launched = tally.launched["t"] if tally.launched else float("inf")
        # Until a driver has said what it runs, what it wrote into the journal has to do.
        self._since = self._said or launched

    def runs(self, trial: str, found: Mapping[str, Any]) -> bool:
        """Whether the trial's lease is alive: listed, and nothing happened to it since, or new."""
        if not self._is_driven:
            return False
        if trial in self._leased and found["t"] <= self._said:
            return True
        return found["state"] == "running" and bool(found["t"] >= self._since)

    def left(self, state: str) -> str:
        """The state of a trial that does not run."""
        if state == "retried":
            return "waiting" if self._is_driven else "interrupted"
        return "waiting" if state == "requeued" else _LEFT.get(state, state)


def states_of(folder: SweepDir, ids: Sequence[str] | None = None) -> dict[str, str]:
    """The state of each of these trials, planned yet or not; None for those of the plan."""
    return Sight(folder, ids).look().states
