"""The three stages of an analysis: each reads files, writes files, and is skipped if unchanged.

::

    predictions.zarr ─distances→ distances.zarr, snapshots.parquet
                     ─embed→     embedding.parquet, references.parquet, inpca.json
                     ─report→    report.html, figures/*.png

One process at a time is at work on a sweep's artifacts; a second one is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from analysis import fill as filling
from analysis.bhattacharyya import COEFFICIENT_FLOOR
from analysis.blocks import DistanceBlocks
from analysis.inpca import COMPONENTS, InPCA, inpca
from analysis.lock import locked
from analysis.provenance import provenance, read_document, read_table, write_document, write_table
from analysis.select import Selection, select
from analysis.tiles import DISTANCES, TILE, Tiling, open_distances
from sweeper.errors import AnalysisError, StoreError
from sweeper.store import Store, open_store
from sweeper.sweep_dir import PREDICTIONS

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def alone(sweep_dir: Path) -> Iterator[None]:
    """Hold the artifacts of a sweep, as every stage does, through several stages.

    Raises
    ------
    AnalysisError : another process analyses this sweep. MissingStoreError : there is no store.
    """
    with locked(_folder(sweep_dir)):
        yield


def _alone(stage: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    @functools.wraps(stage)
    def run(sweep_dir: Path, /, *args: P.args, **options: P.kwargs) -> T:
        with alone(sweep_dir):
            return stage(sweep_dir, *args, **options)

    return run


@_alone
def distances(
    sweep_dir: Path,
    where: str | None = None,
    exclude_untrained: bool = False,
    say: Say = lambda message: None,
    progress: Progress = lambda done, total: None,
) -> list[Path]:
    """Select snapshots and compute the distances between all of them.

    Tiles that are there, finished and undamaged are kept. Returns the paths of the artifacts.

    Raises
    ------
    SweeperError : no store, nothing to analyse, differing samples, damaged predictions.
    """
    folder, store = _folder(sweep_dir), open_store(sweep_dir)
    selection = select(store, where, exclude_untrained)
    about = _about(selection, store)
    for line in _summary(selection):
        say(line)
    path, table = folder / DISTANCES, folder / "snapshots.parquet"
    M = len(selection.rows)
    blocks = DistanceBlocks(store.location, selection.rows, selection.split)
    computed = filling.fill(path, blocks, Tiling(M, min(M, TILE)), about, progress=progress)
    # The rows come second: until they are those of the matrix, readers refuse the two.
    write_table(table, selection.rows, about)
    if not computed:
        say("distances: unchanged")
    return [path, table]


@_alone
def embed(
    sweep_dir: Path, n_components: int | None = None, say: Say = lambda message: None
) -> list[Path]:
    """Embed the distances by InPCA, and place truth and ignorance.

    Parameters
    ----------
    n_components : axes to keep; by default 10, or one a snapshot where there are fewer.

    Raises
    ------
    SweeperError : there are no distances, they are unfinished or damaged, or `n_components` is
        out of range.
    """
    folder, D = _folder(sweep_dir), open_distances(sweep_dir)
    k = min(COMPONENTS, D.shape[0]) if n_components is None else n_components
    about = provenance(
        "inpca",
        {"distances": D.about["fingerprint"], **D.about["inputs"]},
        {**D.about["parameters"], "n_components": k},
        D.about["left_out"],
    )
    tables = [folder / "embedding.parquet", folder / "references.parquet"]
    document = folder / "inpca.json"
    if _unchanged(about, tables, document):
        say("inpca: unchanged")
        return [*tables, document]
    embedding = inpca(D, k)
    # The document comes last: with it, the tables of this embedding are there.
    write_table(tables[0], _with_axes(D.snapshots, embedding.coordinates), about)
    names = pd.DataFrame({"trial_id": ["truth", "ignorance"]})
    write_table(tables[1], _with_axes(names, embedding.project(D.references)), about)
    write_document(document, _numbers(embedding), about)
    return [*tables, document]


@_alone
def report(sweep_dir: Path, say: Say = lambda message: None) -> list[Path]:
    """Draw the embedding: one HTML page and the figures as PNG.

    Raises
    ------
    SweeperError : there is no embedding, or it is not of the distances that are there.
    """
    from analysis.contents import gather
    from analysis.figures import FIGURES, write_figures
    from analysis.report import fingerprint_of, write_report

    folder = _folder(sweep_dir)
    contents = gather(sweep_dir, folder)
    page = folder / "report.html"
    figures = [folder / "figures" / name for name in FIGURES]
    for note in contents.notes:
        say(note)
    unchanged = fingerprint_of(page) == contents.about["fingerprint"]
    if unchanged and all(path.exists() for path in figures):
        say("report: unchanged")
    else:
        write_figures(contents, folder / "figures")
        write_report(contents, page)  # last: with it, the figures of this embedding are there
    return [page, *figures]


def _folder(sweep_dir: Path) -> Path:
    """Where a sweep's artifacts go."""
    if open_store(sweep_dir).location == str(Path(sweep_dir)):
        raise AnalysisError(
            str(sweep_dir),
            "a store, not a sweep directory",
            f"a directory that holds `{PREDICTIONS}`",
            f"artifacts go beside the store: give `{Path(sweep_dir).parent}`",
        )
    return Path(sweep_dir) / "analysis"


