"""Find every damage of a store: what is absent, altered, or not what it says it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sweeper.config import content_id
from sweeper.durable import PARTIAL
from sweeper.errors import (
    FormatVersionError,
    MissingStoreError,
    StoreError,
    SweeperError,
    UnavailableStoreError,
)
from sweeper.journal import Tally
from sweeper.store.arrays import StoredArray
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.reader import Store
from sweeper.store.samples import read_sample_set
from sweeper.store.schema import digest, samples_key, sealed_key, staging_key
from sweeper.store.seal import is_sealed, sealed_hashes
from sweeper.store.staging import StagedTrial, attempts, check_header
from sweeper.store.targets import read_targets, staged_reference
from sweeper.store.writer import check_predictions

Problems = Iterator[tuple[int | None, str]]


@dataclass
class _Samples:
    """The sets of samples that there are: (n_samples, n_classes) of each, None where damaged.

    `absent` are those that a trial names and that are not there, with one such trial.
    """

    shapes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def check(self, key: str, trial_id: str, found: tuple[int, ...]) -> str | None:
        """What is wrong with predictions of this shape that are said to be of the set `key`."""
        if key not in self.shapes:
            self.absent.setdefault(key, trial_id)
            return None  # no fault of the trial's
        expected = self.shapes[key]
        if expected in (None, found):
            return None
        return f"predictions have shape {found} instead of {expected}"


Cure = Literal["rerun", "reimport", "rewrite", "upgrade", "copy"]

_REMEDIES: dict[Cure, str] = {
    "rerun": "`sweeper verify DIR --repair`, and launch again: only this trial is run",
    "reimport": "`sweeper verify DIR --repair`, and `sweeper import` it again",
    "rewrite": "`sweeper verify DIR --repair` writes it anew from the data",
    "copy": "the disk fails, for now or for good: copy the store to another one, then verify it",
    "upgrade": "install the version of sweeper that wrote it, or a newer one",
}


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: where, which snapshot if one can be named, what, and the cure.

    `key` is the trial's id or the sample set's hash.
    """

    where: str
    snapshot: int | None
    found: str
    cure: Cure
    key: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return _REMEDIES[self.cure]


@dataclass(frozen=True)
class Report:
    """What was checked, what is damaged, and leftovers of crashes that harm nothing."""

    n_trials: int
    n_snapshots: int
    damages: tuple[Damage, ...]
    orphans: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """Itself for `--json`."""
        damages = [{**asdict(damage), "remedy": damage.remedy} for damage in self.damages]
        return {**asdict(self), "damages": damages}


def verify(
    store: Store,
    tally: Tally | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    only: Collection[str] | None = None,
) -> Report:
    """Read everything that the store holds and check it against what it says of itself.

    Every snapshot's checksum, holes, shapes, attributes, the id against the configuration, the
    sample sets and targets against their hash and the digest against the data. Changes nothing.

    Parameters
    ----------
    tally : what the sweep's journal says; a trial that it has complete has to be there.
    progress : called with the number of trials that are checked and of all.
    only : check these trials alone, and all sets of samples; None for everything.
    """
    objects = store.objects
    samples, damages = _check_samples(objects)
    n_trials, n_snapshots = 0, 0
    trial_ids = sorted({*objects.names("trials"), *objects.names("staging")})
    trial_ids = [trial_id for trial_id in trial_ids if only is None or trial_id in only]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        checks = pool.map(
            lambda trial_id: _check_trial_twice(objects, trial_id, samples), trial_ids
        )
        for done, (count, found) in enumerate(checks, start=1):
            progress(done, len(trial_ids))
            if count is not None:
                n_trials, n_snapshots = n_trials + 1, n_snapshots + count
                damages += found
    lost = _lost(objects, tally or Tally())
    damages += [damage for damage in lost if only is None or damage.key in only]
    damages += [_absent_set(key, trial_id) for key, trial_id in sorted(samples.absent.items())]
    return Report(n_trials, n_snapshots, tuple(damages), tuple(_orphans(objects)))


def _check_trial_twice(
    objects: Objects, trial_id: str, samples: _Samples
) -> tuple[int | None, list[Damage]]:
    """Check a trial; once more if what looked like damage was its being sealed meanwhile."""
    sealed = is_sealed(objects, trial_id)
    count, found = _check_trial(objects, trial_id, samples)
    if found and not sealed and is_sealed(objects, trial_id):
        return _check_trial(objects, trial_id, samples)
    return count, found


