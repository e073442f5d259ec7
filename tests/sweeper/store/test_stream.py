"""Reading many trials ahead: the same values as one by one, in order, whole or not at all."""

import threading
import time

import numpy as np
import pandas as pd
import pytest

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store import open_store, schema, stream


@pytest.fixture
def mixed(tiny, monkeypatch):
    """Trials of 4, 4 and 3 snapshots in several shards, the last one unfinished."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 150)
    ids = [tiny.sealed(1), tiny.sealed(2), tiny.record(3, stop=3).header.trial_id]
    return open_store(tiny.path), ids


def one_by_one(store, ids, **options):
    return np.concatenate([store.log_probs(trial, "test", **options) for trial in ids])


@pytest.mark.parametrize("samples_per_block", [1, 5, 12, 100])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_put_together_are_all_predictions(mixed, samples_per_block, dtype):
    store, ids = mixed
    blocks = list(store.iter_blocks(ids, samples_per_block, dtype=dtype))
    assert [samples.start for samples, _ in blocks] == list(range(0, 12, samples_per_block))
    found = np.concatenate([values for _, values in blocks], axis=1)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, one_by_one(store, ids, dtype=dtype))


def test_a_table_selects_snapshots_in_its_own_order(mixed):
    store, (a, b, c) = mixed
    rows = pd.DataFrame({"trial_id": [b, b, a, c, a], "snapshot": [3, 0, 2, 1, 2]})
    expected = np.concatenate(
        [store.log_probs(row.trial_id, "test", row.snapshot) for row in rows.itertuples()]
    )
    (block,) = (values for _, values in store.iter_blocks(rows, 12))
    np.testing.assert_array_equal(block, expected)
    found = list(store.iter_snapshots(rows))
    assert [(trial, i) for trial, i, _ in found] == list(rows.itertuples(index=False, name=None))
    np.testing.assert_array_equal([values for _, _, values in found], expected)


def test_without_a_selection_all_complete_trials_are_read(mixed):
    store, ids = mixed
    found = [(trial, snapshot) for trial, snapshot, _ in store.iter_snapshots()]
    assert found == [(trial, i) for trial in sorted(ids[:2]) for i in range(4)]


@pytest.mark.parametrize("read_bytes", [1, 2 * 12 * 3 * 4])
def test_a_trial_that_does_not_fit_is_read_in_parts(mixed, monkeypatch, read_bytes):
    store, ids = mixed
    monkeypatch.setattr(stream, "READ_BYTES", read_bytes)
    found = np.stack([values for _, _, values in store.iter_snapshots(ids)])
    np.testing.assert_array_equal(found, one_by_one(store, ids))


def test_it_is_read_ahead_but_not_far(mixed, monkeypatch):
    store, ids = mixed
    started, read = [], type(store).log_probs

    def watched(self, trial_id, *arguments, **options):
        started.append(trial_id)
        return read(self, trial_id, *arguments, **options)

    monkeypatch.setattr(type(store), "log_probs", watched)
    blocks = store.iter_blocks(ids, 2)
    next(blocks)
    time.sleep(0.3)
    assert len(started) == 2 * len(ids)  # the block that was given, and the next one
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_hole_ends_the_iteration_with_its_trial(mixed, tiny):
    store, ids = mixed
    (tiny.path / f"staging/{ids[2]}/1/test/log_probs/c.1.0.0").unlink()
    for iterate in (store.iter_snapshots, store.iter_blocks):
        with pytest.raises(HoleError, match=f"trial {ids[2]}"):
            list(iterate(ids))


def test_trials_of_several_sets_of_samples_are_not_put_together(tiny, make_samples):
    ids = [tiny.sealed(1), tiny.record(2, stop=0, sample_sets={"test": make_samples(seed=4)})]
    with pytest.raises(StoreError, match="are of 2 sets"):
        next(open_store(tiny.path).iter_blocks([ids[0], ids[1].header.trial_id]))


@pytest.mark.parametrize("selection", [[], pd.DataFrame({"trial_id": [], "snapshot": []})])
def test_an_empty_selection_is_an_error(mixed, selection):
    store, _ = mixed
    with pytest.raises(MissingStoreError, match="no trials selected"):
        next(store.iter_blocks(selection))


# --- a mask instead of an error --------------------------------------------------------------


def test_holes_are_masked_only_when_a_mask_is_asked_for(mixed, tiny):
    store, ids = mixed
    (tiny.path / f"staging/{ids[2]}/1/test/log_probs/c.1.0.0").unlink()
    (tiny.path / f"trials/{ids[0]}/1/test/log_probs/c.0.1.0").unlink()
    for trial in (ids[0], ids[2]):
        with pytest.raises(HoleError, match=f"trial {trial}"):
            store.log_probs(trial, "test")
    staged = store.log_probs(ids[2], "test", masked=True)
    assert staged.mask[:, 0, 0].tolist() == [False, True, False]
    np.testing.assert_array_equal(staged[2], store.log_probs(ids[2], "test", 2)[0])
    sealed = store.log_probs(ids[0], "test", masked=True)
    assert sealed.mask[0, :, 0].tolist() == [False] * 6 + [True] * 6
    assert (sealed.mask == sealed.mask[:1]).all()
    whole = store.log_probs(ids[1], "test", masked=True)
    assert not np.ma.getmaskarray(whole).any()


# --- xarray ----------------------------------------------------------------------------------


def test_a_dataset_names_its_dimensions_and_reads_what_is_asked_of_it(mixed, monkeypatch):
    store, ids = mixed
    found = store.to_xarray(ids)
    assert found.log_probs.dims == ("snapshot", "sample", "class")
    assert found.log_probs.shape == (11, 12, 3)
    np.testing.assert_array_equal(found.trial_id, np.repeat(ids, [4, 4, 3]))
    np.testing.assert_array_equal(found["index"], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(found.label, store.labels("test", ids[0]))
    np.testing.assert_array_equal(found.sample_id, store.sample_ids("test", ids[0]))
    assert found["class"].values.tolist() == list(store.class_names(ids[0]))
    assert found.test_accuracy.dims == ("snapshot",)
    asked, read = [], type(store).log_probs

    def watched(self, trial_id, *arguments, **options):
        asked.append(trial_id)
        return read(self, trial_id, *arguments, **options)

    monkeypatch.setattr(type(store), "log_probs", watched)
    part = found.log_probs.isel(snapshot=[9, 0], sample=slice(3, 8), **{"class": 1})
    assert asked == []  # lazy
    expected = one_by_one(store, ids)[[9, 0], 3:8, 1]
    asked.clear()
    np.testing.assert_array_equal(part.values, expected)
    assert sorted(asked) == sorted([ids[0], ids[2]])


def test_a_dataset_is_the_predictions_however_it_is_indexed(mixed):
    store, ids = mixed
    whole, found = one_by_one(store, ids), store.to_xarray(ids).log_probs
    np.testing.assert_array_equal(found.values, whole)
    np.testing.assert_array_equal(found[3].values, whole[3])
    np.testing.assert_array_equal(found[-1, 4].values, whole[-1, 4])
    np.testing.assert_array_equal(found[::-2, [0, 0, 5]].values, whole[::-2][:, [0, 0, 5]])
    np.testing.assert_array_equal(found[2:2].values, whole[2:2])
    at = found.sel({"class": "bee"}).isel(sample=7)
    np.testing.assert_array_equal(at.values, whole[:, 7, 1])
