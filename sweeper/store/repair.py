"""Take damaged trials out of a store, so that the next launch runs them again, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import MissingStoreError, StoreError, SweeperError
from sweeper.store.arrays import chunk_name
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.reader import Store
from sweeper.store.samples import write_sample_set
from sweeper.store.schema import SampleSet, samples_key, sealed_key, staging_key
from sweeper.store.seal import is_sealed
from sweeper.store.staging import attempts
from sweeper.store.verify import Damage, Report

# The sets of samples of a trial's configuration, made from its data.
Samples = Callable[[dict[str, Any]], Iterable[SampleSet]]


@dataclass
class Repairs:
    """What a repair did: trials to be run again, imports that are gone, sets that are written anew,
    and what it could not mend.
    """

    requeued: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)


def repair(store: Store, report: Report, samples: Samples) -> Repairs:
    """Mend every damage of a report; the caller makes sure that nobody writes meanwhile.

    A sealed trial is removed, its metadata first, so that at any instant it is either complete or
    not there. Of a staged one everything from the first damaged snapshot on is removed, or all
    where no snapshot can be named. Healthy trials are not touched.

    Parameters
    ----------
    samples : makes the sets of samples of a flat configuration, for one that is damaged.
    """
    done = Repairs()
    by_key: dict[str, list[Damage]] = {}
    for damage in report.damages:
        by_key.setdefault(damage.key, []).append(damage)
    for key, damages in by_key.items():
        cures = {damage.cure for damage in damages}
        if cures <= {"rerun", "reimport"}:
            _requeue(store.objects, key, [damage.snapshot for damage in damages])
            (done.requeued if cures == {"rerun"} else done.removed).append(key)
        elif cures == {"rewrite"} and _rewrite(store, key, samples):
            done.rewritten.append(key)
        else:
            done.left += damages
    return done


def _requeue(objects: Objects, trial_id: str, snapshots: list[int | None]) -> None:
    if is_sealed(objects, trial_id) or not attempts(objects, trial_id):
        objects.delete(staging_key(trial_id))  # left over; alone it would look like damage
        objects.delete(metadata_key(sealed_key(trial_id)))
        objects.delete(sealed_key(trial_id))
        return
    named = [snapshot for snapshot in snapshots if snapshot is not None]
    if len(named) < len(snapshots) or min(named) == 0:
        objects.delete(sealed_key(trial_id))  # not published; the same holds
        objects.delete(staging_key(trial_id))
        return
    for number in reversed(attempts(objects, trial_id)):  # newer ones own the later snapshots
        _truncate(objects, staging_key(trial_id, number), min(named))


def _truncate(objects: Objects, attempt: str, first: int) -> None:
    """Remove an attempt's snapshots from `first` on, the last one first: no hole at any instant."""
    for split in ("test", "train"):
        folder = f"{attempt}/{split}/log_probs"
        names = set(objects.names(folder))
        indices = (int(name.split(".")[1]) for name in names if name.startswith("c."))
        for index in sorted(indices, reverse=True):
            if index >= first:
                objects.delete(f"{folder}/{chunk_name(index, 0, 0)}")


def _rewrite(store: Store, key: str, samples: Samples) -> bool:
    """Write a set of samples anew from the data of a trial that is of it."""
    for config in _configs_of(store, key):
        try:
            found = {made.hash: made for made in samples(config)}
        except (SweeperError, OSError):  # its data is not here, or it was imported
            continue
        if key in found:
            store.objects.delete(metadata_key(samples_key(key)))
            store.objects.delete(samples_key(key))
            write_sample_set(store.objects, found[key])
            return True
    return False


def _configs_of(store: Store, key: str) -> Iterable[dict[str, Any]]:
    """Configurations of the trials whose predictions or targets are of this set, each data once."""
    seen = set()
    for trial_id in store.trial_ids():
        try:
            header = store.header(trial_id)
        except (StoreError, MissingStoreError):
            continue
        config = {k: v for k, v in header["config"].items() if k.startswith("data.")}
        of_trial = {*header["sample_sets"].values(), header.get("target_set")}
        if key in of_trial and repr(config) not in seen:
            seen.add(repr(config))
            yield header["config"]
