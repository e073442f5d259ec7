"""A trajectory that was trained elsewhere: the arrays of an `.npz` file, checked on their own.

======================  ===================================  ===================================
array                   shape                                values
======================  ===================================  ===================================
`log_probs` or `probs`  (n_snapshots, n_samples, n_classes)  natural logarithms of probabilities,
                                                             or probabilities; float16, 32 or 64
`steps`                 (n_snapshots,)                       whole, from 0 on, increasing
`epochs`                (n_snapshots,)                       never decreasing
`labels`                (n_samples,)                         classes, from 0 on
`ids`                   (n_samples,)                         optional: indices in the source
`class_names`           (n_classes,)                         optional: strings
any other name          (n_snapshots,)                       optional: floats, a metric
======================  ===================================  ===================================

`test_loss` (nats) and `test_accuracy` are computed from the predictions before they are rounded to
float16, as those of our own trials are. Given as well, they have to agree: predictions in another
order than the labels show there.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sweeper.config import schema
from sweeper.errors import SweeperError, first_line, nearest
from sweeper.store.moments import MOMENT_COLUMNS
from sweeper.store.schema import LOG_PROB_MIN, Array, SnapshotHashes, digest
from sweeper.store.writer import ROW_SUM_TOLERANCE

SUM_TOLERANCE = 1e-3  # of a row's probabilities from 1
AGREEMENT = 1e-2  # of a loss or accuracy that is given with the predictions; above 1, relative

_PREDICTIONS = ("log_probs", "probs")
_KNOWN = ("steps", "epochs", "labels", "ids", "class_names")
_TAKEN = {"trial_id", "snapshot", "state", "n_snapshots", "digest", *MOMENT_COLUMNS}
_KINDS = {"iu": "whole numbers", "iuf": "numbers", "f": "floats", "U": "strings"}
_LARGEST_STEP = 2**53  # a record's float64 holds all up to it

_NEEDED = "`np.savez` of `log_probs` or `probs`, `steps`, `epochs` and `labels` makes such a file"
_EITHER = "`log_probs` are natural logarithms and `probs` are probabilities; logits are neither"
_ORDER = (
    "are the samples in the order of `labels`? Zeros in `probs` look like this, too: `log_probs` "
    "would tell how small they are"
)


@dataclass(frozen=True)
class Trajectory:
    """What a file holds, as it will be stored.

    Parameters
    ----------
    log_probs : (n_snapshots, n_samples, n_classes) float16, natural logarithms.
    steps, epochs : one a snapshot.
    metrics : one value a snapshot, by name; `test_loss` and `test_accuracy` are the first.
    labels : (n_samples,) int64.
    ids : (n_samples,) int64, None where the file has none.
    class_names : None where the file has none.
    file, sha256 : the file's name, and the hash of its bytes.
    """

    log_probs: Array
    steps: list[int]
    epochs: list[float]
    metrics: dict[str, list[float]]
    labels: Array
    ids: Array | None
    class_names: tuple[str, ...] | None
    file: str
    sha256: str

    def snapshot_hashes(self) -> list[str]:
        """The hash of every snapshot, as a sealed trial has them."""
        hashes = SnapshotHashes(len(self.steps))
        hashes.update(self.log_probs)
        return hashes.hexdigests()

    def digest(self) -> str:
        """The digest of the trial that is made of it."""
        finite = {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in self.metrics.items()
        }
        return digest({"test": self.snapshot_hashes()}, self.steps, self.epochs, finite)


def read_trajectory(path: Path) -> Trajectory:
    """Read a file of arrays, all of it into memory, and check it.

    Raises
    ------
    SweeperError : the file cannot be read, or its arrays are no trajectory; it names the array and,
        of predictions, the snapshot and the sample.
    """
    try:
        return _trajectory(path.name, *_read(path))
    except SweeperError as error:
        where, hint = f"{path}: {error.where}", error.hint or _NEEDED
        raise SweeperError(where, error.found, error.allowed, hint) from error


def _read(path: Path) -> tuple[dict[str, Array], str]:
    """The arrays by name, and the hash of the file's bytes."""
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        siblings = [other.name for other in path.parent.glob("*.npz")]
        raise SweeperError("arrays", found, hint=nearest(path.name, siblings))
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            opened = np.load(file, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                raise SweeperError("arrays", "one array without a name", "an .npz file of several")
            with opened:
                return {name: np.asarray(opened[name]) for name in opened.files}, sha256
    except SweeperError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        reason = first_line(error)
        raise SweeperError("arrays", f"cannot be read ({reason})", "an .npz file") from error


def _trajectory(file: str, found: Mapping[str, Array], sha256: str) -> Trajectory:
    name, values = _predictions(found)
    n_snapshots, n_samples, n_classes = values.shape
    steps, epochs = _steps(found, n_snapshots), _epochs(found, n_snapshots)
    labels, ids = _labels(found, n_samples, n_classes), _ids(found, n_samples)
    class_names = None
    if "class_names" in found:
        class_names = tuple(_vector(found, "class_names", "U", n_classes).tolist())
    metrics = _metrics(found, n_snapshots)
    _check_sums(name, values)
    stored, scores = _stored(name, values, labels)
    _check_agreement(metrics, scores)
    computed = {
        "test_loss": [score.loss for score in scores],
        "test_accuracy": [score.accuracy for score in scores],
    }
    return Trajectory(
        log_probs=stored,
        steps=steps,
        epochs=epochs,
        metrics=computed | {key: given for key, given in metrics.items() if key not in computed},
        labels=labels,
        ids=ids,
        class_names=class_names,
        file=file,
        sha256=sha256,
    )


# --- what goes with the predictions -----------------------------------------------------------


def _vector(found: Mapping[str, Array], name: str, kinds: str, length: int) -> Array:
    """A one-dimensional array of one of these kinds of numpy's types."""
    allowed = f"{_KINDS[kinds]} of shape ({length},)"
    if name not in found:
        raise SweeperError(name, "missing", allowed)
    values = found[name]
    if values.shape != (length,) or values.dtype.kind not in kinds:
        raise SweeperError(name, f"shape {values.shape} and type {values.dtype}", allowed)
    return values


def _steps(found: Mapping[str, Array], n_snapshots: int) -> list[int]:
    steps = [int(step) for step in _vector(found, "steps", "iu", n_snapshots)]
    for before, step in itertools.pairwise([-1, *steps]):
        if not before < step <= _LARGEST_STEP:
            text = f"{step} after {before}" if before >= 0 else f"{step} at the start"
            raise SweeperError("steps", text, f"increasing, from 0 on, up to {_LARGEST_STEP}")
    return steps


def _epochs(found: Mapping[str, Array], n_snapshots: int) -> list[float]:
    epochs = [float(epoch) for epoch in _vector(found, "epochs", "iuf", n_snapshots)]
    for before, epoch in itertools.pairwise([epochs[0], *epochs]):
        if not (before <= epoch and math.isfinite(epoch)):
            raise SweeperError("epochs", f"{epoch} after {before}", "finite, never decreasing")
    return epochs


def _labels(found: Mapping[str, Array], n_samples: int, n_classes: int) -> Array:
    labels = _vector(found, "labels", "iu", n_samples)
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(wrong):
        text = f"{labels[wrong[0]]} of sample {wrong[0]}"
        raise SweeperError("labels", text, f"classes from 0 to {n_classes - 1}")
    return labels.astype(np.int64)


def _ids(found: Mapping[str, Array], n_samples: int) -> Array | None:
    if "ids" not in found:
        return None
    ids = _vector(found, "ids", "iu", n_samples)
    if (ids > np.iinfo(np.int64).max).any():
        raise SweeperError("ids", f"{ids.max()}", "whole numbers below 2**63")
    return ids.astype(np.int64)


def _metrics(found: Mapping[str, Array], n_snapshots: int) -> dict[str, list[float]]:
    """Every other array, each a metric of its name."""
    others = [name for name in found if name not in (*_PREDICTIONS, *_KNOWN)]
    return {name: _metric(found, name, n_snapshots) for name in others}


def _metric(found: Mapping[str, Array], name: str, n_snapshots: int) -> list[float]:
    if name in _TAKEN or name in schema() or not name.isidentifier():
        raise SweeperError(name, "no name of a metric", "one that tables do not have yet")
    try:
        return [float(value) for value in _vector(found, name, "f", n_snapshots)]
    except SweeperError as error:
        hint = nearest(name, (*_PREDICTIONS, *_KNOWN))
        raise SweeperError(name, error.found, f"a metric is {error.allowed}", hint) from error


# --- predictions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Score:
    """How good one snapshot is: `least` and `most` are its accuracy with every tie lost or won."""

    loss: float
    accuracy: float
    least: float
    most: float


def _predictions(found: Mapping[str, Array]) -> tuple[str, Array]:
    """What they are, `log_probs` or `probs`, and their values as they are in the file."""
    given = [name for name in _PREDICTIONS if name in found]
    if len(given) != 1:
        text = "both are there" if given else "missing"
        raise SweeperError("log_probs, probs", text, "one of the two", _EITHER if given else "")
    values = found[given[0]]
    if values.ndim != 3 or not values.size:
        raise SweeperError(
            given[0], f"shape {values.shape}", "(n_snapshots, n_samples, n_classes), all at least 1"
        )
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise SweeperError(given[0], f"type {values.dtype}", "float16, float32 or float64")
    return given[0], values


def _wide(values: Array) -> Array:
    """In the precision in which they are checked and summed up."""
    return values.astype(np.float64 if values.dtype.itemsize == 8 else np.float32)


def _check_sums(name: str, values: Array) -> None:
    """Refuse what are no probabilities; the row whose sum is the worst of all is named."""
    sums = np.empty(values.shape[:2])
    for snapshot, found in enumerate(values):
        _check_range(name, snapshot, found)
        probs = _wide(found) if name == "probs" else np.exp(_wide(found))
        sums[snapshot] = probs.sum(axis=-1, dtype=np.float64)
    worst = int(np.argmax(np.abs(sums - 1)))
    # Rounding natural logarithms to float16 moves a sum further than other types and `probs` do.
    is_coarse = name == "log_probs" and values.dtype.itemsize == 2
    tolerance = ROW_SUM_TOLERANCE if is_coarse else SUM_TOLERANCE
    if abs(sums.flat[worst] - 1) > tolerance:
        snapshot, sample = divmod(worst, values.shape[1])
        text = f"snapshot {snapshot}, sample {sample} sums to {sums.flat[worst]:.6g}"
        raise SweeperError(name, text, f"probabilities that sum to 1 within {tolerance}", _EITHER)


def _check_range(name: str, snapshot: int, values: Array) -> None:
    outside = values < 0 if name == "probs" else values > SUM_TOLERANCE
    wrong = np.argwhere(outside | ~np.isfinite(values))
    if len(wrong):
        sample, of_class = wrong[0]
        text = f"{values[sample, of_class]} at snapshot {snapshot}, sample {sample}"
        allowed = "finite, at least 0" if name == "probs" else "finite, at most 0"
        raise SweeperError(name, f"{text}, class {of_class}", allowed, _EITHER)


def _stored(name: str, values: Array, labels: Array) -> tuple[Array, list[_Score]]:
    """The float16 natural logarithms that are stored, and how good they are before rounding."""
    stored, scores = np.empty(values.shape, np.float16), []
    for snapshot, found in enumerate(values):
        log_probs = _normalised(name, _wide(found))
        stored[snapshot] = log_probs
        scores.append(_score(log_probs, labels))
    return stored, scores


def _normalised(name: str, wide: Array) -> Array:
    """Natural logarithms whose rows sum to 1, in float16's range; that of 0 is its least."""
    with np.errstate(divide="ignore"):
        logs = np.log(wide) if name == "probs" else wide
    normalised: Array = logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    return normalised.clip(LOG_PROB_MIN, 0)


def _score(log_probs: Array, labels: Array) -> _Score:
    of_label = log_probs[np.arange(len(labels)), labels]
    is_top = log_probs == log_probs.max(axis=-1, keepdims=True)
    may_be_right = is_top[np.arange(len(labels)), labels]
    return _Score(
        loss=float(-of_label.mean(dtype=np.float64)),
        accuracy=float((log_probs.argmax(axis=-1) == labels).mean()),
        least=float((may_be_right & (is_top.sum(axis=-1) == 1)).mean()),
        most=float(may_be_right.mean()),
    )


def _check_agreement(metrics: Mapping[str, list[float]], scores: Sequence[_Score]) -> None:
    """Refuse a loss or an accuracy that these predictions of these labels do not have.

    Ties between classes, which rounding makes, may have been won or lost where it was computed.
    """
    for name, least, most in (("test_loss", "loss", "loss"), ("test_accuracy", "least", "most")):
        for snapshot, given in enumerate(metrics.get(name, ())):
            low, high = (getattr(scores[snapshot], bound) for bound in (least, most))
            slack = AGREEMENT * max(1.0, high)
            if not low - slack <= given <= high + slack:
                text = f"{given:.6g} at snapshot {snapshot}, where the predictions have {low:.6g}"
                raise SweeperError(name, text, f"agreement to {AGREEMENT}", _ORDER)
