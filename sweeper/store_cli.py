"""The commands on a store: verify, seal, export, import."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.store.schema import SampleSet
    from sweeper.store.verify import Report

EXIT_DAMAGED = 5

Place = Annotated[
    str, typer.Argument(metavar="DIR", help="A sweep directory, a store's folder, or a URL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    directory: Place,
    as_json: Json = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Take damaged trials out, so that a launch reruns them."),
    ] = False,
    rebuild_index: Annotated[
        bool, typer.Option("--rebuild-index", help="Make the index of trials anew.")
    ] = False,
) -> None:
    """Read everything stored in DIR and check it. Exit 5 on damage that is not repaired."""
    from sweeper.store import open_store
    from sweeper.store.index import write_index
    from sweeper.store.verify import verify as check

    store = open_store(directory)
    with _alone(directory) if repair else contextlib.nullcontext():
        report = check(store, _progress())
        if as_json:
            print(json.dumps(dataclasses.asdict(report), indent=1))
        else:
            _print_report(report)
        is_damaged = bool(report.damages)
        if repair and is_damaged:
            is_damaged = not _repair(directory, report)
        if rebuild_index and not is_damaged:
            fresh = open_store(directory)
            _say(f"{write_index(fresh.objects, fresh.summary, rebuild=True):,} trials indexed")
    if is_damaged:
        raise typer.Exit(EXIT_DAMAGED)


def seal(directory: Place) -> None:
    """Seal what is recorded to its end in DIR but was never sealed."""
    from sweeper.store import open_store
    from sweeper.store.index import write_index
    from sweeper.store.seal import seal_recorded

    store = open_store(directory)
    with _alone(directory):
        sealed, left = seal_recorded(store.objects)
        write_index(store.objects, store.summary)
    print(f"{sealed:,} trials sealed, {left:,} not recorded to their end")
    if left:
        _say(f"`sweeper resume {directory}` completes them")


commands: dict[str, Callable[..., None]] = {
    "verify": verify,
    "seal": seal,
}


# --- helping them ---------------------------------------------------------------------------


def _say(text: str) -> None:
    """A message: to standard error, so that standard output stays data."""
    print(text, file=sys.stderr)


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Hold the sweep directory, so that no driver's workers write meanwhile."""
    folder = SweepDir(directory)
    if "://" in directory or not folder.manifest.is_file():
        _say(f"{directory}: no sweep directory, so nothing keeps a launch from writing meanwhile")
        yield
        return
    with folder.locked():
        yield


def _progress() -> Callable[[int, int], None]:
    from sweeper.display import counter

    return counter("trials checked")


def _print_report(report: Report) -> None:
    print(f"{report.n_trials:,} trials, {report.n_snapshots:,} snapshots read")
    for damage in report.damages:
        snapshot = "" if damage.snapshot is None else f", snapshot {damage.snapshot}"
        print(f"damaged: {damage.where}{snapshot}: {damage.found}")
        print(f"  hint: {damage.remedy}")
    if report.orphans:
        print(f"{len(report.orphans)} leftovers of crashes; the next launch removes them")
    print(f"{len(report.damages)} damages found" if report.damages else "no damage found")


def _repair(directory: str, report: Report) -> bool:
    """Repair, say what was done, and whether nothing is left."""
    from sweeper.store import open_store
    from sweeper.store.repair import repair

    done = repair(open_store(directory), report, _samples_of)
    if done.requeued:
        _say(f"{len(done.requeued)} trials to be run again: {', '.join(done.requeued[:5])}")
        _say(f"`sweeper resume {directory}` runs them")
    if done.rewritten:
        _say(f"{len(done.rewritten)} sample sets written anew")
    for key in done.left:
        _say(f"sample set {key} cannot be made from data that is here; restore it from a copy")
    return not done.left


def _samples_of(config: dict[str, Any]) -> list[SampleSet]:
    from sweeper.trial import sample_sets

    return sample_sets(config)