def _check_trial(
    objects: Objects, trial_id: str, samples: _Samples
) -> tuple[int | None, list[Damage]]:
    """The number of snapshots, None when nothing is stored; and what is wrong with them."""
    cure: Cure | None = None
    count = 0
    problems: list[tuple[int | None, str]] = []
    try:
        if is_sealed(objects, trial_id):
            count, problems = _check_sealed(objects, trial_id, samples)
        else:
            staged = StagedTrial(objects, trial_id)
            count, problems = staged.n_recorded, list(_check_staged(objects, staged, samples))
    except MissingStoreError:
        problems = list(_check_unclaimed(objects, trial_id))
        if not problems:
            return None, []  # a crash before the first attempt was claimed
    except FormatVersionError as error:
        problems, cure = [(None, error.found)], "upgrade"
    except (SweeperError, KeyError, TypeError, ValueError, IndexError) as error:
        problems = [(None, _text(error))]
    except OSError as error:
        problems, cure = [(None, f"cannot be read ({error.strerror or error})")], "copy"
    if problems:
        cure = cure or _cure(objects, trial_id)
    where = f"trial {trial_id}"
    return count, [Damage(where, i, text, cure or "rerun", trial_id) for i, text in problems]


def _cure(objects: Objects, trial_id: str) -> Cure:
    """What was trained elsewhere cannot be run again here."""
    with contextlib.suppress(SweeperError, KeyError, TypeError, IndexError):
        found = objects.attributes(sealed_key(trial_id)) or StagedTrial(objects, trial_id).header
        newest = found["attempts"][-1] if "attempts" in found else found
        if "imported" in newest["provenance"]:
            return "reimport"
    return "rerun"


def _check_unclaimed(objects: Objects, trial_id: str) -> Problems:
    """Arrays without the metadata that are written before they are removed."""
    if _members(objects, sealed_key(trial_id)):
        yield None, "sealed arrays are there, but neither their metadata nor staged snapshots"
    for number in attempts(objects, trial_id):
        if _is_unclaimed(objects, staging_key(trial_id, number)):
            yield None, f"attempt {number} staged snapshots, but its metadata are absent"


def _is_unclaimed(objects: Objects, key: str) -> bool:
    """Whether an attempt has members and no metadata, which come first: asked for last, since it
    may be claimed at this moment.
    """
    return bool(_members(objects, key)) and not objects.exists(metadata_key(key))


def _members(objects: Objects, key: str) -> list[str]:
    return [name for name in objects.names(key) if not name.endswith(PARTIAL)]


def _text(error: Exception) -> str:
    """What is wrong; a store that is out of reach is no damage, which a repair would remove."""
    if isinstance(error, UnavailableStoreError):
        raise error
    if isinstance(error, SweeperError):
        return error.found
    return f"attributes are incomplete ({type(error).__name__}: {error})"


def _check_sealed(
    objects: Objects, trial_id: str, samples: _Samples
) -> tuple[int, list[tuple[int | None, str]]]:
    found = objects.attributes(sealed_key(trial_id)) or {}
    check_header(trial_id, found)
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
            shape = StoredArray(objects, name, f"trial {trial_id}").layout.shape
            if wrong := samples.check(key, trial_id, shape[1:]):
                problems.append((None, wrong))
            hashes[split] = sealed_hashes(objects, trial_id, name)
        except SweeperError as error:
            problems.append((None, _text(error)))
            continue
        pairs = enumerate(zip(found["snapshot_hashes"][split], hashes[split], strict=False))
        problems += [
            (i, f"{split} predictions differ from their hash") for i, (a, b) in pairs if a != b
        ]
    if hashes.keys() == found["sample_sets"].keys():
        computed = digest(hashes, found["steps"], found["epochs"], found["metrics"])
        if computed != found["digest"]:
            problems.append((None, "predictions, steps, epochs or metrics differ from the digest"))
    problems += _check_targets(objects, sealed_key(trial_id), found, samples)
    return int(found["n_snapshots"]), problems


