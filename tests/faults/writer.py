"""A writer that says what it was told, and what must be true of its store whatever befell it.

    python -m tests.faults.writer PLACE SEED [--together]

records some trials in the store at PLACE and prints a line for each thing that is durable.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store import Store
from sweeper.store.arrays import chunk_name
from sweeper.store.index import INDEX
from sweeper.store.objects import Objects, metadata_key
from sweeper.store.opening import check_format
from sweeper.store.schema import samples_key, sealed_key, staging_key
from sweeper.store.seal import is_sealed, seal
from sweeper.store.staging import StagedAttempt, StagedTrial, owner_of
from sweeper.store.verify import Report, verify
from sweeper.store.writer import TrialHeader
from tests.conftest import TinyStore, sample_set

TRIALS = (1, 2, 3)  # their seeds
NOISY = (2, 4)  # those that are not trained on the clean labels
N_TRAIN, N_SNAPSHOTS = 60, 5
SETS = {"test": sample_set(n_samples=400), "train": sample_set("train", N_TRAIN)}
RESTARTS = 0.15  # of an attempt, after each of its snapshots

Place = str | Objects
Counts = Counter[str]
Digests = dict[int, str]
Say = Callable[[str], None]
Excuse = Callable[[Exception, Objects, str], bool]


class Trials(TinyStore):
    """A store of trials that are the same wherever they are recorded."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, SETS, N_SNAPSHOTS)  # type: ignore[arg-type]

    def header(self, seed: int = 1, **changes: Any) -> TrialHeader:
        labels = np.random.default_rng(seed).integers(0, 3, N_TRAIN)
        noise = {"targets": {"train": labels}, "target_set": SETS["train"]}
        return super().header(seed, **(noise if seed in NOISY else {}) | changes)

    def trial_id(self, seed: int) -> str:
        return self.header(seed).trial_id


def never(error: Exception, objects: Objects, trial_id: str) -> bool:
    """A writer that is alone has no excuse to fail."""
    return False


def of_another(error: Exception, objects: Objects, trial_id: str) -> bool:
    """Whether an error is what another writer of the same trial does to this one.

    It takes the tail over, or what comes before it while this one claims, or it seals the trial.
    """
    has_lost = isinstance(error, StoreError) and "has taken over from" in error.found
    return has_lost or isinstance(error, HoleError) or is_sealed(objects, trial_id)


def complete(trials: Trials, seed: int, draw: random.Random, say: Say, excuse: Excuse) -> None:
    """Record a trial in as many attempts as are drawn, and seal it."""
    objects, trial_id = trials.objects, trials.trial_id(seed)
    while True:
        try:
            if is_sealed(objects, trial_id):
                return say(f"sealed {seed} {seal(objects, trial_id, 'complete', 0)}")
            attempt = record(trials, seed, draw, say)
            if attempt:
                say(f"sealed {seed} {seal(objects, trial_id, 'complete', attempt)}")
                return None
        except (StoreError, OSError) as error:
            if not excuse(error, objects, trial_id):
                raise


def record(trials: Trials, seed: int, draw: random.Random, say: Say) -> int | None:
    """One attempt from a drawn snapshot on; its number if it came to the trial's end."""
    first = draw.randint(0, n_whole(trials.objects, trials.trial_id(seed)))
    writer = trials.record(seed, first, first)
    for snapshot in range(first, N_SNAPSHOTS):
        trials.append(writer, seed, snapshot)
        say(f"stored {seed} {writer.attempt} {snapshot}")
        if draw.random() < RESTARTS:
            return None
    return writer.attempt


def n_whole(objects: Objects, trial_id: str) -> int:
    """How many snapshots are there before the first one that is not."""
    try:
        staged = StagedTrial(objects, trial_id)
    except MissingStoreError:
        return 0
    return next(i for i in range(N_SNAPSHOTS + 1) if i == N_SNAPSHOTS or not staged.is_present(i))


# --- what must be true -----------------------------------------------------------------------


@dataclass
class Told:
    """What the writers of a store were told is durable."""

    begun: bool = False  # the store is there
    stored: set[tuple[int, int, int]] = field(default_factory=set)  # seed, attempt, snapshot
    sealed: dict[int, str] = field(default_factory=dict)

    def hear(self, line: str) -> None:
        kind, *words = line.split()
        self.begun = self.begun or kind != "ready"
        if kind == "stored":
            seed, attempt, snapshot = map(int, words)
            self.stored.add((seed, attempt, snapshot))
        elif kind == "sealed":
            assert self.sealed.setdefault(int(words[0]), words[1]) == words[1]


