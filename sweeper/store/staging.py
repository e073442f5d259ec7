"""What the attempts of an unfinished trial have staged, and which attempt owns which snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store.local import LocalObjects
from sweeper.store.schema import DTYPES, Array, chunk_name, codecs, staging_key
from sweeper.store.writer import MOMENT_COLUMNS, attempts


def owner_of(snapshot: int, claims: Sequence[tuple[int, int]]) -> int | None:
    """The attempt that owns a snapshot: the newest that starts at or before it, None if none does.

    `claims` are (attempt, first snapshot) in ascending order of attempts. An older attempt that
    writes on after a newer one took over therefore changes nothing that is read.
    """
    return max((attempt for attempt, first in claims if first <= snapshot), default=None)


class StagedTrial:
    """A reader of one trial's staged snapshots, as of the moment it is made.

    Raises
    ------
    MissingStoreError : nothing of this trial is staged.
    """

    def __init__(self, objects: LocalObjects, trial_id: str) -> None:
        self.objects, self.trial_id = objects, trial_id
        found = [
            (number, objects.attributes(staging_key(trial_id, number)))
            for number in attempts(objects, trial_id)
        ]
        self.headers = {number: header for number, header in found if header is not None}
        if not self.headers:
            raise MissingStoreError(f"trial {trial_id}", "nothing is stored of it")
        check_name(trial_id, self.header)
        self._present = {number: self._indices(number) for number in self.headers}
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def header(self) -> dict[str, Any]:
        """The attributes of the newest attempt."""
        return self.headers[max(self.headers)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what a moment says: step, epoch, time and the metrics."""
        return (*MOMENT_COLUMNS, *self.header["metrics"])

    @property
    def claims(self) -> list[tuple[int, int]]:
        """(attempt, first snapshot), ascending."""
        return [(number, int(found["first_snapshot"])) for number, found in self.headers.items()]

    @property
    def n_recorded(self) -> int:
        """One more than the highest snapshot that is there."""
        present = [i for i in range(len(self.header["steps"])) if self.is_present(i)]
        return max(present, default=-1) + 1

    @property
    def holes(self) -> list[int]:
        """Snapshots below the number recorded that are absent."""
        return [i for i in range(self.n_recorded) if not self.is_present(i)]

    def is_present(self, snapshot: int) -> bool:
        """Whether the owner of this snapshot has committed it."""
        owner = owner_of(snapshot, self.claims)
        return owner is not None and snapshot in self._present[owner]

    def _indices(self, attempt: int) -> set[int]:
        """The snapshots this attempt has committed: those whose test-set chunk is there."""
        names = self.objects.names(f"{staging_key(self.trial_id, attempt)}/test/log_probs")
        indices = (name.split(".")[1] for name in names if name.startswith("c."))
        return {int(i) for i in indices if i.isdigit() and chunk_name(int(i), 3) in names}

    def log_probs(self, snapshot: int, split: str) -> Array:
        """One snapshot's stored predictions, (n_samples, n_classes) float16.

        Raises
        ------
        HoleError : it is absent. StoreError : its chunk is damaged.
        """
        return self._read(snapshot, f"{split}/log_probs")

    def moment(self, snapshot: int) -> dict[str, float]:
        """One snapshot's step, epoch, time and metrics."""
        values = self._read(snapshot, "moments")
        return dict(zip(self.columns, values.tolist(), strict=True))

    def _read(self, snapshot: int, name: str) -> Array:
        attempt = owner_of(snapshot, self.claims)
        where = f"trial {self.trial_id}, snapshot {snapshot}"
        if attempt is None:
            raise HoleError(where, "the attempt that recorded it is absent", hint=REMEDY)
        key = f"{staging_key(self.trial_id, attempt)}/{name}"
        array = self._arrays.get(key) or open_array(self.objects, key, where)
        self._arrays[key] = array
        if not self.objects.exists(f"{key}/{chunk_name(snapshot, array.ndim)}"):
            raise HoleError(where, f"{name} of attempt {attempt} is absent", hint=REMEDY)
        return read_array(array, snapshot, where, name)


REMEDY = "`sweeper verify DIR` lists all damage"


def open_array(objects: LocalObjects, key: str, where: str) -> zarr.Array[Any]:
    """Open an array for reading; `where` names trial and snapshot for the error.

    Raises
    ------
    HoleError : it is absent. StoreError : its metadata is damaged or not of this format.
    """
    try:
        array = zarr.open_array(objects.array_store(key, read_only=True), mode="r")
    except FileNotFoundError as error:
        raise HoleError(where, f"array `{key}` is absent", hint=REMEDY) from error
    except Exception as error:  # zarr raises ValueError, KeyError and its own on bad metadata
        found = f"metadata of `{key}` is unreadable ({error})"
        raise StoreError(where, found, hint=REMEDY) from error
    if not _is_of_format(array, key.rpartition("/")[2]):
        raise StoreError(where, f"metadata of `{key}` differs from the format", hint=REMEDY)
    return array


def _is_of_format(array: zarr.Array[Any], name: str) -> bool:
    """Whether an array has the type and the codecs with which it was written.

    Altered metadata of arrays have no checksum; another byte order would decode to other values.
    """
    metadata: Any = array.metadata.to_dict()
    chain = metadata["codecs"]
    if chain[0]["name"] == "sharding_indexed":
        chain = chain[0]["configuration"]["codecs"]
    compressors = codecs(array.dtype.itemsize)
    expected = [BytesCodec().to_dict(), *(codec.to_dict() for codec in compressors)]
    return array.dtype.str == DTYPES[name] and list(chain) == expected


def check_name(trial_id: str, found: dict[str, Any]) -> None:
    """Refuse attributes of another trial: folders may have been swapped.

    Raises
    ------
    StoreError
    """
    if found["trial"] != trial_id:
        where, text = f"trial {trial_id}", f"its attributes are those of trial {found['trial']}"
        raise StoreError(where, text, "a folder named as its trial", REMEDY)


def read_array(array: zarr.Array[Any], selection: Any, where: str, name: str) -> Array:
    """Read part of an array; a damaged chunk is an error that names it."""
    try:
        return np.asarray(array.oindex[selection])
    except OSError:
        raise
    except Exception as error:  # codecs raise ValueError, RuntimeError, … on damaged bytes
        raise StoreError(
            where, f"{name} is damaged ({error})", "bytes that match their checksum", REMEDY
        ) from error
