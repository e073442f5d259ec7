"""A frozen map: an embedding in one file, small enough to share, in which sweeps are placed.

`map.npz` is a NumPy archive, readable without us. Of the landmarks it has `log_probs` (n_landmarks,
n_samples, n_classes) float16 as stored, `coordinates`, `row_means` and `weights`; `eigenvalues` of
the axes; `axis_rms` and `axis_error` (n_components,), the root mean square and the largest error of
placing the embedding's own snapshots by their distances to the landmarks; `misfit`, below which
99 % of them are; and `about`, JSON: provenance, the landmarks' trial ids and snapshots, the
samples' hash and the classes' names. Each has a checksum, that of ZIP.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.landmarks import Landmarks
from analysis.provenance import check_format
from analysis.upper import Float64
from sweeper.durable import write_atomically
from sweeper.errors import AnalysisError, StoreError, SweeperError

FORMAT = 1


@dataclass(frozen=True)
class Map:
    """What a map's file holds, see above."""

    landmarks: Landmarks
    log_probs: npt.NDArray[np.float16]
    axis_rms: Float64
    axis_error: Float64
    misfit: float
    about: dict[str, Any]


def write_map(path: Path, made: Map) -> None:
    """Replace the file, atomically."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        log_probs=made.log_probs,
        **vars(made.landmarks),
        axis_rms=made.axis_rms,
        axis_error=made.axis_error,
        misfit=np.float64(made.misfit),
        about=np.array(json.dumps(made.about, allow_nan=False)),
    )
    write_atomically(path, buffer.getbuffer())


def read_map(path: Path) -> Map:
    """A map.

    Raises
    ------
    AnalysisError : there is none. StoreError : it is damaged. FormatVersionError : it is newer.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            # NumPy reads as far as an array's header says, and so perhaps not up to the checksum.
            if damaged := file.zip.testzip():
                raise ValueError(f"`{damaged}` does not match its checksum")
            about = json.loads(str(file["about"]))
            check_format(path, "a map", about["map_format"], FORMAT)
            names = ("coordinates", "eigenvalues", "row_means", "weights")
            return Map(
                Landmarks(*(file[name] for name in names)),
                file["log_probs"],
                file["axis_rms"],
                file["axis_error"],
                float(file["misfit"]),
                about,
            )
    except (FileNotFoundError, IsADirectoryError) as error:
        hint = "`sweeper analyze map DIR` writes `DIR/analysis/map.npz`"
        raise AnalysisError(str(path), "no map here", "a map's file", hint) from error
    except SweeperError:
        raise
    except Exception as error:  # of zipfile's and NumPy's many kinds, on damaged bytes
        hint = "`sweeper analyze map DIR` writes it again"
        raise StoreError(str(path), f"no map, or damaged ({error})", hint=hint) from error
