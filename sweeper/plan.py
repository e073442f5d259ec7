"""What a launch would run: the trials of a grid, less those that are complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from sweeper.config import SCHEMA_VERSION, TrialConfig, upgrade
from sweeper.durable import write_atomically
from sweeper.errors import PlanError, SweepDirError
from sweeper.grid import Trial
from sweeper.registry import source_hash
from sweeper.room import Room


@dataclass(frozen=True)
class Size:
    """What a trial will store: snapshots, bytes of predictions before compression, files."""

    n_snapshots: int
    n_bytes: int
    n_files: int


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in the order in which they run; `todo` are not complete yet."""

    trials: tuple[Trial, ...]
    todo: tuple[Trial, ...]
    sizes: tuple[Size, ...]

    @property
    def n_snapshots(self) -> int:
        """Snapshots of all trials."""
        return sum(size.n_snapshots for size in self.sizes)

    @property
    def n_bytes(self) -> int:
        """Bytes of all trials' predictions, before compression."""
        return sum(size.n_bytes for size in self.sizes)

    @property
    def room(self) -> Room:
        """What the trials left to run need on a disk, the largest of them staged, too."""
        todo = {trial.trial_id for trial in self.todo}
        pairs = zip(self.trials, self.sizes, strict=True)
        sizes = [size for trial, size in pairs if trial.trial_id in todo]
        n_bytes = sum(size.n_bytes for size in sizes) + max(size.n_bytes for size in sizes)
        n_files = sum(size.n_files for size in sizes) + max(size.n_snapshots for size in sizes)
        return Room(n_bytes, n_files)

    @property
    def n_files(self) -> int:
        """Files of all trials when they are sealed, their logs among them."""
        return sum(size.n_files for size in self.sizes)


def make_plan(
    trials: Iterable[Trial], complete: Collection[str], size_of: Callable[[TrialConfig], Size]
) -> Plan:
    """The plan for these trials, given the ids that are complete.

    Raises
    ------
    PlanError : two different configurations have one id.
    """
    ordered = tuple(trials)
    seen: dict[str, Trial] = {}
    for trial in ordered:
        other = seen.setdefault(trial.trial_id, trial)
        if other.config != trial.config:
            raise PlanError(
                f"trial {trial.trial_id}",
                f"two configurations share this id: {other.config.identity} and "
                f"{trial.config.identity}",
                "one configuration per id",
                "change any one value of either",
            )
    todo = tuple(trial for trial in ordered if trial.trial_id not in complete)
    return Plan(ordered, todo, tuple(size_of(trial.config) for trial in ordered))


def check_stored(trials: Iterable[Trial], stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a trial that is stored under its id with other values.

    An id leaves out what equals a default, and no schema version pins a plug-in's defaults.

    Parameters
    ----------
    stored : the flat configuration of each complete trial, by id.

    Raises
    ------
    PlanError : naming the trial and what differs.
    """
    for trial in trials:
        there = stored.get(trial.trial_id, {})
        for key, value in trial.config.to_flat().items():
            if key in there and there[key] != value:
                raise PlanError(
                    f"trial {trial.trial_id}: {key}",
                    f"`{value}`, but the store holds this trial with `{there[key]}`",
                    "one default for an option in a sweep",
                    f"a plug-in's default has changed: set `{key}` in the grid",
                )


def plug_in_hashes(trials: Iterable[Trial]) -> dict[str, str]:
    """The source hash of every import path that the trials name."""
    names = {name for trial in trials for name in trial.config.plug_ins()}
    return {name: source_hash(name) for name in sorted(names)}


# --- plan.parquet ---------------------------------------------------------------------------


def write_plan(path: Path, plan: Plan) -> None:
    """Write one row a trial: its id, configuration, and estimated size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "trial_id": trial.trial_id,
            "schema": SCHEMA_VERSION,
            "config": json.dumps(trial.config.to_flat()),
            "n_snapshots": size.n_snapshots,
            "n_bytes": size.n_bytes,
        }
        for trial, size in zip(plan.trials, plan.sizes, strict=True)
    ]
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    write_atomically(path, buffer.getvalue())


def read_plan(path: Path) -> tuple[Trial, ...]:
    """The planned trials, in order.

    Raises
    ------
    SweepDirError : there is no readable plan.
    """
    configs = (
        TrialConfig.from_flat(upgrade(json.loads(text), version))
        for version, text in zip(*_read_columns(path, ["schema", "config"]), strict=True)
    )
    trials = tuple(Trial(config.trial_id, config) for config in configs)
    for trial, planned in zip(trials, planned_ids(path), strict=True):
        if trial.trial_id != planned:
            raise SweepDirError(
                str(path),
                f"trial {planned} would be {trial.trial_id} by now",
                "the defaults that it was planned with",
                "a plug-in's default has changed: launch with the grid file again",
            )
    return trials


def planned_ids(path: Path) -> list[str]:
    """The planned trials' ids, in order, without reading their configurations."""
    return list(_read_columns(path, ["trial_id"])[0])


def _read_columns(path: Path, names: list[str]) -> list[list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise SweepDirError(
            str(path), f"no readable plan ({error})", hint="launch with the grid file again"
        ) from error
    return [table.column(name).to_pylist() for name in names]