def _about(selection: Selection, store: Store) -> dict[str, Any]:
    """The provenance of the distances of a selection."""
    trial_id = str(selection.rows["trial_id"].iloc[0])
    return provenance(
        "distances",
        {
            "digests": selection.digests,
            "sample_set": store.sample_set(selection.split, trial_id),
        },
        {
            "where": selection.where,
            "exclude_untrained": selection.exclude_untrained,
            "split": selection.split,
            "n_samples": len(store.labels(selection.split, trial_id)),
            "n_classes": len(store.class_names(trial_id)),
            "coefficient_floor": COEFFICIENT_FLOOR,
        },
        selection.left_out,
    )


def _summary(selection: Selection) -> list[str]:
    """What is analysed and what is not, in words."""
    lines = [f"{len(selection.digests)} trials, {len(selection.rows)} snapshots"]
    for reason, trial_ids in selection.left_out.items():
        more = f" and {len(trial_ids) - 3} more" if len(trial_ids) > 3 else ""
        lines.append(f"left out, {reason}: {len(trial_ids)} ({', '.join(trial_ids[:3])}{more})")
    return lines


def _unchanged(about: dict[str, Any], tables: list[Path], document: Path) -> bool:
    """Whether all these artifacts are there, whole, and of this provenance."""
    try:
        found = [read_table(path)[1] for path in tables]
        found.append(read_document(document)["provenance"])
    except StoreError:
        return False
    return all(item["fingerprint"] == about["fingerprint"] for item in found)


def _with_axes(table: pd.DataFrame, coordinates: np.ndarray[Any, Any]) -> pd.DataFrame:
    """The table with columns pc1 … pck."""
    axes = {f"pc{i}": column for i, column in enumerate(coordinates.T, start=1)}
    return pd.concat([table, pd.DataFrame(axes, index=table.index)], axis=1)


def _numbers(embedding: InPCA) -> dict[str, Any]:
    """What `inpca.json` says beside its provenance."""
    certified = np.abs(embedding.eigenvalues) > embedding.bound
    return {
        "eigenvalues": embedding.eigenvalues.tolist(),
        "explained_stress": embedding.explained_stress.tolist(),
        "bound": embedding.bound,
        "n_certified": int(certified.argmin()) if not certified.all() else len(certified),
        "residuals": embedding.residuals.tolist(),
        "frobenius_norm": embedding.frobenius_norm,
        "spectrum": embedding.spectrum.tolist(),
    }
