"""The commands that plan and run a sweep: plan, launch, resume."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from sweeper.background import detach, is_detached
from sweeper.chosen import Ids, Selectors, States, Where
from sweeper.errors import SweeperError
from sweeper.options import (
    Address,
    AllowCodeChange,
    AllowEmpty,
    CheckpointEvery,
    Detach,
    ExecutorName,
    ExecutorOption,
    Force,
    GridPath,
    Json,
    Limit,
    LogTo,
    MaxTrials,
    PerGPU,
    Set,
    ShardOption,
    Slots,
    StalledAfter,
    StopAfter,
    StoreOption,
    SweepDirOption,
    SweepPlace,
    TimeLimit,
    TrackerName,
    Yes,
    seconds_of,
)
from sweeper.planning import (
    check_fits,
    narrowed,
    plan_grid,
    plan_stored,
    root_of,
    shard_of,
    sweep_at,
)
from sweeper.processors import n_cores
from sweeper.say import say
from sweeper.shard import Shard
from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.doctor.preflight import Preflight
    from sweeper.plan import Plan
    from sweeper.schedule.driver import Launch
    from sweeper.schedule.executor import Executor
    from sweeper.schedule.rules import Rules
    from sweeper.schedule.scribe import Counts

EXIT_FAILURES, EXIT_STOPPED = 3, 4


def plan(
    grid: GridPath,
    sweep_dir: SweepDirOption = None,
    store: StoreOption = None,
    shard: ShardOption = None,
    set_: Set = None,
    where: Where = None,
    ids: Ids = None,
    states: States = None,
    max_trials: MaxTrials = 100_000,
    allow_empty_exclude: AllowEmpty = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show what a launch of GRID would run. Changes nothing."""
    from sweeper.plan_text import plan_fields, plan_lines

    asked, share = Selectors.of(where, ids, states), _shard(shard)
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints is no part of the plan
        expansion, made, folder, _ = plan_grid(
            grid, sweep_dir, store, set_, max_trials, allow_empty_exclude, share
        )
        made = narrowed(made, folder, asked)
    root = folder.root(root_of(store))
    if as_json:
        print(json.dumps(plan_fields(expansion, made, folder, root, share), indent=1))
    else:
        print(*plan_lines(grid, expansion, made, folder, root, share), sep="\n")
    check_fits(made, root, force)


