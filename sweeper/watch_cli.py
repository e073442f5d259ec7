"""The commands that show a sweep and stop it: status, failures, logs, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.chosen import Ids, Selectors, States, Where, chosen, find_trial
from sweeper.errors import SweepDirError, SweeperError
from sweeper.options import Json, SweepPlace
from sweeper.plan import planned_configs
from sweeper.say import say
from sweeper.sweep_dir import SweepDir, name_of

if TYPE_CHECKING:
    from sweeper.status.states import Sight
    from sweeper.status.stored import StoredSight
    from sweeper.status.summary import Watch
    from sweeper.store.sweeps import StoredSweep

POLL_SECONDS = 1.0  # between two looks at a log that is followed
BUCKET_SECONDS = 10.0  # the same in a bucket, where a log is written anew each half-minute

Parts = Mapping[str, bytes]  # of a log, by name


def status(
    directory: SweepPlace,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on showing it until the sweep is not driven.")
    ] = False,
    where: Where = None,
    id_: Ids = None,
    state: States = None,
    as_json: Json = False,
) -> None:
    """Show how far the sweep in DIR is. Changes nothing.

    Where its store is tells less: neither failures nor times are kept there.
    """
    from sweeper.status.text import status_lines
    from sweeper.status.watch import watch as show

    if watch and as_json:
        hint = "ask for `sweeper status DIR --json` as often as you like"
        raise SweeperError("--watch", "given with --json", "one of the two", hint)
    with _watched(directory, Selectors.of(where, id_, state)) as seen:
        if watch:
            with _left("left the watch; the sweep goes on"):
                show(directory, seen.status, sys.stdout)
        elif as_json:
            _print_json(dataclasses.asdict(seen.status()))
        else:
            print(*status_lines(directory, seen.status()), sep="\n")


def failures(
    directory: SweepPlace,
    where: Where = None,
    id_: Ids = None,
    state: States = None,
    as_json: Json = False,
) -> None:
    """Show what failed in DIR, alike failures together, and what to do. Changes nothing."""
    from sweeper.status.report import N_GROUPS, report_lines, reports
    from sweeper.status.states import Sight

    folder = _with_journal(directory)
    only = _chosen(folder, Selectors.of(where, id_, state))
    seen = Sight(folder).look()
    found, n_groups = reports(
        folder, seen, None if only is None else set(only), None if as_json else N_GROUPS
    )
    if as_json:
        _print_json([report.fields() for report in found])
    elif found:
        print(*report_lines(directory, found, n_groups), sep="\n")
    else:
        print(f"{directory}: no failures")


def logs(
    directory: SweepPlace,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="A trial's id, or the beginning of one.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until the trial ends.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="Only so many, the last ones.")
    ] = None,
) -> None:
    """Print the log of TRIAL, all attempts one after another."""
    from sweeper.status.logs import last_lines

    with _found(directory) as (folder, stored):
        trial_id, parts = _log_of(folder, directory, trial)
        if follow:
            with _left("left the log; the trial goes on"):
                _follow(_sight(folder, stored, trial_id), folder.root(), parts, trial_id, lines)
            return
        text = b"".join(parts().values()).decode(errors="replace")
    if not text:
        say(f"trial {trial_id} has not logged anything yet")
    _write(last_lines(text, lines))


def stop(directory: SweepPlace) -> None:
    """Ask the driver of DIR to let its trials checkpoint and end, and wait until it has."""
    from sweeper.status.summary import read_status
    from sweeper.status.text import status_line
    from sweeper.status.watch import stop as ask

    folder = _with_journal(directory)
    _check_here(folder)
    with _left("left the wait; the driver stops all the same"):
        if not ask(folder, say):
            say(f"{directory}: no driver, nothing to stop")
            return
        found = read_status(folder)
        say(f"stopped: {status_line(found)}")
        if not found.is_complete:
            say(f"`sweeper resume {directory}` goes on from the checkpoints")


commands: dict[str, Callable[..., None]] = {
    "status": status,
    "failures": failures,
    "logs": logs,
    "stop": stop,
}


# --- helping them ---------------------------------------------------------------------------


def _print_json(fields: Any) -> None:
    print(json.dumps(fields, indent=1))


@contextlib.contextmanager
def _left(text: str) -> Iterator[None]:
    """Take Ctrl-C for an end of the waiting alone, and say so."""
    try:
        yield
    except KeyboardInterrupt:
        say(text)


@contextlib.contextmanager
def _found(place: str) -> Iterator[tuple[SweepDir, StoredSweep | None]]:
    """The sweep in a directory; or one of its plan alone, if only its store knows how far it is."""
    from sweeper.planning import stored_at

    folder = SweepDir(place)
    is_there = folder.manifest.is_file()
    stored = _driven_elsewhere(folder) if is_there else stored_at(place)
    if stored is None:
        yield folder, None
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = SweepDir(scratch)
        stored.bring_up_to_date(folder)
        yield folder, stored


def _driven_elsewhere(folder: SweepDir) -> StoredSweep | None:
    """What is kept of a directory's sweep beside its store, if a driver elsewhere is at it."""
    from sweeper.planning import stored_of
    from sweeper.store.claim import driver_of

    stored = stored_of(folder)
    if stored is None or folder.driver() is not None or driver_of(stored.objects) is None:
        return None
    return stored if stored.manifest() else None


