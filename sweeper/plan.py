"""What a launch would run, and in what order: a grid's trials, less those that are complete."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from sweeper.shape import shape_of


@dataclass(frozen=True)
class Size:
    """What a trial will store: snapshots, bytes of predictions before compression, files.

    And what it will cost: optimizer steps and floating point operations; both 0 if not known.
    """

    n_snapshots: int
    n_bytes: int
    n_files: int
    n_steps: int = 0
    work: float = 0.0


@dataclass(frozen=True)
class PlannedWork:
    """What is known of the time of all trials before they run, as columns in the plan's order.

    Parameters
    ----------
    ids : the trials.
    shapes : see `shape_of`; empty where they are not known.
    n_steps : optimizer steps; 0 where they are not known.
    works : floating point operations; 0 where they are not known.
    """

    ids: Sequence[str]
    shapes: Sequence[str]
    n_steps: Sequence[int]
    works: Sequence[float]


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep.

    Parameters
    ----------
    trials : all of them, in the grid's order.
    todo : those that are not complete, in the order in which they run (see `make_plan`).
    sizes, shapes : of `trials`.
    n_complete : how many of them are complete; `todo` may be narrowed down further.
    """

    trials: tuple[Trial, ...]
    todo: tuple[Trial, ...]
    sizes: tuple[Size, ...]
    shapes: tuple[str, ...]
    n_complete: int = 0

    @property
    def work(self) -> PlannedWork:
        """What is known of the trials' time."""
        return PlannedWork(
            [trial.trial_id for trial in self.trials],
            self.shapes,
            [size.n_steps for size in self.sizes],
            [size.work for size in self.sizes],
        )

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

    Trials of one shape run together, so that what was measured of the first, its memory above all,
    serves the others; the shape with the longest trial first, and the longest trials of a shape
    first, so that no long one is left alone at the end. What is alike keeps the grid's order.

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
    sizes = tuple(size_of(trial.config) for trial in ordered)
    shapes = tuple(shape_of(trial.config) for trial in ordered)
    left = [i for i, trial in enumerate(ordered) if trial.trial_id not in complete]
    todo = tuple(ordered[i] for i in _longest_first(left, shapes, [size.work for size in sizes]))
    return Plan(ordered, todo, sizes, shapes, len(ordered) - len(todo))


def _longest_first(
    left: Iterable[int], shapes: Sequence[str], works: Sequence[float]
) -> Iterator[int]:
    """The positions `left`, those of one shape together; see `make_plan`."""
    together: dict[str, list[int]] = {}
    for i in left:
        together.setdefault(shapes[i], []).append(i)
    for members in together.values():
        members.sort(key=lambda i: -works[i])
    groups = sorted(together.values(), key=lambda members: -works[members[0]])
    return itertools.chain.from_iterable(groups)


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
        there = stored.get(trial.trial_id)
        if there is None:
            continue
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
    """Write one row a trial: its id, configuration, and estimated size and cost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    work = plan.work
    table = pa.table(
        {
            "trial_id": pa.array(work.ids, pa.string()),
            "schema": pa.array([SCHEMA_VERSION] * len(plan.trials), pa.int64()),
            "config": pa.array(_texts(plan.trials), pa.string()),
            "n_snapshots": pa.array([size.n_snapshots for size in plan.sizes], pa.int64()),
            "n_bytes": pa.array([size.n_bytes for size in plan.sizes], pa.int64()),
            "shape": pa.array(work.shapes, pa.string()).dictionary_encode(),
            "n_steps": pa.array(work.n_steps, pa.int64()),
            "work": pa.array(work.works, pa.float64()),
        }
    )
    buffer = BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _texts(trials: Iterable[Trial]) -> list[str]:
    return [json.dumps(trial.config.to_flat()) for trial in trials]


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


def planned_ids(plan: Path | bytes) -> list[str]:
    """The planned trials' ids, in order, without reading their configurations.

    Parameters
    ----------
    plan : the file, or what is in it.

    Raises
    ------
    SweepDirError : there is no readable plan.
    """
    return list(_read_columns(plan, ["trial_id"])[0])


def planned_configs(path: Path) -> Iterator[dict[str, Any]]:
    """The flat configuration of each planned trial, in order, of today's schema, unchecked.

    Raises
    ------
    SweepDirError : there is no readable plan.
    """
    import pyarrow as pa

    try:
        with _opened(path) as file:
            for batch in file.iter_batches(10_000, columns=["schema", "config"]):
                for version, text in zip(*batch.to_pydict().values(), strict=True):
                    config = json.loads(text)
                    yield config if version == SCHEMA_VERSION else upgrade(config, version)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SweepDirError(
            str(path), f"no readable plan ({error})", hint="launch with the grid file again"
        ) from error


def planned_work(path: Path) -> PlannedWork:
    """What is known of the trials' time, without reading their configurations.

    A plan that an earlier version wrote has nothing of it.

    Raises
    ------
    SweepDirError : there is no readable plan.
    """
    ids, *found = _read_columns(path, ["trial_id"], ["shape", "n_steps", "work"])
    if found:
        return PlannedWork(ids, *found)
    n_trials = len(ids)
    return PlannedWork(ids, [""] * n_trials, [0] * n_trials, [0.0] * n_trials)


def _read_columns(
    plan: Path | bytes, names: list[str], later: Sequence[str] = ()
) -> list[list[Any]]:
    """Columns of a plan, and those that came `later`, if it has all of them."""
    import pyarrow as pa

    try:
        with _opened(plan) as file:
            if later and set(later) <= set(file.schema_arrow.names):
                names = [*names, *later]
            table = file.read(columns=names, use_threads=False)
        return [_values(table.column(name)) for name in names]
    except (OSError, KeyError, pa.ArrowException) as error:
        where = "its plan" if isinstance(plan, bytes) else str(plan)
        raise SweepDirError(
            where, f"no readable plan ({error})", hint="launch with the grid file again"
        ) from error


def _opened(plan: Path | bytes) -> Any:
    """A plan's Parquet file.

    Not by `pq.read_table`, which imports pandas, a third of a second; nor of a `BytesIO`: a thread
    of pyarrow's that still has one of Python's buffers when Python ends aborts the process; nor by
    its path, which pyarrow cannot encode where the locale is ASCII.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = plan if isinstance(plan, bytes) else plan.read_bytes()
    return pq.ParquetFile(pa.BufferReader(content))


def _values(column: Any) -> list[Any]:
    """A column's values; those of a dictionary one by one would take ten times as long."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return list(column.to_pylist())
