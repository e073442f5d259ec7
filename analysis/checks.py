"""Whether the picture depends on the distance, and how much on the samples; on some snapshots."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.ahead import Rows
from analysis.bhattacharyya import COEFFICIENT_FLOOR
from analysis.landmarks import choose
from analysis.linear import PROBABILITY_FLOOR
from analysis.memory import budget, size_text
from analysis.places import artifacts
from analysis.provenance import are_of, provenance, read_document, write_document
from analysis.resampling import (
    AXES,
    Distances,
    agreement,
    measure,
    resampled_stress,
    stratified_counts,
    stress,
)
from analysis.select import Selection, select
from analysis.stages import Say, alone, summary
from analysis.union import open_union
from sweeper.errors import AnalysisError

SNAPSHOTS, RESAMPLES = 300, 100
CHECKS = "checks.json"
_SHOWN = (1, 2, 3, 10)  # axes
_ROUNDING = 1e-12  # nats, of distances in float64
_AT_ONCE = 1 << 24  # coefficients, or predictions, in float64
_MATRICES = 20  # as large as all distances, at most, beside the resampled ones
_COPIES = 6  # of a run's coefficients and predictions, at most


def check(
    folder: Path,
    where: str | None = None,
    exclude_untrained: bool = False,
    n_snapshots: int = SNAPSHOTS,
    n_resamples: int = RESAMPLES,
    say: Say = lambda message: None,
    places: Sequence[str] = (),
    memory: int | None = None,
) -> list[Path]:
    """Compare distances and resample the test set, on snapshots chosen evenly at random.

    Writes `checks.json` and says what is in it: explained stress with its standard error, the
    relative standard error of distances, and what the Hellinger distance and symmetrised KL make
    of the same snapshots (`analysis.resampling`).

    Parameters
    ----------
    n_snapshots : more than 3; all where there are fewer. n_resamples : at least 2.
    places : where the trials are, see `open_union`; by default the folder itself.
    memory : bytes that this process may take; by default half of what is free.

    Raises
    ------
    SweeperError : as in `analysis.stages.distances`, all snapshots coincide, a number is too small,
        or one is too large for the memory.
    """
    if n_snapshots <= AXES:
        raise AnalysisError("--snapshots", f"`{n_snapshots}`", f"more than {AXES}")
    if n_resamples < 2:
        raise AnalysisError("--resamples", f"`{n_resamples}`", "2 or more")
    with alone(folder):
        selection = select(open_union(places or [folder], say), where, exclude_untrained)
        for line in summary(selection):
            say(line)
        if len(selection.rows) <= AXES:
            found = f"{len(selection.rows)} snapshots"
            raise AnalysisError(str(folder), found, f"more than {AXES}")
        path = artifacts(folder) / CHECKS
        about = _about(selection, folder, n_snapshots, n_resamples)
        if are_of(about, documents=[path]):
            say("checks: unchanged")
        else:
            results = _results(selection, n_snapshots, n_resamples, budget(memory))
            write_document(path, results, about)
        for line in _told(read_document(path)):
            say(line)
        return [path]


def _about(
    selection: Selection, folder: Path, n_snapshots: int, n_resamples: int
) -> dict[str, Any]:
    trial_id, store = selection.example
    return provenance(
        "checks",
        {
            "digests": selection.digests,
            "sample_set": store.sample_set(selection.split, trial_id),
        },
        {
            "where": selection.where,
            "exclude_untrained": selection.exclude_untrained,
            "split": selection.split,
            "n_snapshots": n_snapshots,
            "n_resamples": n_resamples,
            "coefficient_floor": COEFFICIENT_FLOOR,
            "probability_floor": PROBABILITY_FLOOR,
        },
        selection.left_out,
        selection.places(folder),
    )


def _results(
    selection: Selection, n_snapshots: int, n_resamples: int, memory: int
) -> dict[str, Any]:
    trial_id, store = selection.example
    shape = n_samples, n_classes = store.shape(selection.split, trial_id)
    chosen = selection.rows.iloc[choose(len(selection.rows), n_snapshots)]
    step = _samples_at_once(len(chosen), n_resamples, n_classes, memory)
    labels = store.labels(selection.split, trial_id)
    found = measure(
        Rows(selection.locations, chosen, selection.split).runs(shape, step, 1),
        stratified_counts(labels, n_resamples),
    )
    if found.bhattacharyya.max() <= _ROUNDING:
        where, allowed = selection.union.location, "at least two different ones"
        raise AnalysisError(where, "all snapshots coincide", allowed)
    n_axes = min(max(_SHOWN), len(chosen) - 1)
    return {
        "n_snapshots": len(chosen),
        "n_samples": n_samples,
        "distances": _scatter(found),
        "explained_stress": {
            "bhattacharyya": stress(found.bhattacharyya, n_axes).tolist(),
            "standard_error": resampled_stress(found, n_axes).std(axis=0, ddof=1).tolist(),
            "hellinger": stress(found.hellinger, n_axes).tolist(),
            "symmetrised_kl": stress(found.symmetrised_kl, n_axes).tolist(),
        },
        "agreement": {
            name: dict(zip(("rank_correlation", "first_axes"), agreement(*pair), strict=True))
            for name, pair in (
                ("hellinger", (found.bhattacharyya, found.hellinger)),
                ("symmetrised_kl", (found.bhattacharyya, found.symmetrised_kl)),
            )
        },
    }


def _samples_at_once(m: int, n_resamples: int, n_classes: int, memory: int) -> int:
    """Of m snapshots; refuses those whose pairs do not fit into memory."""

    def kept(m: int) -> int:
        # Of every resampled set its pairs, twice, and square matrices.
        return 8 * m * m * (n_resamples + _MATRICES)

    def of_sample(m: int) -> int:
        return 8 * m * _COPIES * (m + n_classes)

    fitting = (memory - kept(m)) // of_sample(m)
    if fitting > 0:
        return min(fitting, max(1, _AT_ONCE // (m * max(m, n_classes))))
    sizes = [size_text(max(0, n_bytes)) for n_bytes in (kept(m) + of_sample(m), memory)]
    most = bisect.bisect_right(range(m), memory, key=lambda m: kept(m) + of_sample(m)) - 1
    raise AnalysisError(
        "--snapshots",
        f"`{m}` take {sizes[0]} with {n_resamples} resamples, {sizes[1]} are left",
        f"up to {most}" if most > AXES else "",
        "fewer `--resamples` take less, or give more `--memory`",
    )


def _scatter(found: Distances) -> dict[str, float]:
    """Standard errors of the distances that are not zero, relative to them."""
    d = found.bhattacharyya[np.triu_indices(len(found.bhattacharyya), 1)]
    relative = found.standard_errors()[d > 0] / d[d > 0]
    return {
        "relative_standard_error": float(np.median(relative)),
        "relative_standard_error_95": float(np.quantile(relative, 0.95)),
    }


def _told(results: dict[str, Any]) -> list[str]:
    """The results as lines of a table."""
    explained, scatter = results["explained_stress"], results["distances"]
    shown = [k for k in _SHOWN if k <= len(explained["bhattacharyya"])]
    errors = [explained["standard_error"][k - 1] for k in shown]
    lines = [
        f"{results['n_snapshots']} snapshots, {results['n_samples']:,} samples: a distance is "
        f"known to {scatter['relative_standard_error']:.1%} (95 % of them to "
        f"{scatter['relative_standard_error_95']:.1%})",
        "explained stress, axes  " + "".join(f"{k:>16}" for k in shown),
    ]
    for name in ("bhattacharyya", "hellinger", "symmetrised_kl"):
        values = [explained[name][k - 1] for k in shown]
        cells = [f"{v:.3f}" for v in values]
        if name == "bhattacharyya":
            cells = [f"{v:.3f} ± {e:.3f}" for v, e in zip(values, errors, strict=True)]
        lines.append(f"  {name.replace('_', ' '):22}" + "".join(f"{cell:>16}" for cell in cells))
    for name, alike in results["agreement"].items():
        lines.append(
            f"{name.replace('_', ' ')}: same order of distances {alike['rank_correlation']:.3f}, "
            f"same first {AXES} axes {alike['first_axes']:.3f}"
        )
    return lines
