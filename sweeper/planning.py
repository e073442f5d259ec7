"""From a grid file or a sweep directory to the plan of a launch, for the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.chosen import Selectors, chosen
from sweeper.errors import StoreURLError, SweeperError
from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.grid import Expansion, Trial
    from sweeper.plan import Plan


def narrowed(made: Plan, folder: SweepDir, asked: Selectors) -> Plan:
    """The plan with only those trials to run that were asked for."""
    if not asked:
        return made
    from sweeper.status.states import states_of

    ids = [trial.trial_id for trial in made.trials]
    configs = (trial.config.to_flat() for trial in made.trials)
    only = set(chosen(asked, ids, lambda: configs, lambda: states_of(folder, ids)))
    return replace(made, todo=tuple(trial for trial in made.todo if trial.trial_id in only))


def root_of(store: str | None) -> str | None:
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


def plan_grid(
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
    made = _plan_of(expansion.trials, folder.path, folder.root(root_of(store)))
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


def plan_stored(folder: SweepDir) -> Plan:
    """The plan of a sweep as it was launched last, against what its store holds."""
    from sweeper.plan import read_plan

    return _plan_of(_still_buildable(read_plan(folder.plan)), folder.path, folder.root())


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


def check_fits(made: Plan, root: str, force: bool) -> None:
    """Refuse, or warn of, a sweep that is larger than what is free where its store is."""
    from sweeper.room import check_room, free_room

    if made.todo and "://" not in root:
        for warning in check_room(root, made.room, free_room(Path(root)), force):
            _say(warning)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
