"""A short form of `python -m tests.faults.store`; `SWEEPER_FAULT_KILLS=200` makes it as long."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.errors import HoleError
from sweeper.store import Store
from sweeper.store.objects import open_objects
from sweeper.store.verify import Damage, Report, verify
from tests.faults import damage, store
from tests.faults.writer import Counts, Digests, Told, Trials, check, finish

KILLS = int(os.environ.get("SWEEPER_FAULT_KILLS", "8"))
FEW = -(-KILLS // 4)


@pytest.fixture(scope="module")
def digests() -> Digests:
    return finish(Trials(store.in_memory()), damage.ALL)


@pytest.fixture
def new_place(tmp_path: Path) -> store.NewPlace:
    names = iter(range(10**6))
    return lambda: str(tmp_path / f"store-{next(names)}")


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process is killed and no power lost, to wait for the disk shows nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def counts() -> Counts:
    return Counter()


def test_writers_that_are_killed_lose_nothing_they_were_told(
    new_place: store.NewPlace, digests: Digests, counts: Counts
):
    store.kill_writers(new_place, KILLS, digests, random.Random(0), counts)
    assert counts["writers killed"] == KILLS
    assert counts["snapshots told durable, there and correct"] >= 15


def test_killed_writers_to_a_bucket_lose_nothing_they_were_told(
    s3_url: str, digests: Digests, counts: Counts
):
    with store.places(s3_url) as new_place:
        store.kill_writers(new_place, FEW, digests, random.Random(0), counts)
    assert counts["writers killed"] == FEW
    assert list(open_objects(s3_url).walk("")) == []


def test_two_writers_of_the_same_trials_lose_nothing_they_were_told(
    new_place: store.NewPlace, digests: Digests, counts: Counts
):
    store.write_together(new_place, FEW, digests, random.Random(0), counts)
    assert counts["seals told durable, there and correct"] == 3 * FEW


@pytest.mark.usefixtures("_no_sync")
@pytest.mark.parametrize("is_local", [True, False], ids=["local", "memory"])
def test_calls_that_fail_lose_nothing_that_was_told_and_are_no_damage(
    is_local: bool, new_place: store.NewPlace, digests: Digests, counts: Counts
):
    place, n_rounds = new_place if is_local else store.in_memory, -(-KILLS // 8)
    store.fail_calls(place, n_rounds, digests, random.Random(0), counts)
    assert counts["writers that a failing call ended"] >= n_rounds


@pytest.mark.usefixtures("_no_sync")
def test_damage_of_any_object_is_reported_of_what_it_is_of_and_repaired(
    new_place: store.NewPlace, digests: Digests, counts: Counts
):
    damage.do_damage(new_place, 5 * KILLS, digests, random.Random(0), counts)
    assert sum(counts.values()) == 5 * KILLS
    assert sum(n for what, n in counts.items() if "reported and repaired" in what) > 2 * KILLS


# --- what the checks themselves find ---------------------------------------------------------


def test_a_snapshot_that_was_told_and_is_not_there_is_found_out(digests: Digests):
    trials, told = Trials(store.in_memory()), Told()
    attempt = trials.record(1, 0, 2).attempt
    for snapshot in (0, 1):
        told.hear(f"stored 1 {attempt} {snapshot}")
    check(trials, told, digests)
    trials.objects.delete(f"staging/{trials.trial_id(1)}/{attempt}/test/log_probs/c.1.0.0")
    assert verify(Store(trials.objects)).damages == ()  # nothing in the store tells
    with pytest.raises(HoleError):
        check(trials, told, digests)


def test_a_snapshot_that_is_not_what_was_recorded_is_found_out(digests: Digests):
    trials, told = Trials(store.in_memory()), Told()
    writer = trials.record(1, 0, 0)
    trials.append(writer, 2, 0)
    told.hear(f"stored 1 {writer.attempt} 0")
    with pytest.raises(AssertionError):
        check(trials, told, digests)


def test_a_seal_that_was_told_with_another_digest_is_found_out(digests: Digests):
    trials, told = Trials(store.in_memory()), Told()
    trials.sealed(1)
    told.hear(f"sealed 1 {digests[2]}")
    with pytest.raises(AssertionError):
        check(trials, told, digests)


@pytest.mark.parametrize("keys", [(), ("t0",)], ids=["nothing", "too much"])
@pytest.mark.usefixtures("_no_sync")
def test_a_verify_that_reports_too_little_or_too_much_is_found_out(
    keys: tuple[str, ...],
    new_place: store.NewPlace,
    digests: Digests,
    counts: Counts,
    monkeypatch: pytest.MonkeyPatch,
):
    def report(found: Store) -> Report:
        others = tuple(Damage(key, None, "imagined", "rerun", key) for key in keys)
        return replace(verify(found), damages=(*verify(found).damages, *others) if keys else ())

    monkeypatch.setattr(damage, "verify", report)
    with pytest.raises(AssertionError):
        damage.do_damage(new_place, 20, digests, random.Random(0), counts)
