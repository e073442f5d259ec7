"""Read a prediction store: the trials, their snapshots, their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sweeper.errors import MissingStoreError, StoreError, nearest
from sweeper.store import stream
from sweeper.store.arrays import StoredArray
from sweeper.store.index import read_index
from sweeper.store.objects import REQUESTS_AT_ONCE, Objects, metadata_key, open_objects
from sweeper.store.opening import check_format
from sweeper.store.predictions import DType, Wanted, read_sealed, read_staged
from sweeper.store.samples import only_set, read_sample_set
from sweeper.store.schema import Array, SampleSet, sealed_key, staging_key
from sweeper.store.selection import Selection
from sweeper.store.staging import StagedTrial, attempts, check_header
from sweeper.store.stream import Rows
from sweeper.store.table import (
    Summary,
    row_of,
    sealed_moments,
    sealed_summary,
    staged_moments,
    staged_summary,
)
from sweeper.store.targets import read_targets, staged_reference
from sweeper.sweep_dir import PREDICTIONS, SweepDir

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

T = TypeVar("T")


def open_store(location: str | Path) -> Store:
    """Open a prediction store for reading.

    Parameters
    ----------
    location : a sweep directory, whose store may be elsewhere; the folder of a store; or the URL
        of either, such as `s3://bucket/prefix`.

    Raises
    ------
    MissingStoreError : there is none. FormatVersionError : it is of a newer format.
    StoreURLError, UnavailableStoreError : the URL cannot be read.
    """
    is_url = "://" in str(location)
    root = open_objects(location if is_url else SweepDir(location).root())
    inside = root.below(PREDICTIONS)
    objects = inside if inside.names("") else root
    check_format(objects)
    return Store(objects)


class Store:
    """A prediction store, read only. Safe to use while trials are being recorded, and by threads.

    What is complete never changes; a trial in progress is read as it is at each call.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._sealed: dict[str, dict[str, Any]] = {}
        self._sample_sets: dict[str, SampleSet] = {}
        self._arrays: dict[str, StoredArray] = {}

    @property
    def location(self) -> str:
        """The store's own folder or URL."""
        return self.objects.location

    # --- trials ---------------------------------------------------------------------------

    def trial_ids(self) -> list[str]:
        """Ids of all trials of which anything is stored, sorted."""
        staged = self._staged_ids()  # before the sealed ones, or one sealed meanwhile is in neither
        return sorted({*staged, *self.complete_ids()})

    def complete_ids(self) -> list[str]:
        """Ids of the sealed trials (complete or diverged), sorted."""
        return sorted(self.objects.stamps("trials", metadata_key("")))

    def _staged_ids(self) -> list[str]:
        """Trials with a claimed attempt: the folder comes a moment before the claim."""
        return [
            name
            for name in self.objects.names("staging")
            if any(
                self.objects.exists(metadata_key(staging_key(name, number)))
                for number in attempts(self.objects, name)
            )
        ]

    def trials(self) -> pd.DataFrame:
        """One row a trial, indexed by `trial_id`.

        Columns: every configuration field by its dotted name (lists as tuples; None where a
        trial has no such option), `state` (`complete`, `diverged` or `incomplete`),
        `n_snapshots`, `digest` (missing unless sealed), and the last snapshot's metrics.

        Sealed trials come from the index where it is up to date (`sweeper.store.index`).
        """
        import pandas as pd

        staged = self._staged_ids()
        found = self.summaries()
        others = [trial_id for trial_id in staged if trial_id not in found]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            found |= zip(others, pool.map(self.summary, others), strict=True)
        rows = [row_of(found[trial_id]) for trial_id in sorted(found)]
        columns = ["trial_id", "state", "n_snapshots", "digest"]
        table = pd.DataFrame.from_records(rows) if rows else pd.DataFrame(columns=columns)
        return table.set_index("trial_id")

    def summaries(self) -> dict[str, Summary]:
        """What the table of trials says of each sealed trial.

        Raises
        ------
        StoreError : the metadata of one that the index does not know is damaged.
        """
        return read_index(self.objects).completed(self.summary)

    def summary(self, trial_id: str) -> Summary:
        """What the table of trials says of one, from its group or what it staged."""
        return self._read(trial_id, sealed_summary, staged_summary)

    def snapshots(self, trial_id: str) -> pd.DataFrame:
        """One row a snapshot: `snapshot`, `step`, `epoch`, `time` and the metrics."""
        import pandas as pd

        table = pd.DataFrame(self._read(trial_id, sealed_moments, staged_moments))
        table.insert(0, "snapshot", np.arange(len(table)))
        return table

    def n_snapshots(self, trial_id: str) -> int:
        """How many snapshots are recorded."""
        return self._read(
            trial_id, lambda found: int(found["n_snapshots"]), lambda staged: staged.n_recorded
        )

    def trial_attributes(self, trial_id: str) -> dict[str, Any]:
        """All that is stored of a sealed trial beside its arrays (store/README.md).

        Raises
        ------
        MissingStoreError : the trial is not sealed.
        """
        found = self._attributes(trial_id)
        if not found:
            raise MissingStoreError(f"trial {trial_id}", "not complete", "a complete trial")
        return found

    # --- samples --------------------------------------------------------------------------

    def sample_set(self, split: str, trial_id: str) -> str:
        """The hash of the set of samples that a trial's predictions are of."""
        sets = self.header(trial_id)["sample_sets"]
        if split not in sets:
            raise MissingStoreError(
                f"trial {trial_id}",
                f"no predictions of split `{split}`",
                f"recorded: {', '.join(sets)}",
                "`record.train: predictions` records the training set" if split == "train" else "",
            )
        return str(sets[split])

    def labels(self, split: str, trial_id: str | None = None) -> Array:
        """The clean labels of the samples, (n_samples,) int64.

        Those of `train` are stored where its predictions are recorded, or where a trial was
        trained on other labels, see `targets`.

        Raises
        ------
        StoreError : `trial_id` is None and the trials differ in their sample sets.
        """
        return self._samples(split, trial_id).labels

    def sample_ids(self, split: str, trial_id: str | None = None) -> Array:
        """The samples' indices in their source, (n_samples,) int64."""
        return self._samples(split, trial_id).ids

    def class_names(self, trial_id: str) -> tuple[str, ...]:
        """The names of the classes, in the order of the last axis of the predictions."""
        return self._samples("test", trial_id).class_names

    def _samples(self, split: str, trial_id: str | None) -> SampleSet:
        key = self._labelled_set(split, trial_id) if trial_id else self._only_sample_set(split)
        if key not in self._sample_sets:
            self._sample_sets[key] = read_sample_set(self.objects, key)
        return self._sample_sets[key]

    def _labelled_set(self, split: str, trial_id: str) -> str:
        """The hash of a split's samples, of which predictions may be recorded or only targets."""
        header = self.header(trial_id)
        if split == "train" and "target_set" in header:
            return str(header["target_set"])
        return self.sample_set(split, trial_id)

    def _only_sample_set(self, split: str) -> str:
        pairs = ((self._labelled_set(split, trial), trial) for trial in self.trial_ids())
        return only_set(self.location, f"the trials' {split} samples", pairs)

    def target_phases(self, trial_id: str) -> tuple[str, ...]:
        """The phases of training that were given other labels than the clean ones.

        Most trials have none; `train` and `corner` are those there are.
        """
        return tuple(self.header(trial_id).get("targets", ()))

    def targets(self, trial_id: str, phase: str) -> Array:
        """The labels that a phase of the trial was trained on, (n_train,) int64.

        They are in the order of `labels("train", trial_id)`, which are the clean ones.

        Raises
        ------
        MissingStoreError : the phase is not one of `target_phases`.
        HoleError : they are absent. StoreError : they are damaged.
        """
        known = self.target_phases(trial_id)
        if phase not in known:
            raise MissingStoreError(
                f"trial {trial_id}",
                f"no targets of phase `{phase}`",
                f"stored: {', '.join(known) or 'none'}",
                "a phase without targets was trained on the clean labels",
            )
        return self._read(
            trial_id,
            lambda found: read_targets(self.objects, sealed_key(trial_id), found, phase),
            lambda staged: read_targets(
                self.objects, staging_key(trial_id), staged_reference(staged), phase
            ),
        )

    # --- predictions ----------------------------------------------------------------------

    def log_probs(
        self,
        trial_id: str,
        split: str,
        snapshots: Selection = slice(None),
        samples: Selection = slice(None),
        *,
        dtype: DType = "float32",
        masked: bool = False,
    ) -> Array:
        """Natural-log probabilities, (n_snapshots, n_samples, n_classes).

        What is stored is float16; rows are normalised here, in float32, so that they sum to 1.

        Parameters
        ----------
        split : `test`, or `train` where it was recorded.
        snapshots, samples : a slice, an index or a list of indices of each axis.
        dtype : `float32`, or `float16` for what is stored, as it is.
        masked : give a masked array in which what is absent is masked, instead of raising.

        Raises
        ------
        MissingStoreError : no such trial or split. HoleError : a snapshot is absent.
        StoreError : a chunk is damaged.
        """
        wanted = Wanted(
            f"trial {trial_id}", split, self.shape(split, trial_id), snapshots, samples, dtype
        )
        return self._read(
            trial_id,
            lambda found: read_sealed(self.objects, self._arrays, found, wanted, masked),
            lambda staged: read_staged(staged, wanted, masked),
        )

    def iter_blocks(
        self,
        selection: Rows | None = None,
        samples_per_block: int = 1000,
        split: str = "test",
        dtype: DType = "float32",
    ) -> Iterator[tuple[slice, Array]]:
        """All selected snapshots, a block of samples at a time, read ahead by threads.

        Parameters
        ----------
        selection : trial ids, each with all its snapshots, or a table with a row a snapshot and
            the columns `trial_id` and `snapshot`; None for all complete trials.

        Yields
        ------
        samples, log_probs : which samples, and their (n_selected, n_block, n_classes) values in
            the selection's order. Two blocks are in memory at a time.

        Raises
        ------
        StoreError : the trials differ in their sample sets; or as `log_probs` does.
        """
        return stream.blocks_of(self, selection, samples_per_block, split, dtype)

    def iter_snapshots(
        self, selection: Rows | None = None, split: str = "test", dtype: DType = "float32"
    ) -> Iterator[tuple[str, int, Array]]:
        """The selected snapshots one after another, read ahead by threads.

        A sealed trial is decoded as a whole, or, where that exceeds `stream.READ_BYTES`, several
        times for a part of its snapshots each.

        Yields
        ------
        trial_id, snapshot, log_probs : the last (n_samples, n_classes).

        Raises
        ------
        HoleError, StoreError : as `log_probs` does.
        """
        return stream.snapshots_of(self, selection, split, dtype)

    def to_xarray(self, selection: Rows | None = None, split: str = "test") -> xr.Dataset:
        """The selected snapshots as a lazy `xarray.Dataset`; needs xarray.

        `log_probs` has the dimensions `snapshot`, `sample` and `class`; nothing of it is read
        until it is asked for. Coordinates: `trial_id`, `index` (of the snapshot in its trial),
        `step`, `epoch` and the metrics by snapshot; `sample_id` and `label` by sample; the names
        of the classes.

        Raises
        ------
        MissingStoreError : xarray is not installed.
        StoreError : the trials differ in their sample sets.
        """
        from sweeper.store.lazy import dataset

        return dataset(self, selection, split)

    def shape(self, split: str, trial_id: str) -> tuple[int, int]:
        """Samples and classes of one snapshot's predictions."""
        self.sample_set(split, trial_id)
        known = self._samples(split, trial_id)
        return len(known.labels), len(known.class_names)

    # --- access ---------------------------------------------------------------------------

    def _read(
        self,
        trial_id: str,
        sealed: Callable[[dict[str, Any]], T],
        staged: Callable[[StagedTrial], T],
    ) -> T:
        """What is sealed of a trial, or else staged.

        A trial can be sealed, and what it staged removed, while it is read. It is published
        first, so what was read before it was published is whole.
        """
        if not self._attributes(trial_id):
            try:
                found = staged(self._staged(trial_id))
            except (StoreError, OSError):
                if not self._attributes(trial_id):
                    raise
            else:
                if not self._attributes(trial_id):
                    return found
        return sealed(self._attributes(trial_id))

    def header(self, trial_id: str) -> dict[str, Any]:
        """The attributes of a sealed trial, or those of the newest attempt."""
        return self._read(trial_id, lambda found: found, lambda staged: staged.header)

    def _attributes(self, trial_id: str) -> dict[str, Any]:
        """The attributes of a sealed trial, empty when it is not sealed."""
        if trial_id not in self._sealed:
            found = self.objects.attributes(sealed_key(trial_id))
            if found is None:
                return {}
            check_header(trial_id, found)
            self._sealed[trial_id] = found
        return self._sealed[trial_id]

    def _staged(self, trial_id: str) -> StagedTrial:
        try:
            return StagedTrial(self.objects, trial_id)
        except MissingStoreError as error:
            raise MissingStoreError(
                f"trial {trial_id}",
                "not in this store",
                f"{len(self.trial_ids())} trials are",
                nearest(trial_id, self.trial_ids()),
            ) from error
