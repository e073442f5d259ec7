"""Read a set of samples, checked against the hash that is its name."""

from __future__ import annotations

from sweeper.errors import HoleError, StoreError
from sweeper.store.local import LocalObjects
from sweeper.store.schema import SampleSet, samples_key
from sweeper.store.staging import REMEDY, open_array, read_array


def read_sample_set(objects: LocalObjects, key: str) -> SampleSet:
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
        read_array(open_array(objects, f"{folder}/{part}", where), slice(None), where, part)
        for part in ("labels", "ids")
    )
    found = SampleSet(attributes["split"], labels, ids, tuple(attributes["class_names"]))
    if found.hash != key:  # an absent chunk reads as zeros
        text = f"labels, ids or class names hash to {found.hash}"
        raise StoreError(where, text, "the hash that is its name", REMEDY)
    return found
