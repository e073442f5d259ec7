"""How far a sweep is: its plan and its journal, added up. Reads; never writes."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sweeper.journal import Tally
from sweeper.plan import planned_ids
from sweeper.store.objects import Objects, open_objects
from sweeper.store.schema import sealed_key
from sweeper.sweep_dir import PREDICTIONS, SweepDir

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")

_SEEN_AS = {"stopped": "interrupted", "lost": "interrupted", "requeued": "waiting"}
STATES = ("complete", "diverged", "running", "failed", "interrupted", "waiting")


@dataclass(frozen=True)
class FailureGroup:
    """Trials that failed alike."""

    error: str
    message: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """A sweep at a moment; `counts` has every one of `STATES`.

    `seconds_left` is None while nothing runs or nothing has finished yet.
    """

    n_planned: int
    counts: dict[str, int]
    driver: dict[str, Any] | None
    trials_per_minute: float | None
    seconds_left: float | None
    failures: tuple[FailureGroup, ...]
    n_torn_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is complete or diverged."""
        return self.counts["complete"] + self.counts["diverged"] == self.n_planned


def read_status(folder: SweepDir) -> Status:
    """Add up a sweep directory.

    A trial is `running` only while its driver lives; the trials that a killed driver left behind
    are looked up in the store and are otherwise `interrupted`.

    Raises
    ------
    SweepDirError : there is no sweep, or its plan or journal is damaged.
    """
    folder.require()
    ids = planned_ids(folder.plan)
    tally = Tally.read(folder.status, folder.journal)
    driver = folder.driver()
    since = tally.launched["t"] if driver is not None and tally.launched else float("inf")
    sealed = open_objects(folder.root()).below(PREDICTIONS)
    stored = set(sealed.names("trials"))  # nearly all of them complete; no metadata is read
    states = {trial: _state(sealed, tally, trial, since, trial in stored) for trial in ids}
    found = Counter(states.values())
    counts = {state: found[state] for state in STATES}
    rate = _rate(tally) if driver else None
    left = counts["running"] + counts["waiting"] + counts["interrupted"]
    return Status(
        n_planned=len(ids),
        counts=counts,
        driver=driver,
        trials_per_minute=round(60 * rate, 2) if rate else None,
        seconds_left=round(left / rate, 1) if rate else None,
        failures=_groups(tally, [trial for trial, state in states.items() if state == "failed"]),
        n_torn_bytes=tally.torn,
    )


def _state(sealed: Objects, tally: Tally, trial: str, since: float, is_stored: bool) -> str:
    """A trial's state; only what was started after `since`, by the live driver, is running.

    What is complete the store decides; the journal saves opening it where the two agree.
    """
    found = tally.trials.get(trial, {"state": "waiting", "t": 0.0})
    state = _SEEN_AS.get(found["state"], found["state"])
    if state in ("complete", "diverged"):
        return str(state) if is_stored else "waiting"
    if state == "running" and found["t"] >= since:
        return "running"
    left = "interrupted" if state == "running" else str(state)
    return _stored_state(sealed, trial, left) if is_stored else left


def _stored_state(sealed: Objects, trial: str, otherwise: str) -> str:
    """Ask the store; only for what the journal leaves open."""
    found = sealed.attributes(sealed_key(trial))
    return str(found["state"]) if found else otherwise


def _rate(tally: Tally) -> float | None:
    """Trials per second that ended since the last launch."""
    if tally.launched is None:
        return None
    start = tally.launched["t"]
    ended = [
        found["t"]
        for found in tally.trials.values()
        if found["t"] >= start and found["state"] in ("complete", "diverged", "failed")
    ]
    return len(ended) / max(time.time() - start, 1e-3) if ended else None


def _groups(tally: Tally, failed: list[str]) -> tuple[FailureGroup, ...]:
    """Failures with one error and message together, the largest group first.

    Messages that differ in their numbers alone are one; that of the first trial is shown.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for trial in failed:
        found = tally.trials[trial]
        key = (found["error"], _NUMBER.sub("#", found["message"]))
        groups.setdefault(key, []).append(trial)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(
        FailureGroup(error, tally.trials[trials[0]]["message"], tuple(trials))
        for (error, _), trials in ordered
    )
