"""From a grid file or a sweep directory to the plan of a launch, for the command line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.chosen import Selectors, chosen
from sweeper.errors import StoreURLError, SweepDirError, SweeperError
from sweeper.say import say
from sweeper.shard import Shard, named
from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.grid import Expansion, Trial
    from sweeper.plan import Plan
    from sweeper.store.sweeps import StoredSweep


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
    shard: Shard | None = None,
) -> tuple[Expansion, Plan, SweepDir, str]:
    """Expand the grid and plan its trials, or a share of them, against what its directory holds.

    Also the grid's text.
    """
    from sweeper.grid import expand, load_grid, text_of
    from sweeper.room import check_path
    from sweeper.train import check

    loaded = load_grid(grid, set_ or ())
    expansion = expand(loaded, max_trials=max_trials, allow_empty_exclude=allow_empty, check=check)
    folder = SweepDir(sweep_dir or Path("runs") / named(expansion.name, shard))
    check_path(folder.path)
    trials = expansion.trials
    if shard is not None:
        trials = tuple(trial for trial in trials if shard.holds(trial.trial_id))
    made = _plan_of(trials, folder.path, folder.root(root_of(store)), shard)
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

    trials = _still_buildable(read_plan(folder.plan))
    return _plan_of(trials, folder.path, folder.root(), shard_of(folder))


def shard_of(folder: SweepDir) -> Shard | None:
    """The share of a sweep's trials that a directory has; None for all of them."""
    shard = folder.read_manifest().get("shard")
    return None if shard is None else Shard.parse(str(shard))


def sweep_at(place: str, sweep_dir: Path | None) -> SweepDir:
    """The sweep directory to resume, up to date with a store elsewhere, which it may be made of.

    Parameters
    ----------
    place : a sweep directory, or where a sweep's store is.
    sweep_dir : where to make the directory; None for below `runs`.

    Raises
    ------
    SweepDirError : no sweep is there, several are, or the directory holds another; or a driver
        elsewhere is at work on it.
    """
    from sweeper.room import check_path

    folder = SweepDir(place)
    if folder.manifest.is_file():
        if sweep_dir is not None:
            found = f"given, and `{place}` is a sweep directory"
            raise SweeperError("--sweep-dir", found, "one of the two")
        stored = stored_of(folder)
    else:
        stored = stored_at(place)
        folder = SweepDir(sweep_dir or Path("runs") / stored.name)
        check_path(folder.path)
    if stored is not None:
        _bring_up_to_date(folder, stored)
    return folder


def stored_of(folder: SweepDir) -> StoredSweep | None:
    """What is kept of a sweep beside its store; None where that is in the directory."""
    from sweeper.store.sweeps import StoredSweep

    root = folder.root()
    if root == str(folder.path):
        return None
    name = str(folder.read_manifest().get("name", folder.path.name))
    return StoredSweep(root, named(name, shard_of(folder)))


def _bring_up_to_date(folder: SweepDir, stored: StoredSweep) -> None:
    """Make the directory what the last driver left in the store, if none is at work."""
    from sweeper.store.claim import clear

    if (driver := folder.driver()) is not None:
        raise folder.held_by(driver)
    clear(stored.objects)
    if stored.is_ahead_of(folder):
        with folder.locked():
            stored.bring_up_to_date(folder)
        say(f"{folder.path}: as it is kept in `{stored.objects.location}`")
    folder.root(stored.root)


def stored_at(place: str) -> StoredSweep:
    """What is kept of a sweep beside its store, at the store's root or at `sweeps/<name>` there.

    Raises
    ------
    SweepDirError : no sweep is kept there, or several are.
    """
    from sweeper.store.sweeps import find_sweep

    found = find_sweep(root_of(place) or place)
    if found is None:
        if "://" not in place:
            SweepDir(place).require()
        hint = f"`sweeper launch GRID --store {place}` goes on with the trials that are there"
        raise SweepDirError(place, "no sweep is kept here", "what --store named at a launch", hint)
    return found


def _plan_of(trials: tuple[Trial, ...], folder: Path, root: str, shard: Shard | None) -> Plan:
    """The plan of these trials, given what the store at their root holds."""
    from sweeper.plan import check_stored, make_plan
    from sweeper.schedule.driver import complete_trials
    from sweeper.store.opening import check_place
    from sweeper.trial import size_of

    check_place(root)
    complete = complete_trials(root)
    check_stored(trials, complete)
    others = complete.keys() - {trial.trial_id for trial in trials}
    if others and shard is None:  # another share's may be there, too
        say(f"{folder}: {len(others)} complete trials are not in this plan; they stay stored")
    return make_plan(trials, complete, size_of)


def check_fits(made: Plan, root: str, force: bool) -> None:
    """Refuse, or warn of, a sweep that is larger than what is free where its store is."""
    from sweeper.room import check_room, free_room

    if made.todo and "://" not in root:
        for warning in check_room(root, made.room, free_room(Path(root)), force):
            say(warning)
