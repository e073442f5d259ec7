"""Sets of samples: written once, and read checked against the hash that is their name."""

from __future__ import annotations

from collections.abc import Iterable

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store.arrays import REMEDY, StoredArray, write_whole
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.schema import SampleSet, samples_key

_ARRAYS = "arrays"


def write_sample_set(objects: Objects, samples: SampleSet) -> None:
    """Write labels and ids once, published by the group.

    All writers of a set write the same values in the same place, so that none disturbs another
    and one that is killed leaves nothing that the next does not use.
    """
    key = samples_key(samples.hash)
    if objects.exists(metadata_key(key)):
        objects.settle(metadata_key(key))  # a publisher may have died before it did
        return
    for part, values in (("labels", samples.labels), ("ids", samples.ids)):
        write_whole(objects, f"{key}/{_ARRAYS}/{part}", values)
    attributes = {
        "arrays": _ARRAYS,
        "split": samples.split,
        "class_names": list(samples.class_names),
    }
    objects.create_group(key, attributes)


def read_sample_set(objects: Objects, key: str) -> SampleSet:
    """The labels, ids and class names of the set whose hash is `key`.

    Raises
    ------
    HoleError : it is absent. StoreError : it is damaged, or hashes to something else.
    """
    where = f"sample set {key}"
    attributes = objects.attributes(samples_key(key))
    if attributes is None:
        raise HoleError(where, "absent", "the labels of every stored trial")
    folder = f"{samples_key(key)}/{attributes['arrays']}"
    labels, ids = (
        StoredArray(objects, f"{folder}/{part}", where).whole(where) for part in ("labels", "ids")
    )
    found = SampleSet(attributes["split"], labels, ids, tuple(attributes["class_names"]))
    if found.hash != key:
        text = f"labels, ids or class names hash to {found.hash}"
        raise StoreError(where, text, "the hash that is its name", REMEDY)
    return found


def only_set(location: str, what: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The one set of these (set, trial) pairs.

    Raises
    ------
    MissingStoreError : there is no pair. StoreError : there are several sets.
    """
    sets: dict[str, str] = {}
    for key, trial_id in pairs:
        sets.setdefault(key, trial_id)
    if not sets:
        raise MissingStoreError(location, "no trials", "at least one")
    if len(sets) > 1:
        named = ", ".join(f"`{key}` (as trial {trial})" for key, trial in sets.items())
        found = f"{what} are of {len(sets)} sets: {named}"
        raise StoreError(location, found, "one set, or a trial_id or selection that says which")
    return next(iter(sets))
