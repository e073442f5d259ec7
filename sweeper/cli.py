"""The command line: parse, call, print. Heavy packages are imported by the commands alone."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sweeper
from analysis.cli import app as analyze_app
from sweeper.attempt import CHECKPOINT_SECONDS
from sweeper.data_cli import app as data_app
from sweeper.errors import StoreURLError, SweeperError
from sweeper.store_cli import commands as store_commands
from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.grid import Expansion, Trial
    from sweeper.plan import Plan
    from sweeper.schedule.driver import Counts, Launch
    from sweeper.status import Status

EXIT_FAILURES, EXIT_STOPPED = 3, 4

app = typer.Typer(
    name="sweeper",
    help="Train many networks, keep every prediction, and see the manifold they explore.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(analyze_app, name="analyze")
app.add_typer(data_app, name="data")
for _name, _command in store_commands.items():
    app.command(_name)(_command)


class ExecutorName(enum.StrEnum):
    """Where trials run."""

    local = "local"
    tune = "tune"


GridPath = Annotated[
    Path, typer.Argument(metavar="GRID", help="A grid file, e.g. grids/digits.yaml.")
]
Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep directory, e.g. runs/digits.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SweepDirOption = Annotated[
    Path | None, typer.Option("--sweep-dir", metavar="DIR", help="Default: runs/<grid name>.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where predictions, checkpoints and logs go: a folder or `s3://bucket/prefix`. "
        "Default: the sweep directory.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although the disk seems too small for the sweep.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of `base`.")
]
MaxTrials = Annotated[int, typer.Option("--max-trials", help="Refuse a larger grid.")]
AllowEmpty = Annotated[
    bool,
    typer.Option(
        "--allow-empty-exclude", help="Accept an `exclude` or `when` that matches nothing."
    ),
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="`local`: one slot in this process; `tune`: Ray.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Run at most this many trials.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before running.")]
CheckpointEvery = Annotated[
    float, typer.Option("--checkpoint-every", min=0, help="Seconds between checkpoints of a trial.")
]
AllowCodeChange = Annotated[
    bool, typer.Option("--allow-code-change", help="Mix trials of two versions of a plug-in.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"sweeper {sweeper.__version__}")
        raise typer.Exit


@app.command()
def plan(
    grid: GridPath,
    sweep_dir: SweepDirOption = None,
    store: StoreOption = None,
    set_: Set = None,
    max_trials: MaxTrials = 100_000,
    allow_empty_exclude: AllowEmpty = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show what a launch of GRID would run. Changes nothing."""
    from sweeper.plan_text import plan_fields, plan_lines

    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints is no part of the plan
        expansion, made, folder, _ = _make_plan(
            grid, sweep_dir, store, set_, max_trials, allow_empty_exclude
        )
    root = folder.root(_root_of(store))
    if as_json:
        _print_json(plan_fields(expansion, made, folder, root))
    else:
        print(*plan_lines(grid, expansion, made, folder, root), sep="\n")
    _check_room(made, root, force)


