"""Turn a finished trial's staged snapshots into the compact layout that analysis reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, Literal

import numpy as np

from sweeper.durable import crash_point
from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store.arrays import (
    REMEDY,
    Layout,
    StoredArray,
    chunk_name,
    create_array,
    padded,
    spread,
    write_shard,
)
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.schema import (
    FORMAT,
    ITEMSIZE,
    Array,
    SnapshotHashes,
    blocks,
    digest,
    sealed_key,
    sealed_layout,
    staging_key,
)
from sweeper.store.staging import StagedTrial, attempts, claim
from sweeper.store.targets import copy_targets

BLOCK_BYTES = 64 << 20  # of predictions in memory while a trial is sealed or checked

State = Literal["complete", "diverged"]


def is_sealed(objects: Objects, trial_id: str) -> bool:
    """Whether the trial is complete: whether its group has been published."""
    return objects.exists(metadata_key(sealed_key(trial_id)))


def seal(objects: Objects, trial_id: str, state: State, attempt: int) -> str:
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
    HoleError : a snapshot is absent. StoreError : a chunk is damaged or did not survive copying,
        or a newer attempt has taken over.
    """
    try:
        if not is_sealed(objects, trial_id):
            _publish(objects, trial_id, state, attempt)
    except (StoreError, OSError):
        if not is_sealed(objects, trial_id):
            raise  # otherwise another process published meanwhile, and removed what we read
    found = remove_leftovers(objects, trial_id)
    return str(found["digest"])


def seal_recorded(objects: Objects, only: Collection[str] | None = None) -> tuple[int, int]:
    """Seal every trial that is staged to its end; numbers of the sealed, and of the others staged.

    Parameters
    ----------
    only : look at these trials alone; None for all.

    Raises
    ------
    HoleError, StoreError : what a trial staged is damaged; those before it are sealed.
    """
    n_sealed = n_left = 0
    for trial_id in objects.names("staging"):
        if only is not None and trial_id not in only:
            continue
        try:
            staged = StagedTrial(objects, trial_id)
        except MissingStoreError:  # a crash before the first attempt was claimed
            continue
        if is_sealed(objects, trial_id):
            remove_leftovers(objects, trial_id)
        elif staged.n_recorded == staged.n_planned and not staged.holes:
            # Another process may be about to seal it, too: each writes under a number of its own.
            last = {**staged.header, "first_snapshot": staged.n_planned}
            del last["checksum"]
            number, _ = claim(objects, trial_id, last)
            seal(objects, trial_id, "complete", number)
            n_sealed += 1
        else:
            n_left += 1
    return n_sealed, n_left


def _publish(objects: Objects, trial_id: str, state: State, attempt: int) -> None:
    objects.delete(f"{sealed_key(trial_id)}/{attempt}")  # of a seal that was killed
    _check_newest(objects, trial_id, attempt)
    attributes = _write(StagedTrial(objects, trial_id), state, attempt)
    crash_point("seal-arrays")
    _check_newest(objects, trial_id, attempt)
    objects.create_group(sealed_key(trial_id), attributes)
    crash_point("seal-publish")


def _check_newest(objects: Objects, trial_id: str, attempt: int) -> None:
    """Refuse to seal for an attempt that a newer one has taken over from."""
    newest = max(attempts(objects, trial_id), default=attempt)
    if newest > attempt:
        found = f"attempt {newest} has taken over from attempt {attempt}"
        hint = "another driver runs this trial: `sweeper status` of the store shows which"
        raise StoreError(f"trial {trial_id}", found, "the newest attempt seals a trial", hint)


def remove_leftovers(objects: Objects, trial_id: str) -> dict[str, Any]:
    """Remove what a complete trial no longer needs; returns its attributes."""
    attributes = objects.attributes(sealed_key(trial_id)) or {}
    objects.settle(metadata_key(sealed_key(trial_id)))  # a publisher may have died before it did
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
    moments = staged.moments()
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
    planned = staged.n_planned
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
    n_samples, n_classes = staged.shape(split)
    shape = n_snapshots, n_samples, n_classes
    chunk, shard = sealed_layout(shape)
    layout = Layout("<f2", shape, (n_snapshots, chunk, n_classes), (n_snapshots, shard, n_classes))
    key = f"{sealed_key(staged.trial_id)}/{attempt}/{split}/log_probs"
    create_array(staged.objects, key, layout)
    hashes = SnapshotHashes(n_snapshots)
    for number, samples in enumerate(blocks(n_samples, shard)):
        chunks = _chunks(staged, split, samples, layout, hashes)
        write_shard(staged.objects, f"{key}/{chunk_name(0, number, 0)}", chunks, layout.n_chunks)
    expected = hashes.hexdigests()
    if sealed_hashes(staged.objects, staged.trial_id, key) != expected:
        raise StoreError(f"trial {staged.trial_id}", f"`{key}` reads back other than was written")
    return expected


def _chunks(
    staged: StagedTrial, split: str, samples: slice, layout: Layout, hashes: SnapshotHashes
) -> Iterator[Array]:
    """The chunks of one shard, made while they are written, a block in memory at a time."""
    for indices, values in _blocks_in_memory(samples, layout):
        tasks = [(i, split, indices, out) for i, out in enumerate(values)]
        spread(lambda task: staged.read(*task), tasks, staged.reads_at_once)
        hashes.update(values)
        for part in blocks(len(indices), layout.chunk[1]):
            yield padded(values[:, part], layout.chunk)


def _blocks_in_memory(samples: slice, layout: Layout) -> Iterator[tuple[Array, Array]]:
    """Consecutive runs of these samples, of whole chunks, with room for their values.

    The room, at most `BLOCK_BYTES` unless one chunk has more, is the same for all.
    """
    n_snapshots, chunk, n_classes = layout.chunk
    n_chunks = max(1, BLOCK_BYTES // (math.prod(layout.chunk) * ITEMSIZE))
    size = min(chunk * n_chunks, samples.stop - samples.start)
    room = np.empty((n_snapshots, size, n_classes), np.float16)
    for block in blocks(samples.stop - samples.start, size):
        indices = np.arange(samples.start + block.start, samples.start + block.stop)
        yield indices, room[:, : len(indices)]


def sealed_hashes(objects: Objects, trial_id: str, key: str) -> list[str]:
    """The hash of every snapshot of a sealed array, read from disk.

    Raises
    ------
    HoleError : a shard is absent. StoreError : a chunk is damaged.
    """
    where = f"trial {trial_id}"
    array = StoredArray(objects, key, where)
    n_snapshots, n_samples, _ = array.layout.shape
    hashes = SnapshotHashes(n_snapshots)
    for samples, values in _blocks_in_memory(slice(0, n_samples), array.layout):
        if array.read(0, slice(None), samples, values, where):
            found = f"`{key}` lacks samples between {samples[0]} and {samples[-1]}"
            raise HoleError(where, found, hint=REMEDY)
        hashes.update(values)
    return hashes.hexdigests()
