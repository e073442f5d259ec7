"""How far a sweep is: its plan, its journal and its driver, added up. Reads; never writes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeper.plan import PlannedWork, planned_work
from sweeper.status.failures import FailureGroup, group_failures
from sweeper.status.live import Live
from sweeper.status.states import STATES, Seen, Sight
from sweeper.status.stored import StoredSight
from sweeper.sweep_dir import SweepDir
from sweeper.work import Rates

if TYPE_CHECKING:
    from sweeper.store.sweeps import StoredSweep


@dataclass(frozen=True)
class Beat:
    """The running trial that has been silent the longest, for how many seconds, and where."""

    trial: str
    seconds: float
    host: str
    device: str


@dataclass(frozen=True)
class Status:
    """A sweep at a moment; `counts` has every one of `STATES`.

    Parameters
    ----------
    n_planned : trials, those that were asked for.
    driver : its `host` and `pid`; None when there is none. As the claim of one elsewhere has it, it
        may be dead; then also its `directory`, and `t`, when it was heard of.
    is_draining : whether the driver lets its trials checkpoint and then ends.
    trials_per_minute : that ended since the last launch; None without a driver.
    work_left : slot-seconds of the trials that are not complete; None before any was measured.
    seconds_left : until the driver is through with them; None where unknown, and without a driver.
    n_slots, n_gpus : of the driver: what its processors feed, and what that shares; 0 without one.
    in_use : of its GPUs, or of its slots where there are no GPUs.
    beat : None while nothing runs.
    packed : how many trials share a GPU, for the shapes that share one; with the GPU's kind in the
        name, where that of a shape depends on it.
    failures : the groups of alike failures, largest first.
    n_torn_bytes : of an incomplete last line in the journal, which a crash can leave.
    avoided : the nodes that the last launch gave no more trials, as the journal has them: `host`,
        `reason`, and where they failed what went well elsewhere, `trials` and `signature`.
    """

    n_planned: int
    counts: dict[str, int]
    driver: dict[str, Any] | None
    is_draining: bool
    trials_per_minute: float | None
    work_left: float | None
    seconds_left: float | None
    n_slots: int
    n_gpus: float
    in_use: float
    beat: Beat | None
    packed: dict[str, int]
    failures: tuple[FailureGroup, ...]
    n_torn_bytes: int
    avoided: tuple[dict[str, Any], ...] = ()

    @property
    def n_ended(self) -> int:
        """Trials that are complete or diverged."""
        return self.counts["complete"] + self.counts["diverged"]

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is complete or diverged."""
        return self.n_ended == self.n_planned


class Watch:
    """The status of a sweep, again and again; after the first time it costs little.

    Parameters
    ----------
    only : the trials to add up; None for all that are planned.
    stored : where the sweep is, of which the directory then has the plan alone.

    Raises
    ------
    SweepDirError : there is no sweep, or its plan or journal is damaged.
    """

    def __init__(
        self,
        folder: SweepDir,
        only: Collection[str] | None = None,
        stored: StoredSweep | None = None,
    ) -> None:
        folder.require()
        self._work = planned_work(folder.plan)
        chosen = None if only is None else frozenset(only)
        ids = [trial for trial in self._work.ids if chosen is None or trial in chosen]
        self._sight = Sight(folder, ids) if stored is None else StoredSight(stored, ids)

    def status(self) -> Status:
        """The status now.

        Raises
        ------
        SweepDirError : the journal is damaged.
        """
        return _added_up(self._sight.look(), self._work)


def read_status(folder: SweepDir, only: Collection[str] | None = None) -> Status:
    """Add up a sweep directory, once; see `Watch`."""
    return Watch(folder, only).status()


def _added_up(seen: Seen, work: PlannedWork) -> Status:
    found = Counter(seen.states.values())
    n_slots = seen.live.n_slots if seen.live else 0
    n_gpus = seen.live.n_gpus if seen.live else 0
    rates = Rates(work, seen.tally.trials, seen.live.running if seen.live else {})
    left = _left(seen)
    work_left = rates.remaining(left)
    rate = _rate(seen) if seen.driver else None
    seconds = None if seen.is_draining else rates.eta(left, n_slots, n_gpus, seen.tally.sharing)
    return Status(
        n_planned=len(seen.states),
        counts={state: found[state] for state in STATES},
        driver=seen.driver,
        is_draining=seen.is_draining,
        trials_per_minute=_rounded(rate and 60 * rate, 2),
        work_left=_rounded(work_left),
        seconds_left=_rounded(seconds),
        n_slots=n_slots,
        n_gpus=n_gpus,
        in_use=round(seen.live.share_in_use, 2) if seen.live else 0.0,
        beat=_beat(seen.live),
        packed=_packed(seen.tally.packed),
        failures=group_failures(seen.states, seen.tally.trials),
        n_torn_bytes=seen.tally.torn,
        avoided=tuple(seen.tally.avoided),
    )


def _packed(packed: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {
        f"{shape} on {kind}" if kind and len(of_kind) > 1 else shape: n
        for shape, of_kind in packed.items()
        for kind, n in of_kind.items()
        if n > 1
    }


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def _left(seen: Seen) -> dict[str, int]:
    """The trials that a driver runs or will run, and the optimizer steps behind each."""
    running: Mapping[str, Mapping[str, Any]] = seen.live.running if seen.live else {}
    return {
        trial: int((running.get(trial) or seen.tally.trials.get(trial, {})).get("step") or 0)
        for trial, state in seen.states.items()
        if state in ("running", "interrupted", "waiting")
    }


def _rate(seen: Seen) -> float | None:
    """Trials per second that ended since the last launch."""
    if seen.tally.launched is None:
        return None
    start = seen.tally.launched["t"]
    ended = [
        trial
        for trial in seen.states
        if (found := seen.tally.trials.get(trial)) is not None
        and found["t"] >= start
        and found["state"] in ("complete", "diverged", "failed")
    ]
    return len(ended) / max(time.time() - start, 1e-3) if ended else None


def _beat(live: Live | None) -> Beat | None:
    trial = live.oldest if live else None
    if live is None or trial is None:
        return None
    found = live.running[trial]
    age = max(0.0, time.time() - found["beat"])
    return Beat(trial, round(age, 1), str(found.get("host", "")), str(found.get("device", "")))
