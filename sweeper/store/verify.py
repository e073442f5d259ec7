"""Find every damage of a store: what is absent, altered, or not what it says it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.config import content_id
from sweeper.durable import PARTIAL
from sweeper.errors import HoleError, MissingStoreError, SweeperError
from sweeper.store.local import LocalObjects
from sweeper.store.reader import Store
from sweeper.store.schema import SampleSet, digest, samples_key, sealed_key, staging_key
from sweeper.store.seal import is_sealed, sealed_hashes
from sweeper.store.staging import StagedTrial, open_array, read_array
from sweeper.store.writer import attempts

Problems = Iterator[tuple[int | None, str]]

_RERUN = "remove `{path}` and launch again: only this trial is run"


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: where, which snapshot if one can be named, what, and the cure."""

    where: str
    snapshot: int | None
    found: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What was checked, what is damaged, and leftovers of crashes that harm nothing."""

    n_trials: int
    n_snapshots: int
    damages: tuple[Damage, ...]
    orphans: tuple[str, ...]


def verify(store: Store) -> Report:
    """Read everything that the store holds and check it against what it says of itself.

    Every snapshot's checksum, holes, shapes, attributes, the id against the configuration, the
    sample sets against their hash and the digest against the data. Changes nothing.
    """
    objects = LocalObjects(store.path)
    damages, n_trials, n_snapshots = [], 0, 0
    for trial_id in sorted({*objects.names("trials"), *objects.names("staging")}):
        sealed = is_sealed(objects, trial_id)
        count, found = _check_trial(objects, trial_id)
        if found and not sealed and is_sealed(objects, trial_id):  # while it was being read
            count, found = _check_trial(objects, trial_id)
        if count is None:
            continue
        n_trials, n_snapshots = n_trials + 1, n_snapshots + count
        damages += found
    for key in objects.names("samples"):
        damages += _check_samples(objects, key)
    return Report(n_trials, n_snapshots, tuple(damages), tuple(_orphans(objects)))


def _check_trial(objects: LocalObjects, trial_id: str) -> tuple[int | None, list[Damage]]:
    """The number of snapshots, None when nothing is stored; and what is wrong with them."""
    sealed = is_sealed(objects, trial_id)
    staged_only = not sealed and bool(objects.names(staging_key(trial_id)))
    key = staging_key(trial_id) if staged_only else sealed_key(trial_id)
    remedy = _RERUN.format(path=objects.root / key)
    try:
        if sealed:
            count, problems = _check_sealed(objects, trial_id)
        else:
            staged = StagedTrial(objects, trial_id)
            count, problems = staged.n_recorded, list(_check_staged(objects, staged))
    except MissingStoreError:
        problems = list(_check_unclaimed(objects, trial_id))
        if not problems:
            return None, []  # a crash before the first attempt was claimed
        count = 0
    except (SweeperError, KeyError, TypeError, ValueError) as error:
        return 0, [Damage(f"trial {trial_id}", None, _text(error), remedy)]
    return count, [Damage(f"trial {trial_id}", index, text, remedy) for index, text in problems]


def _check_unclaimed(objects: LocalObjects, trial_id: str) -> Problems:
    """Arrays without the metadata that are written before they are removed."""
    if _members(objects, sealed_key(trial_id)):
        yield None, "sealed arrays are there, but neither their metadata nor staged snapshots"
    for number in attempts(objects, trial_id):
        if _members(objects, staging_key(trial_id, number)):
            yield None, f"attempt {number} staged snapshots, but its metadata are absent"


def _members(objects: LocalObjects, key: str) -> list[str]:
    return [name for name in objects.names(key) if not name.endswith(PARTIAL)]


def _text(error: Exception) -> str:
    if isinstance(error, SweeperError):
        return error.found
    return f"attributes are incomplete ({type(error).__name__}: {error})"


def _check_sealed(objects: LocalObjects, trial_id: str) -> tuple[int, list[tuple[int | None, str]]]:
    found = objects.attributes(sealed_key(trial_id)) or {}
    problems = list(_check_identity(found, trial_id))
    lengths = {len(values) for values in (found["steps"], found["epochs"], found["times"])}
    lengths |= {len(values) for values in found["metrics"].values()}
    if lengths != {found["n_snapshots"]}:
        problems.append((None, f"columns of lengths {sorted(lengths)} describe the snapshots"))
    hashes = {}
    for split, key in found["sample_sets"].items():
        name = f"{sealed_key(trial_id)}/{found['arrays']}/{split}/log_probs"
        try:
            shape = open_array(objects, name, f"trial {trial_id}").shape
            expected = (found["n_snapshots"], *_sample_shape(objects, key))
            if shape != expected:
                problems.append((None, f"`{name}` has shape {shape} instead of {expected}"))
            hashes[split] = sealed_hashes(objects, trial_id, name)
        except SweeperError as error:
            problems.append((None, error.found))
            continue
        pairs = enumerate(zip(found["snapshot_hashes"][split], hashes[split], strict=False))
        problems += [
            (i, f"{split} predictions differ from their hash") for i, (a, b) in pairs if a != b
        ]
    if hashes.keys() == found["sample_sets"].keys():
        computed = digest(hashes, found["steps"], found["epochs"], found["metrics"])
        if computed != found["digest"]:
            problems.append((None, "predictions, steps, epochs or metrics differ from the digest"))
    return int(found["n_snapshots"]), problems


def _check_staged(objects: LocalObjects, staged: StagedTrial) -> Problems:
    for number, header in staged.headers.items():
        yield from _check_identity(header, staged.trial_id)
        if header["attempt"] != number:
            yield None, f"the attributes of attempt {number} are those of another"
    for number in set(attempts(objects, staged.trial_id)) - staged.headers.keys():
        if _members(objects, staging_key(staged.trial_id, number)):
            yield None, f"attempt {number} staged snapshots, but its metadata are absent"
    for snapshot in range(staged.n_recorded):
        try:
            yield from _check_snapshot(objects, staged, snapshot)
        except SweeperError as error:
            yield snapshot, error.found


def _check_snapshot(objects: LocalObjects, staged: StagedTrial, snapshot: int) -> Problems:
    if not staged.is_present(snapshot):
        yield snapshot, "absent although later snapshots are there"
        return
    step = staged.moment(snapshot)["step"]
    if step != staged.header["steps"][snapshot]:
        yield snapshot, f"recorded at step {step:.0f}, planned for another"
    for split, key in staged.header["sample_sets"].items():
        values, expected = staged.log_probs(snapshot, split), _sample_shape(objects, key)
        if values.shape != expected:
            yield snapshot, f"{split} predictions have shape {values.shape} instead of {expected}"
        if not np.isfinite(values).all():
            yield snapshot, f"{split} predictions are not finite"


def _check_identity(found: dict[str, Any], trial_id: str) -> Problems:
    if found["trial"] != trial_id:
        yield None, f"its attributes are those of trial {found['trial']}"
    expected = content_id(found["identity"], found["schema"])
    if expected != trial_id:
        yield None, f"its configuration has the id {expected}"
    differing = [k for k, value in found["identity"].items() if found["config"].get(k) != value]
    if differing:
        yield None, f"its configuration contradicts its identity in {', '.join(differing)}"


def _sample_shape(objects: LocalObjects, key: str) -> tuple[int, int]:
    """The shape of one snapshot of a set of samples: its samples and classes."""
    attributes = objects.attributes(samples_key(key))
    if attributes is None:
        raise HoleError(f"sample set {key}", f"its sample set {key} is absent")
    labels = open_array(objects, f"{samples_key(key)}/{attributes['arrays']}/labels", key)
    return labels.shape[0], len(attributes["class_names"])


def _check_samples(objects: LocalObjects, key: str) -> Iterator[Damage]:
    where, remedy = f"sample set {key}", "restore this folder from a copy of the store"
    attributes = objects.attributes(samples_key(key))
    if attributes is None:
        return  # a crash before it was published; nothing refers to it
    try:
        parts = [
            read_array(
                open_array(objects, f"{samples_key(key)}/{attributes['arrays']}/{part}", where),
                slice(None),
                where,
                part,
            )
            for part in ("labels", "ids")
        ]
        names = tuple(attributes["class_names"])
        found = SampleSet(attributes["split"], parts[0], parts[1], names).hash
    except (SweeperError, KeyError, TypeError) as error:
        yield Damage(where, None, _text(error), remedy)
        return
    if found != key:
        yield Damage(where, None, f"labels, ids or class names hash to {found}", remedy)


def _orphans(objects: LocalObjects) -> Iterator[str]:
    """What crashes leave behind: temporary files, and staging or seals that were superseded."""
    for path in sorted(objects.root.rglob(f"*{PARTIAL}")):
        yield str(path.relative_to(objects.root))
    for trial_id in objects.names("staging"):
        if is_sealed(objects, trial_id):
            yield staging_key(trial_id)
    for trial_id in objects.names("trials"):
        if not is_sealed(objects, trial_id) and objects.names(staging_key(trial_id)):
            yield sealed_key(trial_id)
