"""Find every damage of a store: what is absent, altered, or not what it says it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.config import content_id
from sweeper.durable import PARTIAL
from sweeper.errors import MissingStoreError, SweeperError
from sweeper.store.local import LocalObjects
from sweeper.store.reader import Store
from sweeper.store.samples import read_sample_set
from sweeper.store.schema import digest, samples_key, sealed_key, staging_key
from sweeper.store.seal import is_sealed, sealed_hashes
from sweeper.store.staging import StagedTrial, open_array
from sweeper.store.targets import read_targets, staged_reference
from sweeper.store.writer import attempts

Problems = Iterator[tuple[int | None, str]]
Shapes = dict[str, tuple[int, int] | None]  # (n_samples, n_classes); None where damaged

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
    sample sets and targets against their hash and the digest against the data. Changes nothing.
    """
    objects = LocalObjects(store.path)
    shapes, damages = _check_samples(objects)
    n_trials, n_snapshots = 0, 0
    for trial_id in sorted({*objects.names("trials"), *objects.names("staging")}):
        sealed = is_sealed(objects, trial_id)
        count, found = _check_trial(objects, trial_id, shapes)
        if found and not sealed and is_sealed(objects, trial_id):  # while it was being read
            count, found = _check_trial(objects, trial_id, shapes)
        if count is None:
            continue
        n_trials, n_snapshots = n_trials + 1, n_snapshots + count
        damages += found
    return Report(n_trials, n_snapshots, tuple(damages), tuple(_orphans(objects)))


def _check_trial(
    objects: LocalObjects, trial_id: str, shapes: Shapes
) -> tuple[int | None, list[Damage]]:
    """The number of snapshots, None when nothing is stored; and what is wrong with them."""
    sealed = is_sealed(objects, trial_id)
    staged_only = not sealed and bool(objects.names(staging_key(trial_id)))
    key = staging_key(trial_id) if staged_only else sealed_key(trial_id)
    remedy = _RERUN.format(path=objects.root / key)
    try:
        if sealed:
            count, problems = _check_sealed(objects, trial_id, shapes)
        else:
            staged = StagedTrial(objects, trial_id)
            count, problems = staged.n_recorded, list(_check_staged(objects, staged, shapes))
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


def _check_sealed(
    objects: LocalObjects, trial_id: str, shapes: Shapes
) -> tuple[int, list[tuple[int | None, str]]]:
    found = objects.attributes(sealed_key(trial_id)) or {}
    problems = list(_check_identity(found, trial_id))
    lengths = {len(values) for values in (found["steps"], found["epochs"], found["times"])}
    lengths |= {len(values) for values in found["metrics"].values()}
    lengths |= {len(hashes) for hashes in found["snapshot_hashes"].values()}
    if lengths != {found["n_snapshots"]}:
        problems.append((None, f"columns of lengths {sorted(lengths)} describe the snapshots"))
    hashes = {}
    for split, key in found["sample_sets"].items():
        name = f"{sealed_key(trial_id)}/{found['arrays']}/{split}/log_probs"
        try:
            shape = open_array(objects, name, f"trial {trial_id}").shape
            problems += [(None, text) for text in _check_shape(shapes, key, shape[1:])]
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
    problems += _check_targets(objects, sealed_key(trial_id), found, shapes)
    return int(found["n_snapshots"]), problems


def _check_staged(objects: LocalObjects, staged: StagedTrial, shapes: Shapes) -> Problems:
    for number, header in staged.headers.items():
        yield from _check_identity(header, staged.trial_id)
        if header["attempt"] != number:
            yield None, f"the attributes of attempt {number} are those of another"
        yield from _check_targets(objects, staging_key(staged.trial_id), header, shapes)
    for number in set(attempts(objects, staged.trial_id)) - staged.headers.keys():
        if _members(objects, staging_key(staged.trial_id, number)):
            yield None, f"attempt {number} staged snapshots, but its metadata are absent"
    for snapshot in range(staged.n_recorded):
        try:
            yield from _check_snapshot(staged, snapshot, shapes)
        except SweeperError as error:
            yield snapshot, error.found
    try:
        staged_reference(staged)
    except SweeperError as error:
        yield None, error.found


def _check_targets(
    objects: LocalObjects, folder: str, header: dict[str, Any], shapes: Shapes
) -> Problems:
    """The labels that were not the clean ones, of a sealed trial or of an attempt."""
    for phase in header.get("targets", ()):
        try:
            n_targets = len(read_targets(objects, folder, header, phase))
        except SweeperError as error:
            yield None, error.found
            continue
        key = header["target_set"]
        if key not in shapes:
            yield None, f"its sample set {key} is absent"
        elif (shape := shapes[key]) is not None and shape[0] != n_targets:
            yield None, f"{n_targets} {phase}/targets instead of {shape[0]}"


def _check_snapshot(staged: StagedTrial, snapshot: int, shapes: Shapes) -> Problems:
    if not staged.is_present(snapshot):
        yield snapshot, "absent although later snapshots are there"
        return
    step = staged.moment(snapshot)["step"]
    if step != staged.header["steps"][snapshot]:
        yield snapshot, f"recorded at step {step:.0f}, planned for another"
    for split, key in staged.header["sample_sets"].items():
        values = staged.log_probs(snapshot, split)
        yield from ((snapshot, text) for text in _check_shape(shapes, key, values.shape))
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


def _check_samples(objects: LocalObjects) -> tuple[Shapes, list[Damage]]:
    """The shape of a snapshot of each set of samples, and what is wrong with the sets."""
    shapes: Shapes = {}
    damages = []
    for key in objects.names("samples"):
        try:
            if objects.exists(f"{samples_key(key)}/zarr.json"):  # else a crash left it, unpublished
                found = read_sample_set(objects, key)
                shapes[key] = len(found.labels), len(found.class_names)
        except (SweeperError, KeyError, TypeError) as error:
            shapes[key] = None
            remedy = "restore this folder from a copy of the store"
            damages.append(Damage(f"sample set {key}", None, _text(error), remedy))
    return shapes, damages


def _check_shape(shapes: Shapes, key: str, found: tuple[int, ...]) -> Iterator[str]:
    """Whether predictions have the shape that their set of samples demands."""
    if key not in shapes:
        yield f"its sample set {key} is absent"
    elif shapes[key] not in (None, found):
        yield f"predictions have shape {found} instead of {shapes[key]}"


def _orphans(objects: LocalObjects) -> Iterator[str]:
    """What crashes leave behind: temporary files, and staging or seals that were superseded."""
    for path in sorted(objects.root.rglob(f"*{PARTIAL}")):
        yield str(path.relative_to(objects.root))
    for trial_id in objects.names("staging"):
        if is_sealed(objects, trial_id):
            yield staging_key(trial_id)
        else:
            yield from _unclaimed_targets(objects, trial_id)
    for trial_id in objects.names("trials"):
        if not is_sealed(objects, trial_id) and objects.names(staging_key(trial_id)):
            yield sealed_key(trial_id)


def _unclaimed_targets(objects: LocalObjects, trial_id: str) -> list[str]:
    """Targets whose attempt was killed before it was claimed."""
    try:
        headers = [
            objects.attributes(staging_key(trial_id, number)) or {}
            for number in attempts(objects, trial_id)
        ]
    except SweeperError:
        return []  # whose they are cannot be told; the damage is reported
    claimed = {header.get("arrays") for header in headers}
    folder = staging_key(trial_id)
    names = (name for name in objects.names(folder) if name.startswith("targets-"))
    return [f"{folder}/{name}" for name in names if name not in claimed]
