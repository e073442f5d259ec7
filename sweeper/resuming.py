"""A trial's checkpoints: written while it trains, and where its next attempt starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import CheckpointError, MissingStoreError
from sweeper.store.objects import Objects
from sweeper.store.staging import StagedTrial, owner_of
from sweeper.store.writer import TrialHeader
from sweeper.train import checkpoint

Lineage = list[tuple[int, int, str]]  # attempt, its first snapshot, the token of its claim


@dataclass(frozen=True)
class Restored:
    """Where an attempt starts; the default is the beginning."""

    lineage: Lineage = field(default_factory=list)
    next_snapshot: int = 0
    step: int = 0
    diverged: bool = False
    all_staged: bool = False
    state: dict[str, Any] | None = None


class Checkpoints:
    """One trial's checkpoints.

    Parameters
    ----------
    objects : the trial's folder.
    log : told of a checkpoint that is damaged, and ignored.
    """

    def __init__(self, objects: Objects, log: Callable[[str], None]) -> None:
        self._objects, self._log = objects, log

    def restore(self, store: Objects, header: TrialHeader) -> Restored:
        """Where an attempt starts: after all snapshots, at a checkpoint, or at the beginning."""
        try:
            staged = StagedTrial(store, header.trial_id)
        except MissingStoreError:  # nothing, or a crash before the first attempt was claimed
            return Restored()
        n_planned = len(header.steps)
        sets = {split: samples.hash for split, samples in header.sample_sets.items()}
        if staged.n_recorded == n_planned and all(
            _is_of(staged, i, sets) for i in range(n_planned)
        ):
            step = int(staged.header["steps"][-1])
            return Restored(next_snapshot=n_planned, step=step, all_staged=True)
        self._objects.remove_partials()
        for name in sorted(self._names(), key=_step_of, reverse=True):
            found = self._read(name)
            if found is None:
                continue
            lineage = [(int(n), int(first), str(claim)) for n, first, claim in found["lineage"]]
            if _descends(lineage, found["next_snapshot"], staged, sets):
                return Restored(
                    lineage=lineage,
                    next_snapshot=found["next_snapshot"],
                    step=found["state"]["step"],
                    diverged=found["state"]["diverged"],
                    state=found["state"],
                )
        return Restored()

    def _read(self, name: str) -> dict[str, Any] | None:
        where = f"{self._objects.location}/{name}"
        try:
            return checkpoint.from_bytes(self._objects.read(name), where)
        except CheckpointError as error:
            self._log(f"{error}; ignored")
            return None

    def write(self, name: str, lineage: Lineage, next_snapshot: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; the snapshots that it claims are durable already."""
        claims = [list(claim) for claim in lineage]
        data = checkpoint.to_bytes(
            {"lineage": claims, "next_snapshot": next_snapshot, "state": state}
        )
        self._objects.write(name, data)

    def remove_older(self, written: str) -> None:
        """Remove all but the one that was written, and those of newer attempts.

        The process that asks may be a late one.
        """
        for name in self._names():
            if name != written and _attempt_of(name) <= _attempt_of(written):
                self._objects.delete(name)

    def _names(self) -> list[str]:
        return [name for name in self._objects.names("") if name.endswith(".pt")]


def name_of(attempt: int, step: int) -> str:
    """What an attempt's checkpoint after a step is called."""
    return f"{attempt}-{step}.pt"


def _step_of(name: str) -> int:
    return int(name.removesuffix(".pt").partition("-")[2])


def _attempt_of(name: str) -> int:
    return int(name.partition("-")[0])


def _descends(
    lineage: Lineage, next_snapshot: int, staged: StagedTrial, sets: Mapping[str, str]
) -> bool:
    """Whether the staged snapshots before a checkpoint are the ones it was trained through.

    A late older attempt can write a checkpoint after a newer one took over its tail, and after a
    repair numbers begin again; going on from it would leave a hole, or join two attempts' paths.
    """
    firsts = [(number, first) for number, first, _ in lineage]
    tokens = {number: claim for number, _, claim in lineage}

    def is_the_one(snapshot: int) -> bool:
        owner = owner_of(snapshot, staged.claims)
        if owner is None or owner != owner_of(snapshot, firsts):
            return False
        same = staged.headers[owner]["claim"] == tokens[owner]
        return same and _is_of(staged, snapshot, sets)

    return all(is_the_one(snapshot) for snapshot in range(next_snapshot))


def _is_of(staged: StagedTrial, snapshot: int, sets: Mapping[str, str]) -> bool:
    """Whether a snapshot is staged, of these sets of samples: the data may have changed since."""
    owner = owner_of(snapshot, staged.claims)
    return staged.is_present(snapshot) and staged.headers[owner or 0]["sample_sets"] == sets