@app.command()
def launch(
    grid: GridPath,
    sweep_dir: SweepDirOption = None,
    store: StoreOption = None,
    set_: Set = None,
    executor: ExecutorOption = ExecutorName.tune,
    limit: Limit = None,
    max_trials: MaxTrials = 100_000,
    allow_empty_exclude: AllowEmpty = False,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    allow_code_change: AllowCodeChange = False,
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Run all trials of GRID that are not complete. On an existing directory this is resume."""
    from sweeper.schedule.driver import Launch

    expansion, made, folder, text = _make_plan(
        grid, sweep_dir, store, set_, max_trials, allow_empty_exclude
    )
    root = _root_of(store)
    asked = Launch(expansion.name, text, limit, checkpoint_every, allow_code_change, root)
    _drive(folder, made, asked, executor, yes, force)


@app.command()
def resume(
    directory: Dir,
    executor: ExecutorOption = ExecutorName.tune,
    limit: Limit = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    allow_code_change: AllowCodeChange = False,
    force: Force = False,
    yes: Yes = False,
) -> None:
    """Run what is left of the sweep in DIR, without its grid file."""
    from sweeper.plan import read_plan
    from sweeper.schedule.driver import Launch

    folder = SweepDir(directory).require()
    made = _plan_of(_still_buildable(read_plan(folder.plan)), folder.path, folder.root())
    name = str(folder.read_manifest().get("name", directory.name))
    asked = Launch(name, None, limit, checkpoint_every, allow_code_change)
    _drive(folder, made, asked, executor, yes, force)


@app.command()
def status(directory: Dir, as_json: Json = False) -> None:
    """Show how far the sweep in DIR is. Changes nothing."""
    from sweeper.status import read_status

    found = read_status(SweepDir(directory))
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        _print_status(directory, found)


# --- planning and running -------------------------------------------------------------------


def _make_plan(
    grid: Path,
    sweep_dir: Path | None,
    store: str | None,
    set_: list[str] | None,
    max_trials: int,
    allow_empty: bool,
) -> tuple[Expansion, Plan, SweepDir, str]:
    """Expand the grid and plan it against what its directory holds; also the grid's text."""
    from sweeper.grid import expand, load_grid, text_of
    from sweeper.room import check_path
    from sweeper.train import check

    loaded = load_grid(grid, set_ or ())
    expansion = expand(loaded, max_trials=max_trials, allow_empty_exclude=allow_empty, check=check)
    folder = SweepDir(sweep_dir or Path("runs") / expansion.name)
    check_path(folder.path)
    made = _plan_of(expansion.trials, folder.path, folder.root(_root_of(store)))
    return expansion, made, folder, text_of(loaded, set_ or ())


def _still_buildable(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trials of a stored plan, checked anew: a plug-in may have changed since."""
    from sweeper.train import check

    for trial in trials:
        try:
            check(trial.config)
        except SweeperError as error:
            raise error.within(f"trial {trial.trial_id}") from error
    return trials


def _plan_of(trials: tuple[Trial, ...], folder: Path, root: str) -> Plan:
    """The plan of these trials, given what the store at their root holds."""
    from sweeper.plan import check_stored, make_plan
    from sweeper.schedule.driver import complete_trials
    from sweeper.store.opening import check_place
    from sweeper.trial import size_of

    check_place(root)
    complete = complete_trials(root)
    check_stored(trials, complete)
    others = complete.keys() - {trial.trial_id for trial in trials}
    if others:
        _say(f"{folder}: {len(others)} complete trials are not in this plan; they stay stored")
    return make_plan(trials, complete, size_of)


def _root_of(store: str | None) -> str | None:
    """Where the workers' files go, as it is written down: no folder depends on where we are."""
    if store is None:
        return None
    if not store or store.startswith("memory://"):
        found = f"`{store}`, which no worker could find"
        raise StoreURLError("--store", found, "a place that all of them can reach")
    if "://" in store and not store.startswith("file://"):
        from sweeper.store.url import check_url

        return check_url(store)
    return os.path.abspath(store.removeprefix("file://"))


def _check_room(made: Plan, root: str, force: bool) -> None:
    """Refuse, or warn of, a sweep that is larger than what is free where its store is."""
    from sweeper.room import check_room, free_room

    if made.todo and "://" not in root:
        for warning in check_room(root, made.room, free_room(Path(root)), force):
            _say(warning)


def _drive(
    folder: SweepDir, made: Plan, asked: Launch, executor: ExecutorName, yes: bool, force: bool
) -> None:
    from sweeper.display import display, duration
    from sweeper.schedule.driver import drive, threads_per_trial
    from sweeper.train.data import present

    for config in dict.fromkeys(trial.config.data for trial in made.todo):
        present(config)
    _check_room(made, folder.root(asked.root), force)
    n_todo = min(len(made.todo), asked.limit or len(made.todo))
    _say(
        f"{folder.path}: {len(made.trials)} trials, "
        f"{len(made.trials) - len(made.todo)} complete, {n_todo} to run"
    )
    if n_todo and not yes:
        _ask()
    slots = _executor(executor, n_todo, threads_per_trial(folder))
    started = time.monotonic()
    with display() as shown:
        counts = drive(folder, made, asked, slots, shown)
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
    _say(f"{done}/{counts.n_todo} trials complete{diverged}, in {took}")
    if counts.n_ended < counts.n_todo:
        _say(f"stopped; `sweeper resume {folder.path}` goes on from the checkpoints")
        raise typer.Exit(EXIT_STOPPED)
    if counts.n_failed:
        _say(
            f"{counts.n_failed} failed; see `sweeper status {folder.path}` and "
            f"{folder.root()}/logs; launching again runs them again"
        )
        raise typer.Exit(EXIT_FAILURES)


def _executor(name: ExecutorName, n_todo: int, threads: int) -> Any:
    """The executor of that name, with one slot per GPU, or per `threads` cores without any."""
    import torch

    if name is ExecutorName.local:
        from sweeper.schedule.local import LocalExecutor

        return LocalExecutor()
    from sweeper.schedule.tune import TuneExecutor

    # Not every system can say which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    n_slots = torch.cuda.device_count() or max(1, (cores or 1) // threads)
    return TuneExecutor(min(n_slots, n_todo), threads)


# --- printing -------------------------------------------------------------------------------


def _say(text: str) -> None:
    """A message: to standard error, so that standard output stays data."""
    print(text, file=sys.stderr)


def _print_json(fields: Any) -> None:
    print(json.dumps(fields, indent=1))


def _print_status(directory: Path, found: Status) -> None:
    from sweeper.display import duration

    driver = found.driver
    who = f"driven by process {driver['pid']} on {driver['host']}" if driver else "not running"
    print(f"{directory}: {found.n_planned:,} trials, {who}")
    for state, count in found.counts.items():
        if count:
            print(f"  {state:<12}{count:>8,}")
    if found.trials_per_minute and found.seconds_left is not None:
        print(f"  {found.trials_per_minute} trials a minute, {duration(found.seconds_left)} left")
    for group in found.failures[:3]:
        first = group.message.splitlines()[0] if group.message else ""
        print(f"  {len(group.trials)} failed with {group.error}: {first}")
        print(f"    {', '.join(group.trials[:4])}{', ...' if len(group.trials) > 4 else ''}")
    if found.n_torn_bytes:
        print(f"  the journal's last line is torn ({found.n_torn_bytes} bytes): a crash; ignored")


def main() -> None:
    """Run the command line; every error a user can act on ends in two lines and its exit code."""
    try:
        # Plug-ins are importable from where `sweeper` is started, but hide nothing installed.
        sys.path.append(os.getcwd())
        app()
    except SweeperError as error:
        _fail(str(error), error.hint, error.exit_code)
    except OSError as error:
        where = error.filename or "input or output"
        hint = "check that the path is right, may be written, and has room"
        _fail(f"{where}: {error.strerror or error}", hint, SweeperError.exit_code)


def _fail(message: str, hint: str, code: int) -> None:
    _say(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""))
    sys.exit(code)
