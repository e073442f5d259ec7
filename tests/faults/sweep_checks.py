"""What must be true of a sweep, whatever has befallen it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config import TrialConfig
from sweeper.journal import read_events
from sweeper.plan import read_plan
from sweeper.store import open_store
from sweeper.store.verify import verify
from sweeper.sweep_dir import SweepDir
from sweeper.train import planned_steps
from tests.faults.misbehaving import ALWAYS, DIVERGES, OWN_FAILURE, role_of

_ENDS = ("finished", "retried", "failed", "stopped")
_UNLEASED = {"live.json", "stop.request"}  # what only a driver at work has


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nothing befell: its trials' roles, digests and numbers of snapshots."""

    roles: Mapping[str, str]
    digests: Mapping[str, str]
    n_snapshots: Mapping[str, int]

    @classmethod
    def of(cls, folder: Path) -> Undisturbed:
        configs = {trial.trial_id: trial.config for trial in read_plan(folder / "plan.parquet")}
        roles = {trial: role_of(config.to_flat()) for trial, config in configs.items()}
        table = open_store(folder).trials()
        found = cls(roles, table["digest"].dropna().to_dict(), table["n_snapshots"].to_dict())
        found._check_planned(configs)
        return found

    def _check_planned(self, configs: Mapping[str, TrialConfig]) -> None:
        assert set(self.digests) == {t for t, role in self.roles.items() if role != ALWAYS}
        assert len(set(self.digests.values())) == len(self.digests)
        for trial in self.digests:
            n_planned = len(planned_steps(configs[trial]))
            if self.roles[trial] == DIVERGES:
                assert self.n_snapshots[trial] < n_planned
            else:
                assert self.n_snapshots[trial] == n_planned

    def is_reached_by(self, folder: Path) -> bool:
        """Whether all but what always fails is complete."""
        return set(open_store(folder).complete_ids()) == set(self.digests)


def check_sweep(folder: Path, undisturbed: Undisturbed) -> Counter[str]:
    """Fail unless the sweep has ended as the undisturbed one; what its journal tells, counted."""
    check_store(folder, undisturbed)
    check_leftovers(folder, undisturbed)
    journal = read_events(folder / "journal.jsonl")
    assert journal.torn == 0
    check_leases(journal.events)
    return check_classes(journal.events, undisturbed.roles)


def check_store(folder: Path, undisturbed: Undisturbed) -> None:
    """Every trial's digest, and no snapshot lost or doubled."""
    store = open_store(folder)
    table = store.trials()
    sealed = table[table["digest"].notna()]
    assert sealed["digest"].to_dict() == undisturbed.digests
    assert sealed["n_snapshots"].to_dict() == {
        trial: undisturbed.n_snapshots[trial] for trial in undisturbed.digests
    }
    diverged = {trial for trial, role in undisturbed.roles.items() if role == DIVERGES}
    assert set(sealed.index[sealed["state"] == "diverged"]) == diverged
    for trial in undisturbed.digests:
        steps = store.snapshots(trial)["step"].tolist()
        assert steps == sorted(set(steps)), f"{trial}: {steps}"
    assert verify(store).damages == ()


def check_leftovers(folder: Path, undisturbed: Undisturbed) -> None:
    """No lock, no temporary file, and nothing of a trial that is complete but its results."""
    assert SweepDir(folder).driver() is None
    names = {path.name for path in folder.iterdir()}
    assert not names & _UNLEASED, f"left of a driver: {names & _UNLEASED}"
    partials = [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    assert not partials, f"left over: {partials}"
    staged = [*(folder / "checkpoints").glob("*"), *(folder / "predictions.zarr/staging").glob("*")]
    done = [str(path) for path in staged if path.name in undisturbed.digests]
    assert not done, f"left over of what is complete: {done}"


def check_leases(events: Sequence[Mapping[str, Any]]) -> None:
    """No trial is started twice at once, and attempts are numbered upwards."""
    running: set[str] = set()
    newest: dict[str, int] = {}
    for event in events:
        trial = event.get("trial")
        if event["event"] == "launched":
            running.clear()
        elif event["event"] == "started":
            assert trial not in running, f"started twice at once: {event}"
            assert event["attempt"] > newest.get(trial, 0), f"an attempt of before: {event}"
            running.add(trial)
            newest[trial] = event["attempt"]
        elif event["event"] in _ENDS:
            running.discard(trial)


def check_classes(events: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> Counter[str]:
    """Every failure is of the class of what was done to it; how often each was there."""
    counts: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for event in events:
        if event["event"] not in ("retried", "failed"):
            continue
        role, kind = roles[event["trial"]], event["kind"]
        allowed = {"lost", OWN_FAILURE.get(role, "lost")}
        assert kind in allowed, f"{role} failed as {kind}: {event}"
        own[role] += kind != "lost"
        counts[f"{kind}: {_reason(event)}"] += 1
    for role, n in own.items():
        assert n <= 1 or role == ALWAYS, f"{role} failed of itself {n} times"
    for trial in (trial for trial, role in roles.items() if role == ALWAYS):
        last = [event for event in events if event.get("trial") == trial][-1]
        assert (last["event"], last["kind"]) == ("failed", "bug")
    return counts


def _reason(event: Mapping[str, Any]) -> str:
    """What a failure says, without what differs from one to the next."""
    said = event["message"].partition(":" if event["kind"] == "lost" else "\n")
    if said[0].startswith("no step for"):
        return "no step, taken to hang"
    return str(said[0])[:60]
