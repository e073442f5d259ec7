"""The three stages of an analysis: each reads files, writes files, and is skipped if unchanged.

::

    predictions.zarr ─distances→ distances.zarr, snapshots.parquet
                     ─embed→     embedding.parquet, references.parquet, inpca.json
                     ─report→    report.html, figures/*.png
                     ─map→       map.npz, in which ─project→ projection.parquet (`analysis.maps`)

Each is told the folder whose `analysis/` holds the artifacts: a sweep directory, or one that is
there for the artifacts of several stores or of one elsewhere. One process at a time is at work on
them; a second one is refused.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from analysis import fill as filling
from analysis.blocks import DistanceBlocks
from analysis.distance import BHATTACHARYYA, Distance, distance_of, kind_of
from analysis.inpca import COMPONENTS, InPCA, inpca
from analysis.lock import locked
from analysis.memory import budget
from analysis.places import artifacts
from analysis.provenance import are_of, provenance, write_document, write_table
from analysis.select import Selection, select
from analysis.tiles import (
    DISTANCES,
    TILE,
    Tiling,
    aside,
    attributes_of,
    finished,
    open_distances,
    unfinished,
)
from analysis.union import open_union
from analysis.upper import Progress
from sweeper.errors import AnalysisError, StoreError, few, nearest

Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the artifacts in a folder, as every stage does, through several stages.

    Raises
    ------
    AnalysisError : another process holds them, or the folder is a store.
    """
    with locked(artifacts(folder)):
        yield


