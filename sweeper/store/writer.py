"""Stage one attempt's snapshots, each one durable when `append` returns."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sweeper.durable import PARTIAL, crash_point
from sweeper.errors import FormatVersionError, MissingStoreError, StoreError
from sweeper.store import schema
from sweeper.store.local import LocalObjects
from sweeper.store.schema import FORMAT, Array, SampleSet, codecs, samples_key, staging_key

MOMENT_COLUMNS = ("step", "epoch", "time")  # then the metrics; time is Unix seconds


@dataclass(frozen=True, kw_only=True)
class TrialHeader:
    """What every attempt of a trial says about it.

    `config` and `identity` are flat; `steps` are the optimizer steps at which snapshots are
    recorded, all of them, known before training starts; `sample_sets` are those of the splits
    that are recorded. `targets` are the labels that a phase of training is given where they are
    not the clean ones, each (n_train,) int64: noisy or shuffled ones of the phase `train`, those
    of a `corner`. With them goes `target_set`, the clean labels and the ids of the training set.
    """

    trial_id: str
    schema: int
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    steps: Sequence[int]
    metrics: Sequence[str]
    sample_sets: Mapping[str, SampleSet]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Array] = field(default_factory=dict)
    target_set: SampleSet | None = None


def create_store(path: Path) -> LocalObjects:
    """Open the store at `path` for writing, creating it if need be.

    Raises
    ------
    FormatVersionError : it is of a newer format.
    StoreError : the folder holds something else.
    """
    objects = LocalObjects(path)
    # A crash, or another process that creates the store at this moment, leaves a partial file.
    others = [name for name in objects.names("") if not name.endswith(PARTIAL)]
    if others and not objects.exists("zarr.json"):
        raise StoreError(str(path), "a folder that is not a store", "an empty or new folder")
    objects.create_group("", {"sweeper_format": FORMAT})
    check_format(objects)
    return objects


def check_format(objects: LocalObjects) -> None:
    """Refuse what is not a store, or one of a newer format.

    Raises
    ------
    MissingStoreError, FormatVersionError
    """
    found = (objects.attributes("") or {}).get("sweeper_format")
    if found is None:
        raise MissingStoreError(
            str(objects.root),
            "no prediction store here",
            "a sweep directory or a store's folder",
            "`sweeper launch GRID` makes one",
        )
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise FormatVersionError(
            str(objects.root),
            f"store format `{found}`",
            f"this sweeper reads formats 1 to {FORMAT}",
            "install the version of sweeper that wrote it, or a newer one",
        )


def write_sample_set(objects: LocalObjects, samples: SampleSet) -> None:
    """Write labels and ids once, under a name of this writer's, published by the group."""
    key = samples_key(samples.hash)
    if objects.exists(f"{key}/zarr.json"):
        return
    name = uuid.uuid4().hex[:8]
    for part, values in (("labels", samples.labels), ("ids", samples.ids)):
        write_whole(objects, f"{key}/{name}/{part}", values)
    attributes = {
        "arrays": name,
        "split": samples.split,
        "class_names": list(samples.class_names),
    }
    if not objects.create_group(key, attributes):
        objects.delete(f"{key}/{name}")  # another writer published the same set first


def write_targets(objects: LocalObjects, header: TrialHeader) -> dict[str, Any]:
    """Write the labels that are not the clean ones; the attributes that refer to them.

    They go under a name of this writer's, which the claim of the attempt publishes: of a claimed
    attempt they are there whole. A name is not a number, or it would be an attempt's.

    Raises
    ------
    StoreError : their samples are not given, or they are no labels of them.
    """
    samples = header.target_set
    where = f"trial {header.trial_id}"
    if not header.targets or samples is None:
        if header.targets or samples is not None:
            found = "targets without their samples" if header.targets else "samples of no targets"
            raise StoreError(where, found, "both or neither")
        return {}
    recorded = header.sample_sets.get("train", samples)
    if recorded.hash != samples.hash:
        found = f"targets of samples {samples.hash}, train predictions of {recorded.hash}"
        raise StoreError(where, found, "one training set")
    for phase, values in header.targets.items():
        _check_targets(where, phase, values, samples)
    write_sample_set(objects, samples)
    name = f"targets-{uuid.uuid4().hex[:8]}"
    for phase, values in header.targets.items():
        write_whole(objects, f"{staging_key(header.trial_id)}/{name}/{phase}/targets", values)
        crash_point("targets")
    hashes = {phase: schema.target_hash(values) for phase, values in header.targets.items()}
    return {"arrays": name, "targets": hashes, "target_set": samples.hash}


def _check_targets(where: str, phase: str, values: Array, samples: SampleSet) -> None:
    n_samples, n_classes = len(samples.labels), len(samples.class_names)
    if values.shape != (n_samples,) or values.dtype != np.int64:
        found = f"{phase} targets of shape {values.shape} and type {values.dtype}"
        raise StoreError(where, found, f"shape {(n_samples,)} and type int64")
    if ((values < 0) | (values >= n_classes)).any():
        found = f"{phase} targets from {values.min()} to {values.max()}"
        raise StoreError(where, found, f"labels from 0 to {n_classes - 1}")


def attempts(objects: LocalObjects, trial_id: str) -> list[int]:
    """The numbers of the staged attempts of a trial, ascending."""
    names = objects.names(staging_key(trial_id))
    return sorted(int(name) for name in names if name.isdigit())


