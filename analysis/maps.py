"""Freeze an embedding into a map, and place other sweeps in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import ahead
from analysis.contents import read_embedding
from analysis.distance import BHATTACHARYYA, distance_of
from analysis.landmarks import Landmarks, Rows, choose, distances_to
from analysis.map_file import FORMAT, Map, read_map, write_map
from analysis.memory import budget
from analysis.places import artifacts, asked
from analysis.provenance import are_of, provenance, write_table
from analysis.rectangle import Few, distances_to_few
from analysis.select import Selection, select
from analysis.stages import Say, alone, summary, weights_of, with_axes
from analysis.tiles import open_distances
from analysis.union import open_union
from analysis.upper import Float64, Progress
from sweeper.errors import AnalysisError, StoreError

LANDMARKS = 300
MOST_BYTES = 2 << 30  # of the landmarks' predictions, and of their distances to all snapshots
ROWS = 4096  # snapshots that are placed at once
MAP, PROJECTION = "map.npz", "projection.parquet"
_USUAL = 0.99


def freeze(
    folder: Path,
    n_landmarks: int = LANDMARKS,
    say: Say = lambda message: None,
    progress: Progress = lambda done, total: None,
) -> list[Path]:
    """Write the map of the embedding in a folder's artifacts.

    Parameters
    ----------
    n_landmarks : more than there are axes; all snapshots where there are fewer.

    Raises
    ------
    AnalysisError : there is no embedding, or one of other distances than Bhattacharyya's;
        `n_landmarks` is too small, the store no longer has the predictions, or those of the
        landmarks, or their distances, would exceed 2 GiB.
    SweeperError : an artifact or the landmarks' predictions are damaged.
    """
    with alone(folder):
        place = artifacts(folder)
        spectrum, embedding, _ = read_embedding(folder, place)
        embedded, k = spectrum["provenance"], len(spectrum["eigenvalues"])
        if (distance := distance_of(embedded)) != BHATTACHARYYA:
            found = f"the embedding is of distances of the kind `{distance}`"
            allowed = f"`{BHATTACHARYYA}`, which `project` computes"
            raise AnalysisError(str(folder), found, allowed, "name the sweep directory itself")
        if n_landmarks <= k:
            allowed = f"more than the {k} axes of the embedding"
            raise AnalysisError("--landmarks", f"`{n_landmarks}`", allowed)
        chosen = choose(len(embedding), n_landmarks)
        _check_size("distances", len(chosen), 8 * len(embedding))
        inputs = {**embedded["inputs"], "inpca": embedded["fingerprint"]}
        asked_for = {**embedded["parameters"], "n_landmarks": len(chosen)}
        about = provenance(
            "map", inputs, asked_for, embedded["left_out"], embedded.get("places", ())
        )
        path = place / MAP
        if path.exists() and _is_of(path, about):
            say("map: unchanged")
            return [path]
        rows = embedding.iloc[chosen][["trial_id", "snapshot"]]
        log_probs, names = _predictions(folder, rows, embedded)
        d = distances_to(open_distances(folder), chosen, progress)
        contents = {
            "map_format": FORMAT,
            "provenance": about,
            "trial_id": rows["trial_id"].to_list(),
            "snapshot": rows["snapshot"].to_list(),
            "sample_set": inputs["sample_set"],
            "split": asked_for["split"],
            "class_names": names,
        }
        write_map(path, _tried(embedding, spectrum, chosen, d, log_probs, contents))
        say(f"map: {len(chosen)} landmarks, {path.stat().st_size / 1e6:.1f} MB")
        return [path]


def _tried(
    embedding: pd.DataFrame,
    spectrum: dict[str, Any],
    chosen: Rows,
    d: Float64,
    log_probs: npt.NDArray[np.float16],
    about: dict[str, Any],
) -> Map:
    """The map of these landmarks, tried on all snapshots of the embedding.

    Parameters
    ----------
    d : (n_landmarks, M), the distances of the landmarks to all snapshots.
    """
    eigenvalues = np.asarray(spectrum["eigenvalues"])
    coordinates = embedding[[f"pc{i}" for i in range(1, len(eigenvalues) + 1)]].to_numpy()
    weights = weights_of(embedding, spectrum["provenance"]["parameters"]["weigh"])
    w = np.ones(len(embedding)) if weights is None else weights.to_numpy()
    landmarks = Landmarks(coordinates[chosen], eigenvalues, d @ w / w.sum(), w[chosen])
    x, misfit = _placed(landmarks, [d.T])
    off = np.abs(x - coordinates)
    return Map(
        landmarks,
        log_probs,
        axis_rms=np.sqrt(np.square(off).mean(axis=0)),
        axis_error=off.max(axis=0) + landmarks.rounding(float(d.max())),
        misfit=float(np.quantile(misfit, _USUAL)),
        about=about,
    )


def project(
    map_path: Path,
    place: str,
    out: str | None = None,
    say: Say = lambda message: None,
    progress: Progress = lambda done, total: None,
) -> list[Path]:
    """Place the snapshots of all complete trials of a store in a map.

    Writes `projection.parquet`: trial_id, snapshot, step, epoch, accuracy, loss, pc1 … and `misfit`
    (see `Landmarks.place`); its provenance has the map's `axis_error`.

    Parameters
    ----------
    place : a sweep directory, a store's folder or a URL.
    out : where the artifacts go, by default into `place`.

    Raises
    ------
    AnalysisError : the predictions are of other samples or classes than the map's, or there are
        none. StoreError : the map or the predictions are damaged.
    """
    found = read_map(map_path)
    folder, places = asked([place], out)
    with alone(folder):
        selection = select(open_union(places, say), split=found.about["split"])
        _check_samples(map_path, place, found, selection)
        for line in summary(selection):
            say(line)
        inputs = {
            "map": found.about["provenance"]["fingerprint"],
            "digests": selection.digests,
            "sample_set": found.about["sample_set"],
        }
        parameters = {"axis_error": found.axis_error.tolist(), "usual_misfit": found.misfit}
        about = provenance(
            "projection", inputs, parameters, selection.left_out, selection.places(folder)
        )
        path = artifacts(folder) / PROJECTION
        if are_of(about, tables=[path]):
            say("projection: unchanged")
            return [path]
        x, misfit = _placed(found.landmarks, _distances(map_path, found, selection, progress))
        write_table(path, with_axes(selection.rows, x).assign(misfit=misfit), about)
        say(
            f"projection: {(misfit > found.misfit).mean():.0%} of the snapshots fit worse than "
            f"{_USUAL:.0%} of the map's own"
        )
        return [path]


def _placed(landmarks: Landmarks, distances: Iterable[Float64]) -> tuple[Float64, Float64]:
    """What `Landmarks.place` says of all rows of some (n, n_landmarks) distances."""
    parts = (d[start : start + ROWS] for d in distances for start in range(0, len(d), ROWS))
    x, misfit = zip(*map(landmarks.place, parts), strict=True)
    return np.concatenate(x), np.concatenate(misfit)


def _is_of(path: Path, about: dict[str, Any]) -> bool:
    try:
        found = read_map(path).about["provenance"]
    except StoreError:
        return False
    return bool(found["fingerprint"] == about["fingerprint"])


def _check_size(what: str, n_landmarks: int, bytes_each: int) -> None:
    if n_landmarks * bytes_each <= MOST_BYTES:
        return
    found = f"`{n_landmarks}`, whose {what} take {n_landmarks * bytes_each / 2**30:.1f} GiB"
    allowed = f"up to {MOST_BYTES // bytes_each}, so that they take 2 GiB at most"
    raise AnalysisError("--landmarks", found, allowed)


# --- predictions ----------------------------------------------------------------------------


def _predictions(
    folder: Path, rows: pd.DataFrame, embedded: dict[str, Any]
) -> tuple[npt.NDArray[np.float16], Sequence[str]]:
    """Those of the landmarks, (n_landmarks, n_samples, n_classes), and the names of the classes."""
    asked_for = embedded["parameters"]
    shape = (len(rows), asked_for["n_samples"], asked_for["n_classes"])
    _check_size("predictions", len(rows), 2 * math.prod(shape[1:]))
    selection = select(
        open_union([folder]), asked_for["where"], asked_for["exclude_untrained"], asked_for["split"]
    )
    digests, now = embedded["inputs"]["digests"], selection.digests
    for trial_id in rows["trial_id"].unique():
        if now.get(trial_id) != digests[trial_id]:
            found = f"trial {trial_id} is embedded, but not as it is in the store now"
            hint = f"run `sweeper analyze all {folder}`"
            raise AnalysisError(str(folder), found, hint=hint)
    values = np.empty(shape, np.float16)
    for trial_id, group in rows.reset_index(drop=True).groupby("trial_id", sort=False):
        store = selection.homes[trial_id].store
        values[group.index.to_numpy()] = store.log_probs(
            trial_id, asked_for["split"], group["snapshot"].to_numpy(), dtype="float16"
        )
    first = str(rows["trial_id"].iloc[0])
    return values, selection.homes[first].store.class_names(first)


def _check_samples(map_path: Path, place: str, found: Map, selection: Selection) -> None:
    trial_id, store = selection.example
    names = tuple(found.about["class_names"])
    if store.class_names(trial_id) != names:
        what, allowed = "classes", f"those of `{map_path}`: {', '.join(names[:5])} …"
    elif store.sample_set(found.about["split"], trial_id) != found.about["sample_set"]:
        what, allowed = "samples", f"the {found.log_probs.shape[1]} of `{map_path}`, in their order"
    else:
        return
    hint = "a sweep can be placed in a map if it was evaluated on the same samples"
    raise AnalysisError(place, f"predictions of other {what} than the map's", allowed, hint)


def _distances(
    map_path: Path, found: Map, selection: Selection, progress: Progress
) -> Iterator[Float64]:
    """Distances of the selected snapshots to the landmarks, of some after another."""
    names = {
        "trial_id": [f"{trial_id} of {map_path}" for trial_id in found.about["trial_id"]],
        "snapshot": found.about["snapshot"],
    }
    rows = ahead.Rows(selection.locations, selection.rows, found.about["split"])
    few = Few(found.log_probs, pd.DataFrame(names))
    return distances_to_few(rows, few, budget(None), progress)