def _alone(stage: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    @functools.wraps(stage)
    def run(folder: Path, /, *args: P.args, **options: P.kwargs) -> T:
        with alone(folder):
            return stage(folder, *args, **options)

    return run


@_alone
def distances(
    folder: Path,
    where: str | None = None,
    exclude_untrained: bool = False,
    say: Say = lambda message: None,
    progress: Progress = lambda done, total: None,
    places: Sequence[str] = (),
    memory: int | None = None,
    map: filling.Map = filling.map_here,
    ask: filling.Ask = filling.ask_here,
    distance: str = BHATTACHARYYA,
    n_components: int | None = None,
) -> list[Path]:
    """Select snapshots and compute the distances between all of them.

    Tiles that are there, finished and undamaged are kept. Returns the paths of the artifacts.

    Parameters
    ----------
    places : where the trials are, see `open_union`; by default the folder itself.
    memory : bytes that a process may take, whatever the number of snapshots; by default half of
        what is free on its machine.
    map, ask : what the work is shared out with, see `analysis.fill.fill`.
    distance : a key of `analysis.distance.KINDS`.
    n_components : the axes that will be asked for, refused here where there are too few snapshots.

    Raises
    ------
    SweeperError : no store, nothing to analyse, differing samples, damaged predictions, too little
        memory or too little room on the disk; or the folder has distances of another kind, which
        are kept.
    """
    kind = kind_of(distance)
    _check_kind(folder, kind)
    union = open_union(places or [folder], say)
    selection = select(union, where, exclude_untrained)
    about = _about(selection, folder, kind)
    for line in summary(selection):
        say(line)
    path, table = (artifacts(folder) / name for name in (DISTANCES, "snapshots.parquet"))
    M = len(selection.rows)
    check_asked(n_components, n_snapshots=M)
    homes = {trial_id: _anywhere(place) for trial_id, place in selection.locations.items()}
    blocks = DistanceBlocks(
        homes,
        selection.rows,
        selection.split,
        functools.partial(budget, memory),
        kernels=kind.kernels,
        has_closed_truth=kind.has_closed_truth,
    )
    tiling = Tiling(M, min(M, TILE))
    computed = filling.fill(path, blocks, tiling, about, map, progress, say, ask)
    # The rows come second: until they are those of the matrix, readers refuse the two.
    write_table(table, selection.rows, about)
    if not computed:
        say("distances: unchanged")
    return [path, table]


def check_asked(
    n_components: int | None, weigh: str | None = None, n_snapshots: int | None = None
) -> None:
    """Refuse what `embed` would refuse whatever the distances are, before there are any.

    Raises
    ------
    AnalysisError : `n_components` is no number of axes, or `weigh` is none of those it may be.
    """
    if weigh not in (None, "trials"):
        raise AnalysisError("--weigh", f"`{weigh}`", "trials", nearest(weigh, ["trials"]))
    most = math.inf if n_snapshots is None else n_snapshots - 1
    if n_components is not None and not 1 <= n_components <= most:
        many = "there are" if n_snapshots is None else f"the {n_snapshots}"
        allowed = f"1 or more, fewer than {many} snapshots"
        raise AnalysisError("--components", f"`{n_components}`", allowed)


@_alone
def embed(
    folder: Path,
    n_components: int | None = None,
    say: Say = lambda message: None,
    weigh: str | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Path]:
    """Embed the distances by InPCA, and place truth and ignorance.

    Parameters
    ----------
    n_components : axes to keep; by default 10, or one fewer than there are snapshots.
    weigh : `trials`, so that each trial counts alike, however many snapshots it has; by default
        each snapshot does.

    Raises
    ------
    SweeperError : there are no distances, they are unfinished or damaged, `n_components` is out of
        range, or `weigh` is something else.
    """
    place, D = artifacts(folder), open_distances(folder)
    check_asked(n_components, weigh, D.shape[0])
    k = min(COMPONENTS, D.shape[0] - 1) if n_components is None else n_components
    about = provenance(
        "inpca",
        {"distances": D.about["fingerprint"], **D.about["inputs"]},
        {**D.about["parameters"], "n_components": k, "weigh": weigh},
        D.about["left_out"],
        D.about.get("places", ()),
    )
    tables = [place / "embedding.parquet", place / "references.parquet"]
    document = place / "inpca.json"
    if are_of(about, tables, [document]):
        say("inpca: unchanged")
        return [*tables, document]
    embedding = inpca(D, k, weights_of(D.snapshots, weigh), progress)
    if not embedding.has_converged:
        worst = embedding.residuals.max() / abs(embedding.eigenvalues[0])
        say(f"inpca: an eigenvalue is uncertain by {worst:.0e} of the largest; fewer axes converge")
    # The document comes last: with it, the tables of this embedding are there.
    write_table(tables[0], with_axes(D.snapshots, embedding.coordinates), about)
    names = pd.DataFrame({"trial_id": ["truth", "ignorance"]})
    write_table(tables[1], with_axes(names, embedding.project(D.references)), about)
    write_document(document, _numbers(embedding), about)
    return [*tables, document]


@_alone
def report(folder: Path, say: Say = lambda message: None) -> list[Path]:
    """Draw the embedding: one HTML page and the figures as PNG.

    Raises
    ------
    SweeperError : there is no embedding, or it is not of the distances that are there.
    """
    from analysis.contents import gather
    from analysis.figures import FIGURES, write_figures
    from analysis.report import fingerprint_of, write_report

    place, contents = artifacts(folder), gather(folder, artifacts(folder))
    page = place / "report.html"
    figures = [place / "figures" / name for name in FIGURES]
    for note in contents.notes:
        say(note)
    unchanged = fingerprint_of(page) == contents.about["fingerprint"]
    if unchanged and all(path.exists() for path in figures):
        say("report: unchanged")
    else:
        write_figures(contents, place / "figures")
        write_report(contents, page)  # last: with it, the figures of this embedding are there
    return [page, *figures]


def _check_kind(folder: Path, kind: Distance) -> None:
    """Refuse a folder with distances of another kind, all of them or some."""
    path = artifacts(folder) / DISTANCES
    for place in (path, unfinished(path), aside(path)):
        found = kind.name
        with contextlib.suppress(StoreError, KeyError):  # what is damaged is computed again
            found = distance_of((attributes_of(place) or {})["about"])
        if found != kind.name and finished(place):
            raise AnalysisError(
                str(folder),
                f"distances of the kind `{found}` are there",
                f"a folder without any, or with `{kind.name}`",
                f"name another folder by `--out`, or ask for `--distance {found}`",
            )


def _anywhere(location: str) -> str:
    """Where a store is, for processes that work in other folders."""
    return location if "://" in location else os.path.abspath(location)


def _about(selection: Selection, folder: Path, kind: Distance) -> dict[str, Any]:
    """The provenance of the distances of a selection."""
    trial_id, store = selection.example
    n_samples, n_classes = store.shape(selection.split, trial_id)
    return provenance(
        "distances",
        {
            "digests": selection.digests,
            "snapshots": {
                str(t): int(n) for t, n in selection.rows.groupby("trial_id").size().items()
            },
            "sample_set": store.sample_set(selection.split, trial_id),
        },
        {
            "where": selection.where,
            "exclude_untrained": selection.exclude_untrained,
            "split": selection.split,
            "n_samples": n_samples,
            "n_classes": n_classes,
            "distance": kind.name,
            **kind.parameters,
        },
        selection.left_out,
        selection.places(folder),
    )


def summary(selection: Selection) -> list[str]:
    """What is analysed and what is not, in words."""
    again = sorted(set().union(*selection.repeated.values()))
    return [
        f"{len(selection.digests)} trials, {len(selection.rows)} snapshots",
        *([f"in several places, taken once: {_counted(again)}"] if again else []),
        *(f"left out, {reason}: {_counted(ids)}" for reason, ids in selection.left_out.items()),
    ]


def _counted(trial_ids: Sequence[str]) -> str:
    return f"{len(trial_ids)} ({few(trial_ids)})"


def weights_of(snapshots: pd.DataFrame, weigh: str | None) -> pd.Series[float] | None:
    """Weights of 1 on average whose sum is the same for each trial, if `weigh` asks for them."""
    if weigh is None:
        return None
    size = snapshots.groupby("trial_id")["trial_id"].transform("size")
    return len(snapshots) / (snapshots["trial_id"].nunique() * size)


def with_axes(table: pd.DataFrame, coordinates: np.ndarray[Any, Any]) -> pd.DataFrame:
    """The table with columns pc1 … pck."""
    axes = {f"pc{i}": column for i, column in enumerate(coordinates.T, start=1)}
    return pd.concat([table, pd.DataFrame(axes, index=table.index)], axis=1)


def _numbers(embedding: InPCA) -> dict[str, Any]:
    """What `inpca.json` says beside its provenance."""
    return {
        "eigenvalues": embedding.eigenvalues.tolist(),
        "explained_stress": embedding.explained_stress.tolist(),
        "explained_frobenius": embedding.explained_frobenius.tolist(),
        "explained_l1": embedding.explained_l1.tolist(),
        "time_like_share": embedding.time_like_share,
        "bound": embedding.bound,
        "n_certified": embedding.n_certified,
        "residuals": embedding.residuals.tolist(),
        "frobenius_norm": embedding.frobenius_norm,
        "spectrum": embedding.spectrum.tolist(),
    }