def check(trials: Trials, told: Told, digests: Digests) -> Report:
    """Fail unless all that was told is there and correct, and nothing is reported as damaged."""
    store = Store(trials.objects)
    check_format(store.objects)
    for seed, attempt, snapshot in sorted(told.stored):
        check_snapshot(store, trials, seed, attempt, snapshot)
    for seed, digest in told.sealed.items():
        attributes = store.trial_attributes(trials.trial_id(seed))
        assert attributes["digest"] == digest == digests[seed]
    report = verify(store)
    assert report.damages == ()
    return report


def check_snapshot(store: Store, trials: Trials, seed: int, attempt: int, snapshot: int) -> None:
    """It is as it was recorded: in its trial once that is sealed, or else in its attempt."""
    trial_id = trials.trial_id(seed)
    if is_sealed(store.objects, trial_id):
        moment: Any = store.snapshots(trial_id).iloc[snapshot]
    else:
        staged = StagedAttempt(store.objects, trial_id, attempt)
        moment = staged.moment(snapshot)
    for split in SETS:
        if is_sealed(store.objects, trial_id):
            values = store.log_probs(trial_id, split, [snapshot], dtype="float16")[0]
        else:
            values = staged.log_probs(snapshot, split)
        np.testing.assert_array_equal(values, trials.predictions(seed, snapshot, split))
    assert (moment["step"], moment["epoch"]) == (10 * snapshot, snapshot / 2)
    assert (moment["test_loss"], moment["test_accuracy"]) == (1 / (1 + snapshot), snapshot / 10)


def finish(trials: Trials, seeds: tuple[int, ...] = TRIALS) -> Digests:
    """Complete what is left, undisturbed; the digests. Nothing else is left in the store."""
    told, draw = Told(), random.Random(0)
    trials.objects.remove_partials()
    for seed in seeds:
        complete(trials, seed, draw, told.hear, never)
    report = verify(Store(trials.objects))
    assert (report.n_trials, report.damages, report.orphans) == (len(seeds), (), ())
    keys = {entry.key for entry in trials.objects.walk("")}
    assert keys - {metadata_key(""), INDEX} == owners(trials.objects).keys()
    return told.sealed


def owners(objects: Objects) -> dict[str, str]:
    """All objects that are read, and the trial or the set of samples that each is of."""
    found: dict[str, str] = {}

    def take(owner: str, group: str, arrays: str | None) -> None:
        found[metadata_key(group)] = owner
        if arrays is not None:
            found.update((entry.key, owner) for entry in objects.walk(arrays))

    for key in objects.names("samples"):
        group = samples_key(key)
        take(key, group, f"{group}/{(objects.attributes(group) or {})['arrays']}")
    for trial_id in objects.names("trials"):
        if attributes := objects.attributes(sealed_key(trial_id)):
            take(trial_id, sealed_key(trial_id), f"{sealed_key(trial_id)}/{attributes['arrays']}")
    for trial_id in objects.names("staging"):
        if is_sealed(objects, trial_id):
            continue
        staged, folder = StagedTrial(objects, trial_id), staging_key(trial_id)
        for number, header in staged.headers.items():
            arrays = header.get("arrays")
            take(trial_id, f"{folder}/{number}", arrays and f"{folder}/{arrays}")
        for snapshot in range(staged.n_recorded):
            for split in SETS:
                array = f"{folder}/{owner_of(snapshot, staged.claims)}/{split}/log_probs"
                found[metadata_key(array)] = trial_id
                found[f"{array}/{chunk_name(snapshot, 0, 0)}"] = trial_id
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place")
    parser.add_argument("seed", type=int)
    parser.add_argument("--together", action="store_true", help="with another such writer")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)

    def say(line: str) -> None:
        print(line, flush=True)

    say("ready")
    input()  # until all that begin at once are ready
    trials = Trials(asked.place)
    say("begun")
    for seed in TRIALS:
        complete(trials, seed, draw, say, of_another if asked.together else never)


if __name__ == "__main__":
    main()
