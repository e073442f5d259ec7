"""What the report and the figures show, gathered from the artifacts and the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.distance import Distance, distance_of, kind_of
from analysis.explained import explained_stress
from analysis.provenance import provenance, read_document, read_table
from analysis.select import select
from analysis.tiles import open_distances
from analysis.union import open_union
from sweeper.errors import AnalysisError

_NOT_CONFIG = ("state", "n_snapshots", "digest", "left_out")
_DRAWING = (
    *("contents.py", "distance.py", "explained.py", "figures.py", "palette.py", "report.py"),
    *("page/page.css", "page/page.html", "page/page.js"),
)
METRICS = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")


@dataclass(frozen=True)
class Contents:
    """An embedding and the trials it is of.

    Attributes
    ----------
    name : of the sweep, or of each.
    embedding : rows of `embedding.parquet`: trial_id, snapshot, step, epoch, accuracy, loss, pc1….
    references : rows of `references.parquet`: trial_id (`truth`, `ignorance`), pc1….
    spectrum : eigenvalues, explained stress, bound: the contents of `inpca.json`.
    trials : every trial of the stores, as `analysis.select.Selection.trials`.
    about : provenance of the report.
    notes : what the reader should know about how current this is.
    """

    name: str
    embedding: pd.DataFrame
    references: pd.DataFrame
    spectrum: dict[str, Any]
    trials: pd.DataFrame
    about: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def distance(self) -> Distance:
        """What the embedding is of."""
        return kind_of(distance_of(self.about))

    @property
    def n_components(self) -> int:
        """Axes of the embedding."""
        return len(self.spectrum["eigenvalues"])

    @property
    def stress(self) -> list[float]:
        """Explained stress χ_k for every computed eigenvalue, k = 1, 2, …."""
        values = np.asarray(self.spectrum["spectrum"])
        return [float(x) for x in explained_stress(values, self.spectrum["frobenius_norm"])]

    @property
    def embedded_trials(self) -> pd.DataFrame:
        """The trials whose snapshots are in the embedding, in its order."""
        return self.trials.loc[self.embedding["trial_id"].unique()]

    @property
    def varying(self) -> list[str]:
        """Columns in which the embedded trials differ, `model.name` first, `sweep` last.

        They are those of the configuration, and `sweep`, where a trial was read.
        """
        table = self.embedded_trials
        config = [c for c in table.columns if c not in _NOT_CONFIG and c not in METRICS]
        found = [c for c in config if table[c].astype(str).nunique() > 1]
        return sorted(found, key=lambda c: (c != "model.name", c == "sweep", c == "seed"))

    def axis(self, k: int) -> str:
        """The name of axis k (from 1), time-like ones marked."""
        value = self.spectrum["eigenvalues"][k - 1]
        return f"PC {k}" + (" (time-like)" if value < 0 else "")


def gather(directory: Path, folder: Path) -> Contents:
    """Read the artifacts in `folder` and the trials of the stores at or recorded in `directory`.

    Raises
    ------
    AnalysisError : there is no embedding, it is of other distances than are there, or a store has
        gone.
    StoreError : an artifact is damaged.
    """
    spectrum, embedding, references = read_embedding(directory, folder)
    embedded = spectrum["provenance"]
    asked = embedded["parameters"]
    union = open_union([directory])
    selection = select(union, asked["where"], asked["exclude_untrained"])
    table = selection.trials.to_csv().encode()
    about = provenance(
        "report",
        {
            **embedded["inputs"],
            "inpca": embedded["fingerprint"],
            "trials": _hash(table),
            "drawn_by": _drawn_by(),
        },
        asked,
        selection.left_out,
        selection.places(directory),
    )
    gone = set(embedding["trial_id"]) - set(selection.trials.index)
    if gone:
        raise AnalysisError(
            str(directory),
            f"trial {min(gone)} is embedded but not in the store",
            hint=f"run `sweeper analyze all {directory}`",
        )
    notes = _notes(selection.digests, embedded["inputs"]["digests"], directory)
    return Contents(union.name, embedding, references, spectrum, selection.trials, about, notes)


def read_embedding(
    directory: Path, folder: Path
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """`inpca.json`, `embedding.parquet` and `references.parquet` in `folder`.

    Raises
    ------
    AnalysisError : there is no embedding, or it is of other distances than are there.
    StoreError : an artifact is damaged, or of an earlier version.
    """
    hint = f"run `sweeper analyze inpca {directory}` first"
    if not (folder / "inpca.json").exists():
        raise AnalysisError(str(directory), "no embedding here", hint=hint)
    spectrum = read_document(folder / "inpca.json")
    embedded = spectrum["provenance"]
    (embedding, of_points), (references, of_references) = (
        read_table(folder / f"{name}.parquet") for name in ("embedding", "references")
    )
    made = {item["fingerprint"] for item in (embedded, of_points, of_references)}
    if made != {embedded["fingerprint"]} or not _is_current(folder, embedded):
        raise AnalysisError(str(directory), "the embedding is not of the distances here", hint=hint)
    return spectrum, embedding, references


def _is_current(folder: Path, embedded: dict[str, Any]) -> bool:
    fingerprint = open_distances(folder / "distances.zarr").about["fingerprint"]
    return bool(embedded["inputs"]["distances"] == fingerprint)


def _drawn_by() -> str:
    """Which drawing code this is: what older code drew is drawn again."""
    files = resources.files("analysis")
    return _hash(b"".join((files / name).read_bytes() for name in _DRAWING))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _notes(now: dict[str, str], then: dict[str, str], directory: Path) -> tuple[str, ...]:
    added = len(now.keys() - then.keys())
    if not added:
        return ()
    return (
        f"{added} trials have completed since the distances were computed and are not shown; "
        f"run `sweeper analyze all {directory}`",
    )