@contextlib.contextmanager
def _watched(place: str, asked: Selectors) -> Iterator[Watch]:
    """The sweep in a directory, or the one that is kept beside a store."""
    from sweeper.plan import planned_ids
    from sweeper.status.summary import Watch

    with _found(place) as (folder, stored):
        if stored is None:
            yield Watch(folder, _chosen(folder, asked))
            return
        ids, configs = planned_ids(folder.plan), planned_configs(folder.plan)
        seen = _sight(folder, stored, *ids)
        only = chosen(asked, ids, lambda: configs, lambda: seen.look().states)
        yield Watch(folder, only, stored)


def _sight(folder: SweepDir, stored: StoredSweep | None, *ids: str) -> Sight | StoredSight:
    from sweeper.status.states import Sight
    from sweeper.status.stored import StoredSight

    return Sight(folder, ids) if stored is None else StoredSight(stored, ids)


def _with_journal(place: str) -> SweepDir:
    """The sweep directory itself: a store has no journal, and nobody to ask to stop."""
    from sweeper.planning import stored_at
    from sweeper.store.claim import driver_of

    folder = SweepDir(place)
    if folder.manifest.is_file():
        return folder
    driver = driver_of(stored_at(place).objects) or {}
    hint = "the journal is in the directory of the sweep's last driver"
    if driver.get("directory"):
        hint = f"the journal is in `{driver['directory']}` on {driver.get('host', '?')}"
    raise SweepDirError(place, "a store, which has no journal", "a sweep directory", hint)


def _check_here(folder: SweepDir) -> None:
    """Refuse to stop a driver of another directory, which looks for requests in its own."""
    from sweeper.store.claim import driver_of, heard, stop_line

    stored = _driven_elsewhere(folder)
    driver = driver_of(stored.objects) if stored else None
    if driver is not None:
        found = f"driven by {name_of(driver)}, {heard(driver)}"
        hint = stop_line(driver)
        raise SweepDirError(str(folder.path), found, "a driver is stopped where it is", hint)


def _log_of(folder: SweepDir, place: str, trial: str) -> tuple[str, Callable[[], Parts]]:
    """The id that is meant, and what reads its log; the journal is where the command was asked."""
    from sweeper.journal import Tally
    from sweeper.plan import planned_ids
    from sweeper.store.root import Root

    asked = SweepDir(place)
    root, tally = Root(folder.root()), Tally.read(asked.status, asked.journal)
    trial_id = find_trial(trial, dict.fromkeys([*planned_ids(folder.plan), *tally.trials]), "TRIAL")
    label = tally.trials.get(trial_id, {}).get("label", trial_id)  # its id of an older schema
    return trial_id, lambda: {**root.log_parts(label), **root.log_parts(trial_id)}


def _chosen(folder: SweepDir, asked: Selectors) -> list[str] | None:
    """The planned trials that are asked for; None for all of them."""
    from sweeper.plan import planned_ids
    from sweeper.status.states import states_of

    if not asked:
        return None
    folder.require()
    ids = planned_ids(folder.plan)
    return chosen(asked, ids, lambda: planned_configs(folder.plan), lambda: states_of(folder, ids))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _follow(
    sight: Sight | StoredSight,
    root: str,
    log: Callable[[], Parts],
    trial: str,
    lines: int | None,
) -> None:
    """Print a log until its trial has ended, or nobody is there to go on with it."""
    from sweeper.status.logs import follow
    from sweeper.status.states import ENDED

    state = ""

    def is_over() -> bool:
        nonlocal state
        seen = sight.look()
        state = seen.states[trial]
        return state in ENDED or seen.driver is None

    seconds = BUCKET_SECONDS if "://" in root else POLL_SECONDS
    follow(log, lines, _write, is_over, lambda: time.sleep(seconds))
    say(f"trial {trial} is {state}")
