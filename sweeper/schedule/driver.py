"""Drive one launch of a sweep: hold the directory, run what is missing, write down what happens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.attempt import CHECKPOINT_SECONDS, Order
from sweeper.config import SCHEMA_VERSION, Flat, TrialConfig, content_id, upgrade
from sweeper.durable import PARTIAL, write_atomically
from sweeper.errors import SweepDirError, UnavailableStoreError
from sweeper.grid import Trial
from sweeper.journal import Journal, Tally
from sweeper.plan import Plan, plug_in_hashes, write_plan
from sweeper.schedule.elsewhere import held_elsewhere
from sweeper.schedule.executor import Event, Executor
from sweeper.schedule.rules import Rules
from sweeper.schedule.scribe import Counts, Scribe, room_or_not
from sweeper.schedule.stopping import stopping
from sweeper.shard import Shard, named
from sweeper.store import Store
from sweeper.store.index import write_index
from sweeper.store.opening import check_format, create_store
from sweeper.store.root import Root
from sweeper.store.seal import remove_leftovers
from sweeper.sweep_dir import SweepDir, environment

THREADS_PER_TRIAL = 1  # fixed when a sweep is made: another number gives other bits
SHARED_SECONDS = 3600.0  # after which a temporary file in a shared store is taken for a leftover


@dataclass(frozen=True)
class Launch:
    """What a launch is asked to do beyond its plan."""

    name: str
    grid_text: str | None = None  # None when resuming without the grid file
    limit: int | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    allow_code_change: bool = False
    root: str | None = None  # of the store, where it is not the sweep's own
    stop_after: float | None = None  # seconds, before it drains
    rules: Rules = field(default_factory=Rules)
    log_to: tuple[str, ...] = ()  # names of trackers
    shard: Shard | None = None  # None for all trials


@dataclass(frozen=True)
class _Stored:
    """A complete trial as the store has it: its folder's name, and its configuration today."""

    label: str
    attempt: int
    state: str
    digest: str | None
    config: Flat


def complete_trials(root: str) -> dict[str, Flat]:
    """The trials that a store holds complete: configurations by id, both in today's schema."""
    predictions = Root(root).predictions
    if all(name.endswith(PARTIAL) for name in predictions.names("")):
        return {}  # not there, or a crash while it was made
    return {trial_id: found.config for trial_id, found in _complete(Store(predictions)).items()}


def _complete(store: Store) -> dict[str, _Stored]:
    """The complete trials by the ids that they have today."""
    check_format(store.objects)
    found = {}
    for label, summary in store.summaries().items():
        config, trial_id = upgrade(summary.config, summary.schema), label
        if summary.schema != SCHEMA_VERSION:
            trial_id = TrialConfig.from_flat(config).trial_id
        found[trial_id] = _Stored(label, summary.attempt, summary.state, summary.digest, config)
    return found


def threads_per_trial(folder: SweepDir) -> int:
    """The number that this sweep was made with."""
    return int(folder.read_manifest().get("threads_per_trial", THREADS_PER_TRIAL))


