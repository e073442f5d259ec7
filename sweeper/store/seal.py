"""Turn a finished trial's staged snapshots into the compact layout that analysis reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from sweeper.durable import crash_point
from sweeper.errors import HoleError, StoreError
from sweeper.store.local import LocalObjects
from sweeper.store.schema import (
    FORMAT,
    SnapshotHashes,
    digest,
    sealed_key,
    sealed_layout,
    staging_key,
)
from sweeper.store.staging import StagedTrial, open_array, read_array
from sweeper.store.targets import copy_targets
from sweeper.store.writer import create_array

State = Literal["complete", "diverged"]


def is_sealed(objects: LocalObjects, trial_id: str) -> bool:
    """Whether the trial is complete: whether its group has been published."""
    return objects.exists(f"{sealed_key(trial_id)}/zarr.json")


def seal(objects: LocalObjects, trial_id: str, state: State, attempt: int) -> str:
    """Publish a finished trial and remove what it staged.

    The sealed arrays are written under the attempt's number, read back and compared, and then
    published by one atomic exclusive write of the trial's metadata. Killed at any instant, the
    trial is either as staged as before or complete; calling again finishes the job. When another
    process published first, its result stands and ours is removed.

    Parameters
    ----------
    state : `complete`, or `diverged` for a trial whose loss became non-finite.
    attempt : the attempt that finished the trial; names the arrays while they are written.

    Returns
    -------
    The digest of what is published.

    Raises
    ------
    HoleError : a snapshot is absent. StoreError : a chunk is damaged, or did not survive copying.
    """
    try:
        if not is_sealed(objects, trial_id):
            _publish(objects, trial_id, state, attempt)
    except (StoreError, OSError):
        if not is_sealed(objects, trial_id):
            raise  # otherwise another process published meanwhile, and removed what we read
    found = remove_leftovers(objects, trial_id)
    return str(found["digest"])


def _publish(objects: LocalObjects, trial_id: str, state: State, attempt: int) -> None:
    objects.delete(f"{sealed_key(trial_id)}/{attempt}")  # of a seal that was killed
    attributes = _write(StagedTrial(objects, trial_id), state, attempt)
    crash_point("seal-arrays")
    objects.create_group(sealed_key(trial_id), attributes)
    crash_point("seal-publish")


def remove_leftovers(objects: LocalObjects, trial_id: str) -> dict[str, Any]:
    """Remove what a complete trial no longer needs; returns its attributes."""
    attributes = objects.attributes(sealed_key(trial_id)) or {}
    for name in objects.names(sealed_key(trial_id)):
        if name not in (attributes["arrays"], "zarr.json"):
            objects.delete(f"{sealed_key(trial_id)}/{name}")
    objects.delete(staging_key(trial_id))
    crash_point("seal-removed")
    return attributes


def _write(staged: StagedTrial, state: State, attempt: int) -> dict[str, Any]:
    """Write and check the sealed arrays; returns the attributes that publish them."""
    n_snapshots = staged.n_recorded
    _check_whole(staged, state, n_snapshots)
    header = staged.header
    moments = [staged.moment(i) for i in range(n_snapshots)]
    targets = copy_targets(staged, attempt)
    hashes = {
        split: _copy_split(staged, split, n_snapshots, attempt) for split in header["sample_sets"]
    }
    steps = [int(moment["step"]) for moment in moments]
    epochs = [moment["epoch"] for moment in moments]
    metrics = {name: [_finite(row[name]) for row in moments] for name in header["metrics"]}
    return {
        "format": FORMAT,
        "trial": staged.trial_id,
        "state": state,
        "schema": header["schema"],
        "config": header["config"],
        "identity": header["identity"],
        "arrays": str(attempt),
        "sample_sets": header["sample_sets"],
        "n_snapshots": n_snapshots,
        "steps": steps,
        "epochs": epochs,
        "times": [moment["time"] for moment in moments],
        "metrics": metrics,
        "snapshot_hashes": hashes,
        "digest": digest(hashes, steps, epochs, metrics),
        "attempts": [
            {key: found[key] for key in ("attempt", "first_snapshot", "provenance")}
            for found in staged.headers.values()
        ],
        **targets,
    }


def _check_whole(staged: StagedTrial, state: State, n_snapshots: int) -> None:
    planned = len(staged.header["steps"])
    if staged.holes:
        where = f"trial {staged.trial_id}, snapshot {staged.holes[0]}"
        raise HoleError(where, "absent although later ones are there", "no holes")
    if n_snapshots == 0 or (state == "complete" and n_snapshots != planned):
        found = f"{n_snapshots} snapshots staged"
        raise HoleError(f"trial {staged.trial_id}", found, f"{planned} of a complete trial")


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _copy_split(staged: StagedTrial, split: str, n_snapshots: int, attempt: int) -> list[str]:
    """Copy one split's predictions shard by shard; returns a hash per snapshot."""
    first = staged.log_probs(0, split)
    shape = (n_snapshots, *first.shape)
    chunk, shard = sealed_layout((shape[0], shape[1], shape[2]), first.itemsize)
    key = f"{sealed_key(staged.trial_id)}/{attempt}/{split}/log_probs"
    sealed = create_array(
        staged.objects,
        key,
        shape,
        (n_snapshots, chunk, shape[2]),
        "<f2",
        shards=(n_snapshots, shard, shape[2]),
    )
    hashes = SnapshotHashes(n_snapshots)
    for samples in blocks(shape[1], shard):
        rows = [staged.log_probs(i, split)[samples] for i in range(n_snapshots)]
        block = np.stack(rows)
        sealed[:, samples] = block
        hashes.update(block)
    expected = hashes.hexdigests()
    if sealed_hashes(staged.objects, staged.trial_id, key) != expected:
        raise StoreError(f"trial {staged.trial_id}", f"`{key}` reads back other than was written")
    return expected


def blocks(n_samples: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` samples."""
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def sealed_hashes(objects: LocalObjects, trial_id: str, key: str) -> list[str]:
    """The hash of every snapshot of a sealed array, read from disk.

    Raises
    ------
    HoleError : a shard is absent. StoreError : a chunk is damaged.
    """
    where = f"trial {trial_id}"
    array = open_array(objects, key, where)
    hashes = SnapshotHashes(array.shape[0])
    for samples in blocks(array.shape[1], (array.shards or array.chunks)[1]):
        block = read_array(array, (slice(None), samples), where, f"`{key}`")
        if np.isnan(block).any():  # the fill value: nothing that is stored is NaN
            raise HoleError(where, f"`{key}` lacks samples {samples.start} to {samples.stop - 1}")
        hashes.update(block)
    return hashes.hexdigests()
