"""The labels that a trial was trained on, where they are not the clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.errors import StoreError
from sweeper.store.arrays import REMEDY, StoredArray, write_whole
from sweeper.store.objects import Objects
from sweeper.store.schema import Array, sealed_key, staging_key, target_hash
from sweeper.store.staging import StagedTrial, owner_of

REFERENCE = (
    "targets",
    "target_set",
)  # the attributes that a trial with targets has, beside `arrays`


def read_targets(objects: Objects, folder: str, attributes: Mapping[str, Any], phase: str) -> Array:
    """The labels that a phase was given, (n_train,) int64, checked against their hash.

    Parameters
    ----------
    folder : the trial's, sealed or staged.
    attributes : those of the sealed trial or of the attempt, which name the arrays.

    Raises
    ------
    HoleError : they are absent. StoreError : they are damaged, or hash to something else.
    """
    where, name = f"trial {attributes['trial']}", f"{phase}/targets"
    found = StoredArray(objects, f"{folder}/{attributes['arrays']}/{name}", where).whole(where)
    if target_hash(found) != attributes["targets"][phase]:
        raise StoreError(where, f"{name} differ from their hash", "what was trained on", REMEDY)
    return found


def staged_reference(staged: StagedTrial) -> dict[str, Any]:
    """The attributes of the newest attempt, whose targets are those of all the trial's snapshots.

    Raises
    ------
    StoreError : an older attempt recorded some of the snapshots, trained on other labels or of
        other samples.
    """
    newest = staged.header
    for snapshot in range(staged.n_recorded):
        owner = owner_of(snapshot, staged.claims)
        header = staged.headers[owner] if owner else newest
        where = f"trial {staged.trial_id}, snapshot {snapshot}"
        if any(header.get(key) != newest.get(key) for key in REFERENCE):
            found = f"attempt {owner} was trained on other labels than attempt {newest['attempt']}"
            raise StoreError(where, found, "one set of training labels", REMEDY)
        if header["sample_sets"] != newest["sample_sets"]:
            found = f"attempt {owner} is of other samples than attempt {newest['attempt']}"
            raise StoreError(where, found, "one set of samples a split", REMEDY)
    return newest


def copy_targets(staged: StagedTrial, attempt: int) -> dict[str, Any]:
    """Copy the targets to the sealed trial and read them back; the attributes that refer to them.

    Raises
    ------
    HoleError : they are absent. StoreError : they are damaged, or not those of every attempt.
    """
    objects, trial_id = staged.objects, staged.trial_id
    found = staged_reference(staged)
    for phase in found.get("targets", ()):
        values = read_targets(objects, staging_key(trial_id), found, phase)
        write_whole(objects, f"{sealed_key(trial_id)}/{attempt}/{phase}/targets", values)
        read_targets(objects, sealed_key(trial_id), {**found, "arrays": str(attempt)}, phase)
    return {key: found[key] for key in REFERENCE if key in found}
