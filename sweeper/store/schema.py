"""Format 1 of the prediction store: its names, its codecs, its hashes (see README.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1

# float16's largest magnitude: what a log-probability is clipped to before it is stored.
LOG_PROB_MIN = -65504.0

DTYPES = {"log_probs": "<f2", "labels": "<i8", "ids": "<i8", "targets": "<i8"}

STAGED_CHUNK_BYTES = 512 << 10  # of a staged snapshot: what one read of a few samples decodes
CHUNK_BYTES = 2 << 20  # of a sealed array: what one read of a block of samples decodes
SHARD_BYTES = 256 << 20
ITEMSIZE = 2  # of a float16

Array = NDArray[Any]


def sealed_key(trial_id: str) -> str:
    """The group whose existence says that the trial is complete."""
    return f"trials/{trial_id}"


def staging_key(trial_id: str, attempt: int | None = None) -> str:
    """Where a trial's attempts stage their snapshots."""
    return f"staging/{trial_id}" + ("" if attempt is None else f"/{attempt}")


def samples_key(sample_set: str) -> str:
    """Where the labels and ids of a set of samples are kept once."""
    return f"samples/{sample_set}"


@dataclass(frozen=True)
class SampleSet:
    """The samples that predictions are of.

    `labels` and `ids` are (n_samples,) int64: the clean class and the index in the source.
    """

    split: str
    labels: Array
    ids: Array
    class_names: tuple[str, ...]

    @property
    def hash(self) -> str:
        """`s` and 12 hex digits of the SHA-256 over split, class names, labels and ids."""
        sha = hashlib.sha256(json.dumps([self.split, list(self.class_names)]).encode())
        for values in (self.labels, self.ids):
            sha.update(np.ascontiguousarray(values, "<i8").tobytes())
        return "s" + sha.hexdigest()[:12]


def target_hash(targets: Array) -> str:
    """The SHA-256 of training labels, (n_train,) int64, by which those of two trials compare."""
    return hashlib.sha256(np.ascontiguousarray(targets, "<i8").tobytes()).hexdigest()


def staged_chunk(n_samples: int, n_classes: int) -> int:
    """Samples per chunk of a staged snapshot, which is one shard."""
    return min(n_samples, max(1, STAGED_CHUNK_BYTES // (n_classes * ITEMSIZE)))


def sealed_layout(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Samples per chunk and per shard of a sealed (n_snapshots, n_samples, n_classes) array.

    A chunk holds all snapshots of a block of samples, a shard a whole number of chunks.
    """
    n_snapshots, n_samples, n_classes = shape
    sample_bytes = n_snapshots * n_classes * ITEMSIZE
    chunk = min(n_samples, max(1, CHUNK_BYTES // sample_bytes))
    in_shard = max(1, SHARD_BYTES // (chunk * sample_bytes))
    return chunk, chunk * min(in_shard, -(-n_samples // chunk))


def blocks(n_samples: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` samples."""
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


class SnapshotHashes:
    """One SHA-256 per snapshot, fed in any number of sample blocks from first to last."""

    def __init__(self, n_snapshots: int) -> None:
        self._hashes = [hashlib.sha256() for _ in range(n_snapshots)]

    def update(self, block: Array) -> None:
        """Add the next block of samples, (n_snapshots, n_block, n_classes) float16."""
        for sha, values in zip(self._hashes, block, strict=True):
            sha.update(np.ascontiguousarray(values, "<f2").tobytes())

    def hexdigests(self) -> list[str]:
        """One digest a snapshot."""
        return [sha.hexdigest() for sha in self._hashes]


def digest(
    hashes: Mapping[str, Sequence[str]],
    steps: Iterable[int],
    epochs: Iterable[float],
    metrics: Mapping[str, Sequence[float | None]],
) -> str:
    """The SHA-256 by which two trajectories are compared without reading them.

    Over the snapshot hashes of every split, the steps, the epochs and the metrics, none of
    which is a time.
    """
    document: dict[str, Any] = {
        "predictions": {split: list(values) for split, values in hashes.items()},
        "steps": [int(step) for step in steps],
        "epochs": [float(epoch) for epoch in epochs],
        "metrics": {name: list(values) for name, values in metrics.items()},
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
