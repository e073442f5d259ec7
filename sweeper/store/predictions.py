"""Read a selection of one trial's predictions, sealed or staged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeper.errors import HoleError, StoreError
from sweeper.store.arrays import REMEDY, StoredArray, as_run, spread
from sweeper.store.objects import Objects
from sweeper.store.schema import Array, sealed_key
from sweeper.store.selection import Selection, indices_of
from sweeper.store.staging import StagedTrial

DType = Literal["float32", "float16"]

_ARRAYS_KEPT = 4096  # whose metadata and shards' indices are remembered


@dataclass(frozen=True)
class Wanted:
    """What is asked for: `shape` is (n_samples, n_classes) of a whole snapshot."""

    where: str
    split: str
    shape: tuple[int, int]
    snapshots: Selection
    samples: Selection
    dtype: DType

    def gather(
        self, n_recorded: int, read: Callable[[Array, Array, Array], Array], masked: bool
    ) -> Array:
        """Read it: `read(rows, samples, out)` fills `out` and returns where it could not.

        Raises
        ------
        MissingStoreError : an index is not there. HoleError : some of it is absent; with `masked`
            it is masked instead.
        """
        rows, samples = (
            np.arange(size)[indices_of(self.where, axis, chosen, size)]
            for axis, chosen, size in (
                ("snapshots", self.snapshots, n_recorded),
                ("samples", self.samples, self.shape[0]),
            )
        )
        out: Array = np.empty((len(rows), len(samples), self.shape[1]), self.dtype)
        absent = read(rows, samples, out) if out.size else np.zeros(out.shape[:2], bool)
        if not masked and absent.any():
            row, sample = np.argwhere(absent)[0]
            missing = f"{self.split} predictions of snapshot {rows[row]}, sample {samples[sample]}"
            raise HoleError(self.where, f"{missing} are absent", hint=REMEDY)
        mask = np.broadcast_to(absent[..., None], out.shape)
        return np.ma.masked_array(out, mask) if masked else out

    def check(self, found: tuple[int, ...]) -> None:
        """Refuse an array of other samples: altered metadata would cut it or fill it up."""
        if found != self.shape:
            raise StoreError(self.where, f"predictions of shape {found}", f"{self.shape}", REMEDY)


def read_sealed(
    objects: Objects,
    arrays: dict[str, StoredArray],
    found: dict[str, Any],
    wanted: Wanted,
    masked: bool,
) -> Array:
    """A sealed trial's; `found` are its attributes, `arrays` those that were opened before."""
    key = f"{sealed_key(found['trial'])}/{found['arrays']}/{wanted.split}/log_probs"
    array = arrays.get(key) or StoredArray(objects, key, wanted.where)
    if len(arrays) >= _ARRAYS_KEPT:
        arrays.clear()
    arrays[key] = array
    n_snapshots, *shape = array.layout.shape
    wanted.check(tuple(shape))
    if n_snapshots != found["n_snapshots"]:
        text = f"predictions of {n_snapshots} snapshots"
        raise StoreError(wanted.where, text, f"{found['n_snapshots']}", REMEDY)

    def read(rows: Array, samples: Array, out: Array) -> Array:
        absent = np.zeros(out.shape[:2], bool)
        for places in array.read(0, as_run(rows), samples, out, wanted.where):
            absent[:, places] = True
        return absent

    return wanted.gather(n_snapshots, read, masked)


def read_staged(staged: StagedTrial, wanted: Wanted, masked: bool) -> Array:
    """An unfinished trial's, each snapshot from its owner."""

    def read(rows: Array, samples: Array, out: Array) -> Array:
        absent = np.zeros(out.shape[:2], bool)

        def read_one(place: int) -> None:
            try:
                wanted.check(staged.shape(wanted.split, int(rows[place])))
                staged.read(int(rows[place]), wanted.split, samples, out[place])
            except HoleError:
                if not masked:
                    raise
                absent[place] = True

        spread(read_one, range(len(rows)), staged.reads_at_once)
        return absent

    return wanted.gather(staged.n_recorded, read, masked)
