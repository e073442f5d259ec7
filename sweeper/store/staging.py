"""What the attempts of an unfinished trial have staged, and which attempt owns which snapshot."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sweeper.errors import FormatVersionError, HoleError, MissingStoreError, StoreError
from sweeper.store.arrays import REMEDY, StoredArray, chunk_name
from sweeper.store.moments import Moment, from_record, record_size
from sweeper.store.objects import Objects
from sweeper.store.schema import FORMAT, Array, staging_key

_REQUESTS_AT_ONCE = 8


def attempts(objects: Objects, trial_id: str) -> list[int]:
    """The numbers of the staged attempts of a trial, ascending."""
    names = objects.names(staging_key(trial_id))
    return sorted(int(name) for name in names if name.isdigit())


def claim(objects: Objects, trial_id: str, attributes: Mapping[str, Any]) -> tuple[int, str]:
    """Take the next free attempt number by creating its group exclusively.

    Returns
    -------
    The number, and the token of this claim: a number can be taken again after a repair.
    """
    number = max(attempts(objects, trial_id), default=0) + 1
    # No two processes' claims are the same bytes, so that each knows its own (`Objects.create`).
    own = {**attributes, "claim": uuid.uuid4().hex}
    while not objects.create_group(staging_key(trial_id, number), {**own, "attempt": number}):
        number += 1
    return number, own["claim"]


def owner_of(snapshot: int, claims: Sequence[tuple[int, int]]) -> int | None:
    """The attempt that owns a snapshot: the newest that starts at or before it, None if none does.

    `claims` are (attempt, first snapshot) in ascending order of attempts. An older attempt that
    writes on after a newer one took over therefore changes nothing that is read.
    """
    return max((attempt for attempt, first in claims if first <= snapshot), default=None)


class StagedAttempt:
    """A reader of what one attempt has staged, as of the moment it is made.

    Raises
    ------
    MissingStoreError : the attempt is not claimed.
    """

    def __init__(self, objects: Objects, trial_id: str, number: int) -> None:
        self.objects, self.trial_id, self.number = objects, trial_id, number
        self.key = staging_key(trial_id, number)
        header = objects.attributes(self.key)
        if header is None:
            raise MissingStoreError(f"trial {trial_id}", f"attempt {number} is not claimed")
        self.header = header
        self.present = self._present()
        self._arrays: dict[str, StoredArray] = {}
        self._lock = threading.Lock()

    def _present(self) -> set[int]:
        """The snapshots it has committed: those whose test-set object is there."""
        names = self.objects.names(f"{self.key}/test/log_probs")
        indices = (name.split(".")[1] for name in names if name.startswith("c."))
        return {int(i) for i in indices if i.isdigit() and chunk_name(int(i), 0, 0) in names}

    def shape(self, split: str, snapshot: int) -> tuple[int, ...]:
        """(n_samples, n_classes) of a split's predictions."""
        return self._array(split, snapshot).layout.shape[1:]

    def log_probs(
        self, snapshot: int, split: str, samples: Array | None = None, dtype: str = "<f2"
    ) -> Array:
        """A snapshot's predictions, (n_samples, n_classes): stored float16, or float32 normalised.

        Raises
        ------
        HoleError : it is absent. StoreError : it is damaged.
        """
        n_samples, n_classes = self.shape(split, snapshot)
        if samples is None:
            samples = np.arange(n_samples)
        out: Array = np.empty((len(samples), n_classes), dtype)
        self.read(snapshot, split, samples, out)
        return out

    def read(self, snapshot: int, split: str, samples: Array, out: Array) -> None:
        """Fill `out` with what `log_probs` gives of these samples and of its type."""
        where = self._where(snapshot)
        if self._array(split, snapshot).read(snapshot, slice(None), samples, out[None], where):
            found = f"{split}/log_probs of attempt {self.number} is absent"
            raise HoleError(where, found, hint=REMEDY)

    def moment(self, snapshot: int) -> Moment:
        """A snapshot's step, epoch, time and metrics.

        Raises
        ------
        HoleError : it is absent. StoreError : it is damaged.
        """
        where, metrics = self._where(snapshot), self.header["metrics"]
        key = f"{self.key}/test/log_probs/{chunk_name(snapshot, 0, 0)}"
        try:
            (data,) = self.objects.read_ranges(key, [(0, record_size(metrics))])
            return from_record(data, metrics)
        except FileNotFoundError as error:
            found = f"test/log_probs of attempt {self.number} is absent"
            raise HoleError(where, found, hint=REMEDY) from error
        except ValueError as error:
            allowed = "bytes that match their checksum"
            raise StoreError(where, f"its record is damaged ({error})", allowed, REMEDY) from error

    def _array(self, split: str, snapshot: int) -> StoredArray:
        with self._lock:
            if split not in self._arrays:
                key = f"{self.key}/{split}/log_probs"
                self._arrays[split] = StoredArray(self.objects, key, self._where(snapshot))
            return self._arrays[split]

    def _where(self, snapshot: int) -> str:
        return f"trial {self.trial_id}, snapshot {snapshot}"


