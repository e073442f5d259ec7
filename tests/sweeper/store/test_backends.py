"""A store is the same store in a folder, in memory and in a bucket, and so is what harms it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sweeper.errors import HoleError, MissingStoreError, StoreError, StoreURLError
from sweeper.store import open_store, schema
from sweeper.store.index import INDEX, write_index
from sweeper.store.objects import Objects, open_objects
from sweeper.store.opening import check_place, create_store
from sweeper.store.schema import SampleSet
from sweeper.store.seal import seal
from sweeper.store.verify import Damage, verify
from tests.conftest import TinyStore


def flipped(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


SPOILS: dict[str, Callable[[bytes], bytes] | None] = {
    "deleted": None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": flipped,
}

harms = pytest.mark.parametrize("harm", SPOILS)
either = pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])


@pytest.fixture
def both(make_samples: Callable[..., SampleSet]) -> dict[str, SampleSet]:
    return {"test": make_samples(), "train": make_samples("train", 20)}


@pytest.fixture
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three samples, as a trial of many snapshots has; a shard of two of them."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 144)


def spoil_one(objects: Objects, key: str, harm: str) -> None:
    data, spoil = bytes(objects.read(key)), SPOILS[harm]
    objects.delete(key) if spoil is None else objects.write(key, spoil(data))


def spoilt(store: TinyStore, is_sealed: bool, harm: str) -> str:
    """A trial of which one object of predictions is harmed."""
    trial = store.sealed() if is_sealed else store.record().header.trial_id
    place = f"trials/{trial}/1" if is_sealed else f"staging/{trial}/1"
    spoil_one(store.objects, f"{place}/test/log_probs/c.{0 if is_sealed else 1}.0.0", harm)
    return trial


def damages(store: TinyStore) -> tuple[Damage, ...]:
    return verify(open_store(store.path)).damages


def test_a_trial_is_the_same_wherever_it_is_stored(
    both: dict[str, SampleSet], place: str, tmp_path: Path
):
    here, there = TinyStore(tmp_path / "here", both), TinyStore(place, both)
    stores = [open_store(store.path) for store in (here, there)]
    for store in (here, there):
        store.record(stop=3)
    trial = here.header().trial_id
    expected, found = (
        (store.log_probs(trial, "train"), store.n_snapshots(trial)) for store in stores
    )
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1] == 3
    for store in (here, there):
        store.record(first=2)
        seal(store.objects, trial, "complete", 2)
        store.sealed(2)
        store.record(3, stop=2)
    one, other = (store.trials() for store in stores)
    assert other["digest"].tolist() == one["digest"].tolist()
    assert sorted(one["state"]) == ["complete", "complete", "incomplete"]
    for split in both:
        values = [store.log_probs(trial, split, samples=[0, 5, 11]) for store in stores]
        np.testing.assert_array_equal(*values)
        np.testing.assert_array_equal(*(store.labels(split, trial) for store in stores))
    blocks = [list(store.iter_blocks(samples_per_block=5)) for store in stores]
    for (ours, expected_block), (theirs, found_block) in zip(*blocks, strict=True):
        assert ours == theirs
        np.testing.assert_array_equal(found_block, expected_block)
    report = verify(stores[1])
    assert (report.n_trials, report.n_snapshots, report.damages, report.orphans) == (3, 10, (), ())
    keys = [[entry.key for entry in store.objects.walk("")] for store in (here, there)]
    assert keys[0] == keys[1]


def test_the_index_of_a_store_anywhere_is_used_and_is_no_more_than_a_cache(place: str):
    tiny = TinyStore(place)
    trials = sorted([tiny.sealed(1), tiny.sealed(2)])
    assert write_index(tiny.objects, open_store(place).summary) == 2
    third = tiny.sealed(3)
    tiny.objects.write(f"trials/{trials[0]}/1/unknown", b"does not matter")
    store, asked = open_store(place), []
    summary = store.summary
    store.summary = lambda trial: asked.append(trial) or summary(trial)  # type: ignore[method-assign, func-returns-value]
    table = store.trials()
    assert asked == [third], "the others come from the index"
    tiny.objects.delete(INDEX)
    assert open_store(place).trials().equals(table)


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
@harms
@either
def test_damage_is_found_as_it_is_in_a_folder(
    place: str, tmp_path: Path, is_sealed: bool, harm: str
):
    here, there = TinyStore(tmp_path / "here"), TinyStore(place)
    trial = spoilt(here, is_sealed, harm)
    assert spoilt(there, is_sealed, harm) == trial
    expected = damages(here)
    assert {damage.where for damage in expected} == {f"trial {trial}"}
    assert damages(there) == expected
    with pytest.raises(StoreError, match=f"trial {trial}") as caught:
        open_store(place).log_probs(trial, "test")
    assert isinstance(caught.value, HoleError) == (harm == "deleted")
    if harm == "deleted":
        masked = open_store(place).log_probs(trial, "test", masked=True)
        assert masked.mask.all(axis=(1, 2)).tolist() == [is_sealed, True, is_sealed, is_sealed]


@harms
def test_an_object_that_is_harmed_after_its_index_was_read_is_refused(
    place: str, several_chunks: None, harm: str
):
    tiny = TinyStore(place)
    trial = tiny.sealed()
    store = open_store(place)
    healthy = store.log_probs(trial, "test", samples=[0, 6])
    spoil_one(tiny.objects, f"trials/{trial}/1/test/log_probs/c.0.0.0", harm)
    with pytest.raises(StoreError, match=f"trial {trial}"):
        store.log_probs(trial, "test", samples=[0, 3, 6])
    np.testing.assert_array_equal(store.log_probs(trial, "test", samples=[6]), healthy[:, 1:])


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_hole_in_the_middle_is_found_and_masked(place: str, both, split: str):
    tiny = TinyStore(place, both)
    trial = tiny.record().header.trial_id
    tiny.objects.delete(f"staging/{trial}/1/{split}/log_probs/c.2.0.0")
    (damage,) = damages(tiny)
    assert (damage.where, damage.snapshot) == (f"trial {trial}", 2)
    store = open_store(place)
    with pytest.raises(HoleError, match=f"trial {trial}"):
        store.log_probs(trial, split)
    masked = store.log_probs(trial, split, masked=True)
    assert masked.mask.all(axis=(1, 2)).tolist() == [False, False, True, False]
    assert not masked.mask[[0, 1, 3]].any()
    with pytest.raises(HoleError):
        seal(tiny.objects, trial, "complete", 1)


@pytest.mark.parametrize("part", ["arrays/labels/c.0", "arrays/ids/zarr.json", "zarr.json"])
def test_a_harmed_set_of_samples_is_found(place: str, part: str):
    tiny = TinyStore(place)
    tiny.sealed()
    key = tiny.samples["test"].hash
    spoil_one(tiny.objects, f"samples/{key}/{part}", "flipped")
    assert {damage.where for damage in damages(tiny)} == {f"sample set {key}"}


# --- the place itself ------------------------------------------------------------------------


def test_a_place_that_holds_something_else_is_not_made_a_store(place: str):
    objects = open_objects(place)
    objects.write("thesis.tex", b"chapter 1")
    with pytest.raises(StoreError, match="not a store"):
        create_store(place)
    assert objects.names("") == ["thesis.tex"]


def test_a_place_without_a_store_is_named(place: str):
    with pytest.raises(MissingStoreError) as caught:
        open_store(place)
    assert caught.value.where == place
    assert caught.value.exit_code == 2


def test_a_place_inside_a_store_is_refused(place: str):
    TinyStore(place).sealed()
    check_place(f"{place}-beside")
    for inside in (place, f"{place}/trials", f"{place}/a/b/c"):
        with pytest.raises(StoreURLError) as caught:
            check_place(inside)
        assert caught.value.where == inside
        assert f"`{place}`" in caught.value.found
