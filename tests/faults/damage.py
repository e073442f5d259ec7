"""Damage of one object of a store: what it is of is reported, nothing else, and it is repaired.

No damage is that of what nothing reads (leftovers of crashes, what a newer attempt took over), of
the index, which is made anew, and of the store's own metadata, of which only the format is read: a
store without it is refused. One loss cannot be told from what never was: that of the last snapshot
of a trial that is not complete.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable

import pandas as pd

from sweeper.errors import SweeperError
from sweeper.store import Store
from sweeper.store.index import INDEX, write_index
from sweeper.store.local import LocalObjects
from sweeper.store.objects import Objects, metadata_key, open_objects
from sweeper.store.opening import check_format
from sweeper.store.repair import repair
from sweeper.store.staging import StagedTrial, owner_of
from sweeper.store.verify import verify
from tests.faults.writer import SETS, TRIALS, Counts, Digests, Trials, finish, owners

DAMAGES = ("bit flipped", "cut off", "deleted")
REFUSED = "of the store's format: refused"
ALL = (*TRIALS, 4)  # the trials of a store that is damaged


def prepare(trials: Trials) -> None:
    """Trials in every state, all leftovers that crashes make, and the index."""
    ids = [trials.trial_id(seed) for seed in ALL]
    for seed in (1, 2):
        trials.sealed(seed)
    trials.record(3, 0, 4)
    trials.record(3, 2, 3)  # a second attempt has taken two snapshots over, and recorded one anew
    trials.record(4, 0, 3)
    for key in (
        f"staging/{ids[0]}/1/test/log_probs/c.0.0.0",  # of a sealed trial
        f"trials/{ids[2]}/2/test/log_probs/c.0.0.0",  # of a seal that was not published
        f"staging/{ids[3]}/targets-00000000/train/targets/c.0",  # that no attempt claimed
        f"staging/{ids[3]}/1/test/log_probs/c.3.0.0.{'0' * 32}.partial",
    ):
        trials.objects.write(key, b"left over")
    write_index(trials.objects, Store(trials.objects).summary)


def damage(objects: Objects, key: str, how: str, draw: random.Random) -> None:
    """As a disk does it: no time of a file says so."""
    data = bytearray(objects.read(key))
    if how == "deleted":
        return objects.delete(key)
    if how == "cut off":
        del data[draw.randrange(len(data)) :]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    if not isinstance(objects, LocalObjects):
        return objects.write(key, bytes(data))
    path = objects.root / key
    before = path.stat()
    path.write_bytes(data)
    return os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Intact:
    """A store before it is damaged, and copies of it."""

    def __init__(self, place: str) -> None:
        trials = Trials(place)
        prepare(trials)
        self.objects = trials.objects
        self.keys = [entry.key for entry in self.objects.walk("")]
        self.owners = owners(self.objects)
        self.table = Store(self.objects).trials()
        self.last = set()
        for seed in (3, 4):
            staged = StagedTrial(self.objects, trials.trial_id(seed))
            number = staged.n_recorded - 1
            group = f"staging/{staged.trial_id}/{owner_of(number, staged.claims)}"
            self.last.add(f"{group}/test/log_probs/c.{number}.0.0")

    def copy(self, place: str) -> Objects:
        objects = open_objects(place)
        if isinstance(self.objects, LocalObjects):
            shutil.copytree(self.objects.root, place)
        else:
            for key in self.keys:
                objects.write(key, self.objects.read(key))
        return objects

    def damaged(self, key: str, how: str) -> set[str]:
        """The trials and sets of samples that are damaged when this object is."""
        if key in self.last and how == "deleted":
            return set()  # as if it had never been recorded
        return {self.owners[key]} if key in self.owners else set()


def do_damage(
    new_place: Callable[[], str],
    n_rounds: int,
    digests: Digests,
    draw: random.Random,
    counts: Counts,
) -> None:
    """Damage one object at a time, and repair it."""
    intact = Intact(new_place())
    for _ in range(n_rounds):
        place, key, how = new_place(), draw.choice(intact.keys), draw.choice(DAMAGES)
        objects = intact.copy(place)
        damage(objects, key, how, draw)
        try:
            became = outcome(objects, key, how, intact)
            counts[f"{how}: {became}"] += 1
            if became != REFUSED:
                assert finish(Trials(place), ALL) == digests
            objects.delete("")
        except (AssertionError, SweeperError) as error:
            raise AssertionError(f"{key} {how}: {error}") from error


def outcome(objects: Objects, key: str, how: str, intact: Intact) -> str:
    """What becomes of the damage: it is reported and repaired, or it harms nothing."""
    if key == metadata_key(""):
        try:
            check_format(objects)
        except SweeperError:
            return REFUSED
    report = verify(Store(objects))
    assert {found.key for found in report.damages} == intact.damaged(key, how)
    if report.damages:
        done = repair(Store(objects), report, lambda config: SETS.values())
        assert not done.left
        assert verify(Store(objects)).damages == ()
        return "reported and repaired"
    if key in intact.last:
        return "the last snapshot of an unfinished trial, as if never recorded"
    pd.testing.assert_frame_equal(Store(objects).trials(), intact.table)
    if key == INDEX:
        return "of the index, which is made anew"
    if key == metadata_key(""):
        return "of the store's own metadata, not of its format"
    return "of what nothing reads"