class StagedTrial:
    """A reader of one trial's staged snapshots, as of the moment it is made.

    Raises
    ------
    MissingStoreError : nothing of this trial is staged.
    """

    def __init__(self, objects: Objects, trial_id: str) -> None:
        self.objects, self.trial_id = objects, trial_id
        self.attempts: dict[int, StagedAttempt] = {}
        for number in attempts(objects, trial_id):
            try:
                self.attempts[number] = StagedAttempt(objects, trial_id, number)
            except MissingStoreError:  # its folder comes a moment before its claim
                continue
        if not self.attempts:
            raise MissingStoreError(f"trial {trial_id}", "nothing is stored of it")
        check_header(trial_id, self.header)

    @property
    def headers(self) -> dict[int, dict[str, Any]]:
        """The attributes of every attempt."""
        return {number: attempt.header for number, attempt in self.attempts.items()}

    @property
    def newest(self) -> int:
        """The number of the newest attempt."""
        return max(self.attempts)

    @property
    def header(self) -> dict[str, Any]:
        """The attributes of the newest attempt."""
        return self.attempts[self.newest].header

    @property
    def claims(self) -> list[tuple[int, int]]:
        """(attempt, first snapshot), ascending."""
        return [(number, int(found["first_snapshot"])) for number, found in self.headers.items()]

    @property
    def n_planned(self) -> int:
        """Snapshots of the whole trial."""
        return len(self.header["steps"])

    @property
    def n_recorded(self) -> int:
        """One more than the highest snapshot that is there."""
        present = [i for i in range(self.n_planned) if self.is_present(i)]
        return max(present, default=-1) + 1

    @property
    def reads_at_once(self) -> int:
        """How many snapshots to read at once: a bucket answers many, each of them late."""
        return _REQUESTS_AT_ONCE if "://" in self.objects.location else 1

    @property
    def holes(self) -> list[int]:
        """Snapshots below the number recorded that are absent."""
        return [i for i in range(self.n_recorded) if not self.is_present(i)]

    def is_present(self, snapshot: int) -> bool:
        """Whether the owner of this snapshot has committed it."""
        owner = owner_of(snapshot, self.claims)
        return owner is not None and snapshot in self.attempts[owner].present

    def log_probs(
        self, snapshot: int, split: str, samples: Array | None = None, dtype: str = "<f2"
    ) -> Array:
        """A snapshot's predictions, from its owner (see `StagedAttempt.log_probs`)."""
        return self._owner(snapshot).log_probs(snapshot, split, samples, dtype)

    def read(self, snapshot: int, split: str, samples: Array, out: Array) -> None:
        """Fill `out` with a snapshot's predictions (see `StagedAttempt.read`)."""
        self._owner(snapshot).read(snapshot, split, samples, out)

    def shape(self, split: str, snapshot: int = 0) -> tuple[int, ...]:
        """(n_samples, n_classes) of a split's predictions, as a snapshot's owner has them."""
        return self._owner(snapshot).shape(split, snapshot)

    def moment(self, snapshot: int) -> Moment:
        """A snapshot's step, epoch, time and metrics, from its owner."""
        return self._owner(snapshot).moment(snapshot)

    def moments(self) -> list[Moment]:
        """Those of all recorded snapshots."""
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            return list(pool.map(self.moment, range(self.n_recorded)))

    def _owner(self, snapshot: int) -> StagedAttempt:
        number = owner_of(snapshot, self.claims)
        if number is None:
            where = f"trial {self.trial_id}, snapshot {snapshot}"
            raise HoleError(where, "the attempt that recorded it is absent", hint=REMEDY)
        return self.attempts[number]


def check_header(trial_id: str, found: dict[str, Any]) -> None:
    """Refuse attributes of another trial, as folders may have been swapped, or of another format.

    Raises
    ------
    StoreError, FormatVersionError
    """
    where = f"trial {trial_id}"
    if found["trial"] != trial_id:
        text = f"its attributes are those of trial {found['trial']}"
        raise StoreError(where, text, "a folder named as its trial", REMEDY)
    if not isinstance(found["format"], int) or not 1 <= found["format"] <= FORMAT:
        raise FormatVersionError(
            where,
            f"stored in format `{found['format']}`",
            f"this sweeper reads formats 1 to {FORMAT}",
            "install the version of sweeper that wrote it, or a newer one",
        )
