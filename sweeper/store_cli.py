"""The commands on a store: verify, seal, export, import."""

from __future__ import annotations

import contextlib
import enum
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.chosen import Ids, Selectors, States, Where
from sweeper.errors import ConfigError, SweepDirError, SweeperError, nearest
from sweeper.options import Json
from sweeper.say import say
from sweeper.sweep_dir import PREDICTIONS, SweepDir

if TYPE_CHECKING:
    from sweeper.config import TrialConfig
    from sweeper.journal import Tally
    from sweeper.store import Store
    from sweeper.store.adopt import Source
    from sweeper.store.schema import SampleSet
    from sweeper.store.verify import Report

EXIT_DAMAGED = 5

Place = Annotated[
    str, typer.Argument(metavar="DIR", help="A sweep directory, a store's folder, or a URL.")
]

_ONE_TRIAL = "keys as in a grid's `base`, nested or dotted, and one value for each"


class ExportFormat(enum.StrEnum):
    """What a store is exported to."""

    parquet = "parquet"


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
    where: Where = None,
    ids: Ids = None,
    states: States = None,
) -> None:
    """Read everything stored in DIR and check it. Exit 5 on damage that is not repaired."""
    from sweeper.store import open_store
    from sweeper.store.index import write_index
    from sweeper.store.verify import verify as check

    asked = Selectors.of(where, ids, states)
    store = open_store(directory)
    with _alone(directory) if repair else contextlib.nullcontext():
        only = _chosen(asked, store, directory)
        report = check(store, _tally(directory), _progress(), only)
        if as_json:
            print(json.dumps(report.fields(), indent=1))
        else:
            _print_report(report)
        is_damaged = bool(report.damages)
        if repair and is_damaged:
            is_damaged = not _repair(directory, report)
        if rebuild_index and not is_damaged:
            fresh = open_store(directory)
            say(f"{write_index(fresh.objects, fresh.summary, rebuild=True):,} trials indexed")
    if is_damaged:
        raise typer.Exit(EXIT_DAMAGED)


def seal(directory: Place, where: Where = None, ids: Ids = None, states: States = None) -> None:
    """Seal what is recorded to its end in DIR but was never sealed."""
    from sweeper.store import open_store
    from sweeper.store.index import write_index
    from sweeper.store.seal import seal_recorded

    asked = Selectors.of(where, ids, states)
    store = open_store(directory)
    with _alone(directory):
        sealed, left = seal_recorded(store.objects, _chosen(asked, store, directory))
        write_index(store.objects, store.summary)
    print(f"{sealed:,} trials sealed, {left:,} not recorded to their end")
    if left:
        say(f"`sweeper resume {directory}` completes them")


def export(
    directory: Place,
    to: Annotated[
        ExportFormat, typer.Option("--format", help="The files' format.")
    ] = ExportFormat.parquet,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Default: DIR/export.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Only trials for which this holds, as in `analyze`."),
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Also a row a snapshot and test sample.")
    ] = False,
    ids: Ids = None,
    states: States = None,
) -> None:
    """Write what is stored in DIR as tables: one row a trial, and one row a snapshot."""
    from sweeper.display import counter
    from sweeper.store import open_store
    from sweeper.store.export import export as write

    asked = Selectors.of(None, ids, states)  # `where` may name metrics, which only stores have
    store = open_store(directory)
    only = _chosen(asked, store, directory)
    folder = _export_folder(directory) if out is None else out
    written = write(store, folder, where, predictions, counter("snapshots exported"), only)
    for path, n_rows in written.items():
        print(f"{path}: {n_rows:,} rows")


def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A sweep, or its directory.")],
    arrays: Annotated[Path, typer.Argument(metavar="ARRAYS", help="An .npz file of predictions.")],
    config: Annotated[
        Path, typer.Option("--config", metavar="YAML", help="The trial's configuration.")
    ],
) -> None:
    """Put what was trained elsewhere beside the trials of the sweep NAME, after the same checks.

    ARRAYS holds `log_probs` or `probs` (n_snapshots, n_samples, n_classes), `steps`, `epochs`,
    `labels`, and may hold `ids`, `class_names` and metrics.
    """
    from sweeper.store import Store
    from sweeper.store.adopt import adopt
    from sweeper.store.foreign import read_trajectory
    from sweeper.store.index import write_index
    from sweeper.store.root import Root

    folder = _sweep(name)
    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints is no part of the answer
        trial = _one_trial(config)
        given = read_trajectory(arrays)
        with _alone(str(folder.path)):
            objects = Root(folder.root()).predictions
            done = adopt(objects, trial, given, lambda: _source(trial))
            write_index(objects, Store(objects).summary)
    print(done.trial_id, done.digest)
    what = f"{len(given.steps):,} snapshots imported" if done.is_new else "was there already"
    say(f"{folder.path}: trial {done.trial_id}: {what}")