class AttemptWriter:
    """Stages the snapshots of one attempt under the attempt's own number.

    Attempt numbers are claimed exclusively, so of two processes that run one trial at once each
    has its own, and the newer one owns every snapshot from its `first_snapshot` on. An older
    attempt that wakes up late can therefore change nothing that is read. Each `append` is atomic,
    durable on return, and idempotent for equal bytes.

    `append` may be called from another thread than made the writer, so that training goes on
    meanwhile; one call at a time, because the order of the snapshots is the caller's.
    """

    def __init__(self, objects: LocalObjects, header: TrialHeader, first_snapshot: int) -> None:
        self.objects, self.header, self.first_snapshot = objects, header, first_snapshot
        targets = write_targets(objects, header)
        for samples in header.sample_sets.values():
            write_sample_set(objects, samples)
        self.attempt = self._claim(targets)
        self._arrays = self._create_arrays()
        crash_point("claim")

    def _claim(self, targets: Mapping[str, Any]) -> int:
        """Take the next free attempt number by creating its group, which publishes its targets."""
        header = self.header
        number = max(attempts(self.objects, header.trial_id), default=0) + 1
        attributes = {
            "format": FORMAT,
            "trial": header.trial_id,
            "first_snapshot": self.first_snapshot,
            "schema": header.schema,
            "config": dict(header.config),
            "identity": dict(header.identity),
            "steps": list(header.steps),
            "metrics": list(header.metrics),
            "sample_sets": {split: found.hash for split, found in header.sample_sets.items()},
            "provenance": dict(header.provenance),
            **targets,
        }
        while not self.objects.create_group(
            staging_key(header.trial_id, number), {**attributes, "attempt": number}
        ):
            number += 1
        return number

    def _create_arrays(self) -> dict[str, zarr.Array[Any]]:
        key, n_snapshots = staging_key(self.header.trial_id, self.attempt), len(self.header.steps)
        shapes = {
            f"{split}/log_probs": (len(samples.labels), len(samples.class_names))
            for split, samples in self.header.sample_sets.items()
        }
        width = len(MOMENT_COLUMNS) + len(self.header.metrics)
        arrays = {"moments": _create_staged(self.objects, f"{key}/moments", n_snapshots, (width,))}
        for name, shape in shapes.items():
            arrays[name] = _create_staged(self.objects, f"{key}/{name}", n_snapshots, shape)
        return arrays

    def append(
        self,
        snapshot: int,
        epoch: float,
        metrics: Mapping[str, float],
        log_probs: Mapping[str, Array],
    ) -> None:
        """Record one snapshot; it is there, whole and durable, when this returns.

        Parameters
        ----------
        snapshot : its index, from `first_snapshot` on.
        epoch : passes over the training set so far; below 0 in a phase before training proper.
        metrics : a value for each of the header's metrics.
        log_probs : for each split, (n_samples, n_classes) float16 natural-log probabilities.

        Raises
        ------
        StoreError : wrong shapes, not finite, or the snapshot is there with other values.
        """
        where = f"trial {self.header.trial_id}, snapshot {snapshot}"
        if not self.first_snapshot <= snapshot < len(self.header.steps):
            allowed = f"{self.first_snapshot} to {len(self.header.steps) - 1}"
            raise StoreError(where, "not a snapshot of this attempt", allowed)
        step = self.header.steps[snapshot]
        row = [step, epoch, time.time(), *(metrics[name] for name in self.header.metrics)]
        # The test set comes last: its chunk is the commit.
        splits = sorted(self.header.sample_sets, reverse=True)
        for split in splits:
            self._check(where, f"{split}/log_probs", log_probs[split])
        if all([self._is_there(where, split, snapshot, log_probs[split]) for split in splits]):
            return
        self._arrays["moments"][snapshot] = np.array(row)
        for split in splits:
            self._arrays[f"{split}/log_probs"][snapshot] = log_probs[split]
        crash_point("snapshot")

    def _check(self, where: str, name: str, values: Array) -> None:
        shape = self._arrays[name].shape[1:]
        if values.shape != shape or values.dtype != np.float16:
            found = f"{name} of shape {values.shape} and type {values.dtype}"
            raise StoreError(where, found, f"shape {shape} and type float16")
        if not np.isfinite(values).all():
            raise StoreError(where, f"{name} holds values that are not finite", "finite values")

    def _is_there(self, where: str, split: str, snapshot: int, values: Array) -> bool:
        """Whether these predictions are staged already; other ones in their place are an error."""
        name = f"{split}/log_probs"
        key = f"{staging_key(self.header.trial_id, self.attempt)}/{name}"
        if not self.objects.exists(f"{key}/{schema.chunk_name(snapshot, 3)}"):
            return False
        there = np.asarray(self._arrays[name][snapshot])
        if there.tobytes() == values.tobytes():
            return True
        largest = np.max(np.abs(there.astype(np.float64) - values.astype(np.float64)))
        raise StoreError(
            where, f"already stored with other {name} (max |difference| {largest:.3g})"
        )


def write_whole(objects: LocalObjects, key: str, values: Array) -> None:
    """An array of int64 in one chunk."""
    array = create_array(objects, key, values.shape, values.shape, "<i8")
    array[...] = values


def _create_staged(
    objects: LocalObjects, key: str, n_snapshots: int, shape: tuple[int, ...]
) -> zarr.Array[Any]:
    """A staged array: one snapshot a chunk, so one atomic object per snapshot."""
    dtype = "<f8" if key.endswith("/moments") else "<f2"
    return create_array(objects, key, (n_snapshots, *shape), (1, *shape), dtype)


def create_array(
    objects: LocalObjects,
    key: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:
    """An array in the format's codec chain; `.` in chunk names saves a folder a chunk."""
    return zarr.create_array(
        objects.array_store(key, read_only=False),
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        fill_value=0 if dtype == "<i8" else float("nan"),
        compressors=codecs(np.dtype(dtype).itemsize),
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