def launch(
    grid: GridPath,
    sweep_dir: SweepDirOption = None,
    store: StoreOption = None,
    shard: ShardOption = None,
    set_: Set = None,
    where: Where = None,
    ids: Ids = None,
    states: States = None,
    limit: Limit = None,
    max_trials: MaxTrials = 100_000,
    allow_empty_exclude: AllowEmpty = False,
    executor: ExecutorOption = ExecutorName.tune,
    address: Address = None,
    slots: Slots = None,
    per_gpu: PerGPU = None,
    time_limit: TimeLimit = None,
    stalled_after: StalledAfter = None,
    stop_after: StopAfter = None,
    checkpoint_every: CheckpointEvery = "60",
    log_to: LogTo = None,
    allow_code_change: AllowCodeChange = False,
    force: Force = False,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Run all trials of GRID that are not complete. On an existing directory this is resume."""
    asked, share = Selectors.of(where, ids, states), _shard(shard)
    rules = _rules(per_gpu, time_limit, stalled_after)
    wanted = _wanted(limit, checkpoint_every, allow_code_change, stop_after, rules, log_to)
    made_slots = _Slots(executor, address, slots, rules)
    expansion, made, folder, text = plan_grid(
        grid, sweep_dir, store, set_, max_trials, allow_empty_exclude, share
    )
    made = narrowed(made, folder, asked)
    wanted = replace(wanted, name=expansion.name, grid_text=text, root=root_of(store), shard=share)
    _drive(folder, made, wanted, made_slots, _Consent(yes, force, detach))


def resume(
    directory: SweepPlace,
    sweep_dir: SweepDirOption = None,
    where: Where = None,
    ids: Ids = None,
    states: States = None,
    limit: Limit = None,
    executor: ExecutorOption = ExecutorName.tune,
    address: Address = None,
    slots: Slots = None,
    per_gpu: PerGPU = None,
    time_limit: TimeLimit = None,
    stalled_after: StalledAfter = None,
    stop_after: StopAfter = None,
    checkpoint_every: CheckpointEvery = "60",
    log_to: LogTo = None,
    allow_code_change: AllowCodeChange = False,
    force: Force = False,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Run what is left of the sweep in DIR, without its grid file.

    From where its store is, another machine can go on: DIR is then made below `runs`.
    """
    asked = Selectors.of(where, ids, states)
    rules = _rules(per_gpu, time_limit, stalled_after)
    wanted = _wanted(limit, checkpoint_every, allow_code_change, stop_after, rules, log_to)
    made_slots = _Slots(executor, address, slots, rules)
    folder = sweep_at(directory, sweep_dir)
    made = narrowed(plan_stored(folder), folder, asked)
    name = str(folder.read_manifest().get("name", folder.path.name))
    wanted = replace(wanted, name=name, shard=shard_of(folder))
    _drive(folder, made, wanted, made_slots, _Consent(yes, force, detach))


commands: dict[str, Callable[..., None]] = {"plan": plan, "launch": launch, "resume": resume}


# --- what was asked for ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Consent:
    """What needs no asking, and whether to go on in the background."""

    yes: bool
    force: bool
    detach: bool


@dataclass(frozen=True)
class _Slots:
    """Where trials are to run."""

    executor: ExecutorName
    address: str | None
    n_slots: int | None
    rules: Rules

    def __post_init__(self) -> None:
        if self.executor is not ExecutorName.local:
            return
        rules = self.rules
        for option, value in (
            ("--address", self.address),
            ("--slots", self.n_slots),
            ("--per-gpu", rules.per_gpu),
            ("--time-limit", rules.time_limit),
        ):
            if value is not None:
                found = "there is one slot, in this process, with `--executor local`"
                raise SweeperError(option, found, "it needs `--executor tune`")

    def make(self, n_todo: int, threads: int, preflight: Preflight) -> Executor:
        """The executor: on this machine with a slot per GPU, or per `threads` processors."""
        import torch

        if self.executor is ExecutorName.local:
            from sweeper.schedule.local import LocalExecutor

            return LocalExecutor()
        from sweeper.schedule.packing import CHOICES
        from sweeper.schedule.tune import TuneExecutor

        if self.address is not None:
            return TuneExecutor(
                threads, address=self.address, n_slots=self.n_slots, on_joined=preflight
            )
        n_slots = self.n_slots or max(1, n_cores() // threads)
        n_gpus = torch.cuda.device_count()
        if self.rules.per_gpu is not None and not n_gpus:
            found = "this machine has no GPU"
            raise SweeperError("--per-gpu", found, "a GPU that trials can share, or no such option")
        if n_gpus:
            n_slots = min(n_slots, n_gpus * (self.rules.per_gpu or max(CHOICES)))
        # Ray starts a process per processor that it is told of, needed or not.
        n_cpus = min(n_slots, n_todo) * threads
        return TuneExecutor(threads, n_slots=self.n_slots, n_cpus=n_cpus, n_gpus=n_gpus)


def _shard(text: str | None) -> Shard | None:
    return None if text is None else Shard.parse(text)


def _wanted(
    limit: int | None,
    checkpoint_every: str,
    allow_code_change: bool,
    stop_after: str | None,
    rules: Rules,
    log_to: list[TrackerName] | None,
) -> Launch:
    """What is asked of a launch, of whichever sweep; its name is still to be filled in."""
    from sweeper.schedule.driver import Launch

    return Launch(
        "",
        limit=limit,
        checkpoint_seconds=seconds_of("--checkpoint-every", checkpoint_every, 0),
        allow_code_change=allow_code_change,
        stop_after=None if stop_after is None else seconds_of("--stop-after", stop_after),
        rules=rules,
        log_to=tuple(log_to or ()),
    )


def _rules(per_gpu: int | None, time_limit: str | None, stalled_after: str | None) -> Rules:
    from sweeper.schedule.rules import Rules

    rules = Rules(per_gpu)
    if time_limit is not None:
        rules = replace(rules, time_limit=seconds_of("--time-limit", time_limit))
    if stalled_after is not None:
        rules = replace(rules, stalled_after=seconds_of("--stalled-after", stalled_after))
    return rules


# --- running --------------------------------------------------------------------------------


def _drive(folder: SweepDir, made: Plan, wanted: Launch, slots: _Slots, consent: _Consent) -> None:
    from sweeper.display import display
    from sweeper.doctor.preflight import Preflight, check_demands
    from sweeper.duration import duration
    from sweeper.schedule.driver import drive, threads_per_trial
    from sweeper.trackers import check_trackers
    from sweeper.train.data import present

    for config in dict.fromkeys(trial.config.data for trial in made.todo):
        present(config)
    root = folder.root(wanted.root)
    wanted = replace(wanted, log_to=check_trackers(wanted.log_to, root))
    check_fits(made, root, consent.force)
    if not consent.force:
        check_demands(folder, made, slots.address, slots.rules.time_limit)
    n_todo = min(len(made.todo), wanted.limit or len(made.todo))
    say(f"{folder.path}: {len(made.trials)} trials, {made.n_complete} complete, {n_todo} to run")
    if n_todo and not consent.yes:
        _ask()
    if consent.detach and not is_detached():
        detach(folder)
        return
    threads, started = threads_per_trial(folder), time.monotonic()
    with display() as shown:
        may_grow = slots.n_slots is not None
        preflight = Preflight(made, root, threads, may_grow, consent.force, shown.say)
        executor = slots.make(n_todo, threads, preflight)
        counts = drive(folder, made, wanted, executor, shown)
    if counts.n_todo:
        _conclude(folder, counts, duration(time.monotonic() - started))


def _ask() -> None:
    """Ask a person; a script is taken to mean what it says."""
    if sys.stdin.isatty() and not typer.confirm("Run them?", default=True, err=True):
        raise typer.Exit(EXIT_STOPPED)


def _conclude(folder: SweepDir, counts: Counts, took: str) -> None:
    """Say how a launch ended, and end with the exit code for it."""
    done = counts.n_complete + counts.n_diverged
    diverged = f", {counts.n_diverged} of them diverged" if counts.n_diverged else ""
    say(f"{done}/{counts.n_todo} trials complete{diverged}, in {took}")
    if counts.n_failed:
        say(f"{counts.n_failed} failed; `sweeper failures {folder.path}` tells why")
    if counts.avoided:
        hosts = ", ".join(dict.fromkeys(node.host for node in counts.avoided))
        say(f"no more trials were given to {hosts}; `sweeper status {folder.path}` tells why")
    if counts.halt is not None:
        say(
            f"stopped after {counts.halt.n_failed} failures alike in a row; launching again runs "
            "all others first, and `--where` leaves these out"
        )
        raise typer.Exit(EXIT_STOPPED)
    if counts.n_ended < counts.n_todo:
        say(f"stopped; `sweeper resume {folder.path}` goes on from the checkpoints")
        raise typer.Exit(EXIT_STOPPED)
    if counts.n_failed:
        say("launching again runs them again")
        raise typer.Exit(EXIT_FAILURES)