commands: dict[str, Callable[..., None]] = {
    "verify": verify,
    "seal": seal,
    "export": export,
    "import": import_,
}


# --- helping them ---------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Hold the sweep directory, so that no driver's workers write meanwhile.

    Raises
    ------
    SweepDirError : a driver holds it, or a sweep whose store is the same.
    """
    folder = _sweep_dir(directory)
    if folder is None:
        _check_undriven(directory.removesuffix("/").removesuffix(f"/{PREDICTIONS}"))
        say(f"{directory}: no sweep directory, so nothing keeps a launch from writing meanwhile")
        yield
        return
    with folder.locked():
        if (root := folder.root()) != str(folder.path):
            _check_undriven(root)
        yield


def _check_undriven(root: str) -> None:
    """Refuse while drivers elsewhere may write below this root."""
    from sweeper.store.claim import driver_of, perhaps_held
    from sweeper.store.sweeps import drivers

    for sweep in drivers(root):
        if (driver := driver_of(sweep.objects)) is not None:
            raise perhaps_held(sweep.objects.location, driver)


def _sweep_dir(directory: str) -> SweepDir | None:
    """The sweep directory that is named, itself or by the store in it; None for any other place."""
    path = Path(directory.removeprefix("file://"))
    for folder in (SweepDir(path), SweepDir(path.absolute().parent)):
        if folder.manifest.is_file() and (folder.path == path or path.name == PREDICTIONS):
            return folder
    return None


def _chosen(asked: Selectors, store: Store, directory: str) -> set[str] | None:
    """The stored trials that are asked for, None for all."""
    from sweeper.chosen_stored import chosen_stored

    return chosen_stored(asked, store, _sweep_dir(directory))


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
    from sweeper.journal import Journal
    from sweeper.store import open_store
    from sweeper.store.repair import repair

    done = repair(open_store(directory), report, _samples_of)
    if done.requeued:
        folder = _sweep_dir(directory)
        if folder is not None and folder.journal.is_file():
            with Journal(folder.journal) as journal:
                for trial_id in done.requeued:
                    journal.append("requeued", trial=trial_id)
        say(f"{len(done.requeued)} trials to be run again: {', '.join(done.requeued[:5])}")
        say(f"`sweeper resume {directory}` runs them")
    if done.removed:
        say(f"{len(done.removed)} trials to be imported again: {', '.join(done.removed)}")
    if done.rewritten:
        say(f"{len(done.rewritten)} sample sets written anew")
    for damage in done.left:
        say(f"left as it is: {damage.where}: {damage.found}")
    return not done.left


def _tally(directory: str) -> Tally | None:
    """What the journal says, where there is one."""
    from sweeper.journal import Tally

    folder = _sweep_dir(directory)
    return None if folder is None else Tally.read(folder.status, folder.journal)


def _samples_of(config: dict[str, Any]) -> list[SampleSet]:
    from sweeper.trial import sample_sets

    return sample_sets(config)


def _export_folder(directory: str) -> Path:
    folder = SweepDir(directory)
    if not folder.manifest.is_file():
        found = f"missing, and `{directory}` is no sweep directory"
        raise SweeperError("--out", found, "a folder for the files", "for example `--out export`")
    return folder.path / "export"


def _sweep(name: str) -> SweepDir:
    """The sweep of that name, or in that directory."""
    runs = Path("runs")
    for path in (runs / name, Path(name)):
        if (folder := SweepDir(path)).manifest.is_file():
            return folder
    known = [path.parent.name for path in runs.glob("*/manifest.json")]
    hint = nearest(name, known) or "`sweeper launch GRID` makes one, by default `runs/<grid name>`"
    raise SweepDirError(name, "no such sweep", "the name of one in `runs`, or its directory", hint)


def _one_trial(path: Path) -> TrialConfig:
    """The configuration in a file that is written as a grid's `base`."""
    from sweeper.config import TrialConfig
    from sweeper.grid_keys import flat_of, leaves
    from sweeper.yaml_file import load_mapping, read_text

    try:
        return TrialConfig.from_flat(flat_of(leaves(load_mapping(read_text(path)))))
    except SweeperError as error:
        hint = _ONE_TRIAL if error.hint == error.usual_hint else error.hint
        where = f"{path}: {error.where}".removesuffix(": grid")
        raise ConfigError(where, error.found, error.allowed, hint) from error


def _source(config: TrialConfig) -> Source:
    """What the data set of a configuration says of itself, as far as it is here."""
    from sweeper.store.adopt import Source
    from sweeper.train.data import describe

    found = Source()
    with contextlib.suppress(SweeperError, OSError):
        found = Source(class_names=describe(config.data).class_names)
        test_set, _ = _samples_of(config.to_flat())
        found = Source(test_set, test_set.class_names)
    return found