def drive(
    folder: SweepDir,
    plan: Plan,
    launch: Launch,
    executor: Executor,
    on_event: Callable[[Event, Counts], None],
) -> Counts:
    """Run what the plan has left, in this directory, as its only driver.

    Raises
    ------
    SweepDirError : another driver holds the sweep, or took it over meanwhile; the directory holds
        another sweep; or a plug-in's source has changed.
    """
    name, asked = named(launch.name, launch.shard), [trial.trial_id for trial in plan.trials]
    with (
        folder.locked(),
        stopping(folder.stop_request, launch.stop_after) as stop,
        held_elsewhere(folder, folder.root(launch.root), name, asked) as elsewhere,
    ):
        hashes = plug_in_hashes(plan.trials)
        _check_sweep(folder, launch)
        _check_code(folder, hashes, launch)
        root = Root(folder.root(launch.root))
        store, complete = _remove_leftovers(folder, root)
        _write_down(folder, plan, launch, hashes)
        elsewhere.keep(folder)

        def should_stop() -> bool:
            return stop.is_set() or elsewhere.is_lost

        with Journal(folder.journal) as journal:
            tally, planned = Tally.read(folder.status, folder.journal), plan.work
            todo = _todo(plan, launch, complete, tally)
            works = dict(zip(planned.ids, planned.works, strict=True))
            counts = Counts({trial.trial_id: works[trial.trial_id] for trial in todo})
            scribe = Scribe(folder, root, journal, tally, counts, executor, on_event, should_stop)
            _reconcile(scribe, plan, complete)
            scribe.write(
                "launched",
                n_planned=len(plan.trials),
                n_todo=len(todo),
                n_slots=executor.n_slots,
                n_gpus=executor.n_gpus,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
            shapes = dict(zip(planned.ids, planned.shapes, strict=True))
            orders = _orders(folder, root, shapes, todo, launch, hashes)
            rules = dataclasses.replace(launch.rules, packed=tally.packed)
            try:
                executor.run(orders, scribe.take, should_stop, rules)
                # What a cluster has is known only when it is up.
                devices = {"n_slots": executor.n_slots, "n_gpus": executor.n_gpus}
                scribe.write("ended", **_reason(counts, stop.is_asked), **devices)
            finally:
                scribe.close()
        with room_or_not(), contextlib.suppress(UnavailableStoreError):
            write_index(store.objects, Store(store.objects).summary)
        if counts.n_ended < counts.n_todo:
            elsewhere.check()
    return counts


def _todo(plan: Plan, launch: Launch, complete: Collection[str], tally: Tally) -> list[Trial]:
    """What this launch runs: what is not complete, within its limit, what failed before at last.

    Else ten that fail alike would stop every launch before the others are reached.
    """
    left = [trial for trial in plan.todo if trial.trial_id not in complete]
    left.sort(key=lambda trial: _has_failed(tally.trials.get(trial.trial_id, {})))
    return left[: launch.limit]


def _has_failed(found: Mapping[str, Any]) -> bool:
    return found.get("state") in ("failed", "retried")


def _reason(counts: Counts, is_asked: bool) -> dict[str, Any]:
    """How a launch ended, as the journal has it; `asked` by `sweeper stop`, it is not to go on."""
    if counts.halt is not None:
        return {"reason": "halted", "signature": counts.halt.failure.signature}
    if counts.n_ended < counts.n_todo:
        return {"reason": "stopped", **({"asked": True} if is_asked else {})}
    return {"reason": "failures" if counts.n_failed else "complete"}


def _reconcile(scribe: Scribe, plan: Plan, complete: Mapping[str, _Stored]) -> None:
    """Write down what the store holds complete and a killed driver could not."""
    for trial in plan.trials:
        stored = complete.get(trial.trial_id)
        known = scribe.tally.trials.get(trial.trial_id, {})
        if stored is None or known.get("state") in ("complete", "diverged"):
            continue
        label = {"label": stored.label} if stored.label != trial.trial_id else {}
        scribe.write(
            "finished",
            trial=trial.trial_id,
            attempt=stored.attempt,
            state=stored.state,
            digest=stored.digest,
            **label,
        )


def _orders(
    folder: SweepDir,
    root: Root,
    shapes: Mapping[str, str],
    todo: Sequence[Trial],
    launch: Launch,
    hashes: Mapping[str, str],
) -> list[Order]:
    threads = threads_per_trial(folder)
    location = root.location if "://" in root.location else os.path.abspath(root.location)
    return [
        Order(
            trial_id=trial.trial_id,
            config=trial.config.identity,
            config_id=content_id(trial.config.to_flat()),
            root=location,
            threads=threads,
            checkpoint_seconds=launch.checkpoint_seconds,
            plug_ins={name: hashes[name] for name in trial.config.plug_ins()},
            shape=shapes[trial.trial_id],
            sweep=launch.name,
            log_to=launch.log_to,
        )
        for trial in todo
    ]


def _remove_leftovers(folder: SweepDir, root: Root) -> tuple[Store, dict[str, _Stored]]:
    """Remove what crashes left behind; returns the store and what is complete in it."""
    store = Store(create_store(root.predictions))
    folder.remove_partials()
    is_shared = root.location != str(folder.path)  # perhaps with another sweep, at this moment
    root.remove_partials(older_than=SHARED_SECONDS if is_shared else 0)
    complete = _complete(store)
    left_over = {*store.objects.names("staging"), *root.checkpointed()}
    for trial_id in left_over & {found.label for found in complete.values()}:
        remove_leftovers(store.objects, trial_id)
        root.remove_checkpoints(trial_id)
    return store, complete


def _check_sweep(folder: SweepDir, launch: Launch) -> None:
    """Refuse to put one grid's trials, or one shard's, into another's directory."""
    manifest = folder.read_manifest()
    name = manifest.get("name", launch.name)
    if name != launch.name:
        raise SweepDirError(
            str(folder.path),
            f"holds the sweep `{name}`, and the grid is named `{launch.name}`",
            "one sweep a directory",
            "use another --sweep-dir; an extended grid keeps its name",
        )
    shard = str(launch.shard) if launch.shard else None
    known = manifest.get("shard") if manifest else shard
    if known != shard:
        raise SweepDirError(
            str(folder.path),
            f"holds {_share(known)} of `{name}`, and {_share(shard)} would be launched",
            "one share of the trials a directory",
            "leave out --sweep-dir, and each shard has a directory of its own",
        )


def _share(shard: str | None) -> str:
    return "all trials" if shard is None else f"shard {shard}"


def _check_code(folder: SweepDir, hashes: Mapping[str, str], launch: Launch) -> None:
    """Refuse to mix two versions of a plug-in's source in one sweep."""
    known = folder.read_manifest().get("plug_ins", {})
    changed = [name for name, value in hashes.items() if known.get(name, value) != value]
    if changed and not launch.allow_code_change:
        raise SweepDirError(
            str(folder.path),
            f"the source of `{changed[0]}` has changed since this sweep's first trials",
            "one version of the code in a sweep",
            "use another --sweep-dir, or --allow-code-change to mix them",
        )


def _write_down(folder: SweepDir, plan: Plan, launch: Launch, hashes: Mapping[str, str]) -> None:
    """What was asked, and with what."""
    if launch.grid_text is not None:
        write_atomically(folder.grid, launch.grid_text.encode())
        write_plan(folder.plan, plan)
    manifest = folder.read_manifest()
    made = {"name": launch.name, "created": time.time(), "threads_per_trial": THREADS_PER_TRIAL}
    if launch.root:
        made["store"] = launch.root
    if launch.shard:
        made["shard"] = str(launch.shard)
    entry = {"t": time.time(), "n_trials": len(plan.trials), **environment()}
    folder.write_manifest(
        {
            **made,
            **manifest,
            "plug_ins": {**manifest.get("plug_ins", {}), **hashes},
            "launches": [*manifest.get("launches", []), entry],
        }
    )
