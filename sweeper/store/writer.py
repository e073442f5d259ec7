"""Stage one attempt's snapshots, each one durable when `append` returns."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweeper.durable import crash_point
from sweeper.errors import StoreError
from sweeper.store.arrays import Layout, chunk_name, create_array, padded, write_shard, write_whole
from sweeper.store.moments import to_record
from sweeper.store.objects import Objects
from sweeper.store.samples import write_sample_set
from sweeper.store.schema import (
    FORMAT,
    Array,
    SampleSet,
    blocks,
    staged_chunk,
    staging_key,
    target_hash,
)
from sweeper.store.staging import StagedAttempt, attempts, claim

_LOWEST_BITS = 0xFBFF  # of -65504, `LOG_PROB_MIN`; above are the bits of -inf and of NaN
_INFINITY_BITS = 0x7C00  # of inf; above are those of NaN
_CHECKED_AT_ONCE = 1 << 20  # values, each of which takes a few bytes more meanwhile
_SAMPLES_SUMMED = 500  # of each snapshot that is recorded
ROW_SUM_TOLERANCE = 0.02  # float16 moves a row's sum by up to 0.004, over 100,000 classes


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


def write_targets(objects: Objects, header: TrialHeader) -> dict[str, Any]:
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
    folder = f"{staging_key(header.trial_id)}/{name}"
    try:
        for phase, values in header.targets.items():
            write_whole(objects, f"{folder}/{phase}/targets", values)
            crash_point("targets")
    except Exception:
        with contextlib.suppress(StoreError, OSError):
            objects.delete(folder)
        raise
    hashes = {phase: target_hash(values) for phase, values in header.targets.items()}
    return {"arrays": name, "targets": hashes, "target_set": samples.hash}


def _check_targets(where: str, phase: str, values: Array, samples: SampleSet) -> None:
    n_samples, n_classes = len(samples.labels), len(samples.class_names)
    if values.shape != (n_samples,) or values.dtype != np.int64:
        found = f"{phase} targets of shape {values.shape} and type {values.dtype}"
        raise StoreError(where, found, f"shape {(n_samples,)} and type int64")
    if ((values < 0) | (values >= n_classes)).any():
        found = f"{phase} targets from {values.min()} to {values.max()}"
        raise StoreError(where, found, f"labels from 0 to {n_classes - 1}")


class AttemptWriter:
    """Stages the snapshots of one attempt under the attempt's own number.

    Attempt numbers are claimed exclusively, so of two processes that run one trial at once each
    has its own, and the newer one owns every snapshot from its `first_snapshot` on. An older
    attempt that wakes up late can therefore change nothing that is read. Each `append` is atomic,
    durable on return, and idempotent for equal bytes.

    `append` may be called from another thread than made the writer, so that training goes on
    meanwhile; one call at a time, because the order of the snapshots is the caller's.
    """

    def __init__(self, objects: Objects, header: TrialHeader, first_snapshot: int) -> None:
        self.objects, self.header, self.first_snapshot = objects, header, first_snapshot
        targets = write_targets(objects, header)
        self.attempt = 0  # until one is claimed
        try:
            for samples in header.sample_sets.values():
                write_sample_set(objects, samples)
            self.attempt, self.claim = self._claim(targets)
            self._arrays = {
                split: self._create_array(split, samples)
                for split, samples in header.sample_sets.items()
            }
        except Exception:
            # Whoever waits for room tries again and again: nothing is to pile up meanwhile.
            with contextlib.suppress(StoreError, OSError):
                self._undo(targets)
            raise
        self._appended: set[int] = set()
        crash_point("claim")

    def _undo(self, targets: Mapping[str, Any]) -> None:
        """Remove what was written; stopped anywhere, nothing looks like damage."""
        trial_id = self.header.trial_id
        if self.attempt:
            key = staging_key(trial_id, self.attempt)
            for split in self.header.sample_sets:
                self.objects.delete(f"{key}/{split}")
            self.objects.delete(key)
        # A claim that failed may have been made all the same, and then refers to its targets.
        claimed = {
            (self.objects.attributes(staging_key(trial_id, number)) or {}).get("arrays")
            for number in attempts(self.objects, trial_id)
        }
        if targets and targets["arrays"] not in claimed:
            self.objects.delete(f"{staging_key(trial_id)}/{targets['arrays']}")

    def _claim(self, targets: Mapping[str, Any]) -> tuple[int, str]:
        """Take the next free attempt number, which publishes the attempt's targets."""
        header = self.header
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
        return claim(self.objects, header.trial_id, attributes)

    def _create_array(self, split: str, samples: SampleSet) -> _StagedArray:
        key = f"{staging_key(self.header.trial_id, self.attempt)}/{split}/log_probs"
        shape = len(samples.labels), len(samples.class_names)
        array = _StagedArray(self.objects, key, shape)
        create_array(self.objects, key, array.layout(len(self.header.steps)))
        return array

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
        StoreError : no predictions of this shape, or the snapshot is there with other values.
        """
        where = f"trial {self.header.trial_id}, snapshot {snapshot}"
        if not self.first_snapshot <= snapshot < len(self.header.steps):
            allowed = f"{self.first_snapshot} to {len(self.header.steps) - 1}"
            raise StoreError(where, "not a snapshot of this attempt", allowed)
        moment = {"step": self.header.steps[snapshot], "epoch": epoch, "time": time.time()}
        moment |= {name: metrics[name] for name in self.header.metrics}
        # The test set comes last: its object commits the snapshot, and says what is said of it.
        splits = sorted(self.header.sample_sets, reverse=True)
        for split in splits:
            shape = self._arrays[split].shape
            check_predictions(where, split, log_probs[split], shape, _SAMPLES_SUMMED)
        if snapshot in self._appended:
            self._compare(where, snapshot, moment, log_probs)
            return
        record = to_record(moment, self.header.metrics)
        for split in splits:
            head = record if split == "test" else b""
            self._arrays[split].write(snapshot, log_probs[split], head)
        self._appended.add(snapshot)
        crash_point("snapshot")

    def _compare(
        self,
        where: str,
        snapshot: int,
        moment: Mapping[str, float],
        log_probs: Mapping[str, Array],
    ) -> None:
        """Refuse other values in the place of those that are staged; nobody else staged them."""
        staged = StagedAttempt(self.objects, self.header.trial_id, self.attempt)
        for split, values in log_probs.items():
            there = staged.log_probs(snapshot, split)
            if there.tobytes() != values.tobytes():
                largest = np.max(np.abs(there.astype(np.float64) - values.astype(np.float64)))
                found = f"already stored with other {split} predictions"
                raise StoreError(where, f"{found} (max |difference| {largest:.3g})")
        known = staged.moment(snapshot)
        for name, value in moment.items():
            if name != "time" and not np.array_equal(value, known[name], equal_nan=True):
                raise StoreError(where, f"already stored with {name} {known[name]}, not {value}")


@dataclass(frozen=True)
class _StagedArray:
    """One split's predictions: a snapshot a shard, so one atomic object per snapshot."""

    objects: Objects
    key: str
    shape: tuple[int, int]

    def layout(self, n_snapshots: int) -> Layout:
        n_samples, n_classes = self.shape
        chunk = staged_chunk(n_samples, n_classes)
        shard = -(-n_samples // chunk) * chunk
        shape = (n_snapshots, n_samples, n_classes)
        return Layout("<f2", shape, (1, chunk, n_classes), (1, shard, n_classes))

    def write(self, snapshot: int, values: Array, head: bytes) -> None:
        layout = self.layout(1)
        name = f"{self.key}/{chunk_name(snapshot, 0, 0)}"
        write_shard(self.objects, name, self._chunks(values, layout), layout.n_chunks, head)

    def _chunks(self, values: Array, layout: Layout) -> Iterator[Array]:
        for samples in blocks(len(values), layout.chunk[1]):
            yield padded(values[None, samples], layout.chunk)


def check_predictions(
    where: str, split: str, values: Array, shape: tuple[int, ...], n_summed: int | None = None
) -> None:
    """Refuse what are no stored log-probabilities of these samples and classes.

    Parameters
    ----------
    n_summed : samples, evenly spread, whose probabilities are summed up; None for all. What is
        not the natural logarithm of probabilities is so in nearly every sample.

    Raises
    ------
    StoreError
    """
    if values.shape != shape or values.dtype != np.dtype("<f2"):
        found = f"{split} predictions of shape {values.shape} and type {values.dtype}"
        raise StoreError(where, found, f"shape {shape} and type float16")
    step = -(-len(values) // n_summed) if n_summed else 1
    for samples in blocks(len(values), step * max(1, _CHECKED_AT_ONCE // (step * shape[-1]))):
        part = values[samples]
        bits = part.view("<u2")  # comparing them is ten times as fast as np.isfinite of float16
        if (bits > _LOWEST_BITS).any() or (bits.view("<i2") >= _INFINITY_BITS).any():
            allowed = "finite log-probabilities"
            raise StoreError(where, f"{split} predictions are not finite", allowed)
        if (bits.view("<i2") > 0).any():
            found = f"{split} predictions above 0, up to {part.max():.4g}"
            raise StoreError(where, found, "natural logarithms of probabilities")
        sums = np.exp(part[::step].astype(np.float32)).sum(axis=-1)
        worst = int(np.argmax(np.abs(sums - 1)))
        if abs(sums[worst] - 1) > ROW_SUM_TOLERANCE:
            sample = samples.start + step * worst
            found = f"{split} predictions of sample {sample} sum to {sums[worst]:.4g}"
            raise StoreError(where, found, "natural logarithms of probabilities that sum to 1")
