"""Read a prediction store: the trials, their snapshots, their predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sweeper.errors import HoleError, MissingStoreError, StoreError, nearest
from sweeper.store.local import LocalObjects
from sweeper.store.samples import read_sample_set
from sweeper.store.schema import Array, SampleSet, sealed_key, staging_key
from sweeper.store.selection import Selection, indices_of
from sweeper.store.staging import REMEDY, StagedTrial, check_name, open_array, read_array
from sweeper.store.table import sealed_moments, sealed_row, staged_moments, staged_row
from sweeper.store.targets import read_targets, staged_reference
from sweeper.store.writer import attempts, check_format
from sweeper.sweep_dir import PREDICTIONS

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


def open_store(path: str | Path) -> Store:
    """Open a prediction store for reading.

    Parameters
    ----------
    path : a sweep directory, or the folder of a store.

    Raises
    ------
    MissingStoreError : there is none. FormatVersionError : it is of a newer format.
    """
    if "://" in str(path):
        raise MissingStoreError(str(path), "a URL", "a folder (object stores are not read yet)")
    folder = Path(path)
    inside = folder / PREDICTIONS
    objects = LocalObjects(inside if inside.is_dir() else folder)
    check_format(objects)
    return Store(objects)


class Store:
    """A prediction store, read only. Safe to use while trials are being recorded.

    What is complete never changes; a trial in progress is read as it is at each call.
    """

    def __init__(self, objects: LocalObjects) -> None:
        self._objects = objects
        self._sealed: dict[str, dict[str, Any]] = {}
        self._sample_sets: dict[str, SampleSet] = {}

    @property
    def path(self) -> Path:
        """The store's own folder."""
        return self._objects.root

    # --- trials ---------------------------------------------------------------------------

    def trial_ids(self) -> list[str]:
        """Ids of all trials of which anything is stored, sorted."""
        staged = self._staged_ids()  # before the sealed ones, or one sealed meanwhile is in neither
        return sorted({*staged, *self.complete_ids()})

    def complete_ids(self) -> list[str]:
        """Ids of the sealed trials (complete or diverged), sorted."""
        return [name for name in self._objects.names("trials") if self._attributes(name)]

    def _staged_ids(self) -> list[str]:
        """Trials with a claimed attempt: the folder comes a moment before the claim."""
        return [
            name
            for name in self._objects.names("staging")
            if any(
                self._objects.exists(f"{staging_key(name, number)}/zarr.json")
                for number in attempts(self._objects, name)
            )
        ]

    def trials(self) -> pd.DataFrame:
        """One row a trial, indexed by `trial_id`.

        Columns: every configuration field by its dotted name (lists as tuples; None where a
        trial has no such option), `state` (`complete`, `diverged` or `incomplete`),
        `n_snapshots`, `digest` (missing unless sealed), and the last snapshot's metrics.
        """
        import pandas as pd

        rows = [self._trial_row(trial_id) for trial_id in self.trial_ids()]
        columns = ["trial_id", "state", "n_snapshots", "digest"]
        table = pd.DataFrame.from_records(rows) if rows else pd.DataFrame(columns=columns)
        return table.set_index("trial_id")

    def _trial_row(self, trial_id: str) -> dict[str, Any]:
        return self._read(trial_id, sealed_row, staged_row)

    def snapshots(self, trial_id: str) -> pd.DataFrame:
        """One row a snapshot: `snapshot`, `step`, `epoch`, `time` and the metrics."""
        import pandas as pd

        table = pd.DataFrame(self._read(trial_id, sealed_moments, staged_moments))
        table.insert(0, "snapshot", np.arange(len(table)))
        return table

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
        sets = self._header(trial_id)["sample_sets"]
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
            self._sample_sets[key] = read_sample_set(self._objects, key)
        return self._sample_sets[key]

    def _labelled_set(self, split: str, trial_id: str) -> str:
        """The hash of a split's samples, of which predictions may be recorded or only targets."""
        header = self._header(trial_id)
        if split == "train" and "target_set" in header:
            return str(header["target_set"])
        return self.sample_set(split, trial_id)

    def _only_sample_set(self, split: str) -> str:
        sets: dict[str, str] = {}
        for trial_id in self.trial_ids():
            sets.setdefault(self._labelled_set(split, trial_id), trial_id)
        if not sets:
            raise MissingStoreError(str(self.path), "no trials", "at least one")
        if len(sets) > 1:
            named = ", ".join(f"`{key}` (as trial {trial})" for key, trial in sets.items())
            raise StoreError(
                str(self.path),
                f"the trials' {split} samples are of {len(sets)} sets: {named}",
                "one set, or a trial_id that says which",
            )
        return next(iter(sets))

    def target_phases(self, trial_id: str) -> tuple[str, ...]:
        """The phases of training that were given other labels than the clean ones.

        Most trials have none; `train` and `corner` are those there are.
        """
        return tuple(self._header(trial_id).get("targets", ()))

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
            lambda found: read_targets(self._objects, sealed_key(trial_id), found, phase),
            lambda staged: read_targets(
                self._objects, staging_key(trial_id), staged_reference(staged), phase
            ),
        )

    # --- predictions ----------------------------------------------------------------------

    def log_probs(
        self,
        trial_id: str,
        split: str,
        snapshots: Selection = slice(None),
        samples: Selection = slice(None),
    ) -> Array:
        """Natural-log probabilities, (n_snapshots, n_samples, n_classes) float32.

        What is stored is float16; rows are normalised here, in float32, so that they sum to 1.

        Parameters
        ----------
        split : `test`, or `train` where it was recorded.
        snapshots, samples : a slice, an index or a list of indices of each axis.

        Raises
        ------
        MissingStoreError : no such trial or split. HoleError : a snapshot is absent.
        StoreError : a chunk is damaged.
        """
        self.sample_set(split, trial_id)
        stored = self._read(
            trial_id,
            lambda found: self._read_sealed(trial_id, found, split, snapshots, samples),
            lambda staged: self._read_staged(staged, split, snapshots, samples),
        )
        return normalised(stored)

    def _read_sealed(
        self,
        trial_id: str,
        found: dict[str, Any],
        split: str,
        snapshots: Selection,
        samples: Selection,
    ) -> Array:
        where = f"trial {trial_id}"
        key = f"{sealed_key(trial_id)}/{found['arrays']}/{split}/log_probs"
        array = open_array(self._objects, key, where)
        shape = (found["n_snapshots"], *self._shape(split, trial_id))
        _check_shape(where, array.shape, shape)
        selection = (
            indices_of(where, "snapshots", snapshots, shape[0]),
            indices_of(where, "samples", samples, shape[1]),
        )
        stored = read_array(array, selection, where, f"{split}/log_probs")
        # The fill value is NaN and nothing that is stored is: NaN means that a shard is absent.
        if np.isnan(stored).any():
            raise HoleError(where, f"part of `{key}` is absent", hint=REMEDY)
        return stored

    def _read_staged(
        self, staged: StagedTrial, split: str, snapshots: Selection, samples: Selection
    ) -> Array:
        where = f"trial {staged.trial_id}"
        indices = indices_of(where, "snapshots", snapshots, staged.n_recorded)
        rows = [staged.log_probs(int(i), split) for i in np.arange(staged.n_recorded)[indices]]
        shape = self._shape(split, staged.trial_id)
        for row in rows:
            _check_shape(where, row.shape, shape)
        stored = np.stack(rows) if rows else np.empty((0, *shape), np.float16)
        return stored[:, indices_of(where, "samples", samples, shape[0])]

    def _shape(self, split: str, trial_id: str) -> tuple[int, int]:
        """Samples and classes of one snapshot."""
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

    def _header(self, trial_id: str) -> dict[str, Any]:
        """The attributes of a sealed trial, or those of the newest attempt."""
        return self._read(trial_id, lambda found: found, lambda staged: staged.header)

    def _attributes(self, trial_id: str) -> dict[str, Any]:
        """The attributes of a sealed trial, empty when it is not sealed."""
        if trial_id not in self._sealed:
            found = self._objects.attributes(sealed_key(trial_id))
            if found is None:
                return {}
            check_name(trial_id, found)
            self._sealed[trial_id] = found
        return self._sealed[trial_id]

    def _staged(self, trial_id: str) -> StagedTrial:
        try:
            return StagedTrial(self._objects, trial_id)
        except MissingStoreError as error:
            raise MissingStoreError(
                f"trial {trial_id}",
                "not in this store",
                f"{len(self.trial_ids())} trials are",
                nearest(trial_id, self.trial_ids()),
            ) from error


def normalised(stored: Array) -> Array:
    """Stored float16 log-probabilities as float32 whose rows sum to 1 (log-sum-exp is 0)."""
    values = stored.astype(np.float32)
    top = values.max(axis=-1, keepdims=True)
    values -= top + np.log(np.exp(values - top).sum(axis=-1, keepdims=True))
    return values


def _check_shape(where: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse an array that is not of its samples: altered metadata would cut it or fill it up."""
    if found != expected:
        raise StoreError(where, f"predictions of shape {found}", f"{expected}", REMEDY)