def _check_staged(objects: Objects, staged: StagedTrial, samples: _Samples) -> Problems:
    for number, header in staged.headers.items():
        check_header(staged.trial_id, header)
        yield from _check_identity(header, staged.trial_id)
        if header["attempt"] != number:
            yield None, f"the attributes of attempt {number} are those of another"
        yield from _check_targets(objects, staging_key(staged.trial_id), header, samples)
    for number in set(attempts(objects, staged.trial_id)) - staged.headers.keys():
        if _is_unclaimed(objects, staging_key(staged.trial_id, number)):
            yield None, f"attempt {number} staged snapshots, but its metadata are absent"
    for snapshot in range(staged.n_recorded):
        try:
            yield from _check_snapshot(staged, snapshot, samples)
        except SweeperError as error:
            yield snapshot, _text(error)
    try:
        staged_reference(staged)
    except SweeperError as error:
        yield None, _text(error)


def _check_targets(
    objects: Objects, folder: str, header: dict[str, Any], samples: _Samples
) -> Problems:
    """The labels that were not the clean ones, of a sealed trial or of an attempt."""
    for phase in header.get("targets", ()):
        try:
            n_targets = len(read_targets(objects, folder, header, phase))
        except SweeperError as error:
            yield None, _text(error)
            continue
        shape = samples.shapes.get(header["target_set"])
        if shape is not None and shape[0] != n_targets:
            yield None, f"{n_targets} {phase}/targets instead of {shape[0]}"
        elif header["target_set"] not in samples.shapes:
            samples.absent.setdefault(header["target_set"], header["trial"])


def _check_snapshot(staged: StagedTrial, snapshot: int, samples: _Samples) -> Problems:
    if not staged.is_present(snapshot):
        yield snapshot, "absent although later snapshots are there"
        return
    step = staged.moment(snapshot)["step"]
    if step != staged.header["steps"][snapshot]:
        yield snapshot, f"recorded at step {step:.0f}, planned for another"
    for split, key in staged.header["sample_sets"].items():
        values = staged.log_probs(snapshot, split)
        if wrong := samples.check(key, staged.trial_id, values.shape):
            yield snapshot, wrong
        try:
            check_predictions("", split, values, values.shape)
        except StoreError as error:
            yield snapshot, error.found


def _check_identity(found: dict[str, Any], trial_id: str) -> Problems:
    expected = content_id(found["identity"], found["schema"])
    if expected != trial_id:
        yield None, f"its configuration has the id {expected}"
    differing = [k for k, value in found["identity"].items() if found["config"].get(k) != value]
    if differing:
        yield None, f"its configuration contradicts its identity in {', '.join(differing)}"


def _check_samples(objects: Objects) -> tuple[_Samples, list[Damage]]:
    """The shape of a snapshot of each set of samples, and what is wrong with the sets."""
    samples, damages = _Samples(), []
    for key in objects.names("samples"):
        try:
            if objects.exists(metadata_key(samples_key(key))):  # else a crash left it, unpublished
                known = read_sample_set(objects, key)
                samples.shapes[key] = len(known.labels), len(known.class_names)
        except (SweeperError, KeyError, TypeError) as error:
            samples.shapes[key] = None
            damages.append(Damage(f"sample set {key}", None, _text(error), "rewrite", key))
        except OSError as error:
            samples.shapes[key] = None
            found = f"cannot be read ({error.strerror or error})"
            damages.append(Damage(f"sample set {key}", None, found, "copy", key))
    return samples, damages


def _lost(objects: Objects, tally: Tally) -> Iterator[Damage]:
    """Trials that were complete, and are not in the store."""
    stored = {*objects.names("trials"), *objects.names("staging")}
    for trial_id, known in tally.trials.items():
        label = known.get("label", trial_id)  # a folder's name may be an older schema's
        if known["state"] in ("complete", "diverged") and label not in stored:
            found = f"{known['state']} by the journal, and not in the store"
            yield Damage(f"trial {trial_id}", None, found, "rerun", trial_id)


def _absent_set(key: str, trial_id: str) -> Damage:
    found = f"absent, but the predictions of trial {trial_id} are of it"
    return Damage(f"sample set {key}", None, found, "rewrite", key)


def _orphans(objects: Objects) -> Iterator[str]:
    """What crashes leave behind: temporary files, and staging or seals that were superseded."""
    for entry in objects.walk(""):
        if entry.key.endswith(PARTIAL):
            yield entry.key
    for trial_id in objects.names("staging"):
        if is_sealed(objects, trial_id):
            yield staging_key(trial_id)
        else:
            yield from _unclaimed_targets(objects, trial_id)
    for trial_id in objects.names("trials"):
        if not is_sealed(objects, trial_id) and objects.names(staging_key(trial_id)):
            yield sealed_key(trial_id)


def _unclaimed_targets(objects: Objects, trial_id: str) -> list[str]:
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
