import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store import open_store
from sweeper.store.staging import StagedTrial, owner_of
from sweeper.store.writer import AttemptWriter


def chunk(tiny, trial, attempt, snapshot, split="test"):
    return tiny.path / f"staging/{trial}/{attempt}/{split}/log_probs/c.{snapshot}.0.0"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 9))
def test_the_owner_is_the_last_claim_that_starts_at_or_before_the_snapshot(firsts, snapshot):
    claims = list(enumerate(firsts, start=1))
    owner = None
    for attempt, first in claims:  # attempts in the order in which they were claimed
        owner = attempt if first <= snapshot else owner
    assert owner_of(snapshot, claims) == owner


def test_the_newest_attempt_owns_the_tail_and_the_older_one_the_head(tiny):
    tiny.record(1)
    second = AttemptWriter(tiny.objects, tiny.header(), 2)
    second.append(2, 7.0, {"test_loss": 7, "test_accuracy": 0}, {"test": tiny.predictions(9, 2)})
    staged = StagedTrial(tiny.objects, second.header.trial_id)
    expected = [tiny.predictions(1, 0), tiny.predictions(1, 1), tiny.predictions(9, 2)]
    assert staged.n_recorded == 3
    np.testing.assert_array_equal([staged.log_probs(i, "test") for i in range(3)], expected)
    assert [staged.moment(i)["epoch"] for i in range(3)] == [0, 0.5, 7]


def test_a_late_older_attempt_changes_nothing_that_is_read(tiny):
    late = tiny.record(1, stop=2)
    newest = AttemptWriter(tiny.objects, tiny.header(), 1)
    newest.append(1, 7.0, {"test_loss": 7, "test_accuracy": 0}, {"test": tiny.predictions(9, 1)})
    trial, store = newest.header.trial_id, open_store(tiny.path)
    before = store.log_probs(trial, "test"), store.snapshots(trial)
    for snapshot in (2, 3):
        tiny.append(late, 1, snapshot)
    np.testing.assert_array_equal(store.log_probs(trial, "test"), before[0])
    assert store.snapshots(trial).equals(before[1])


def test_a_claim_alone_takes_the_tail_over(tiny):
    trial = tiny.record(1).header.trial_id
    AttemptWriter(tiny.objects, tiny.header(), 3)
    assert StagedTrial(tiny.objects, trial).n_recorded == 3


def test_a_snapshot_without_its_test_set_is_not_recorded(tiny):
    trial = tiny.record(1).header.trial_id
    chunk(tiny, trial, 1, 3).unlink()
    staged = StagedTrial(tiny.objects, trial)
    assert (staged.n_recorded, staged.holes) == (3, [])
    assert open_store(tiny.path).log_probs(trial, "test").shape == (3, 12, 3)


def test_a_hole_is_seen_and_named(tiny):
    trial = tiny.record(1).header.trial_id
    chunk(tiny, trial, 1, 1).unlink()
    assert StagedTrial(tiny.objects, trial).holes == [1]
    with pytest.raises(HoleError, match=f"trial {trial}, snapshot 1"):
        open_store(tiny.path).log_probs(trial, "test")
    read = open_store(tiny.path).log_probs(trial, "test", [0, 2])
    assert np.isfinite(read).all()


def test_a_train_chunk_that_is_absent_is_a_hole(make_tiny, make_samples, tmp_path):
    both = {"test": make_samples(), "train": make_samples("train", 20)}
    tiny = make_tiny(tmp_path / "both", both)
    trial = tiny.record(1).header.trial_id
    chunk(tiny, trial, 1, 2, "train").unlink()
    assert open_store(tiny.path).log_probs(trial, "test").shape == (4, 12, 3)
    with pytest.raises(HoleError, match=f"trial {trial}, snapshot 2: train"):
        open_store(tiny.path).log_probs(trial, "train")


def test_a_lost_attempt_is_a_hole_not_a_shift_of_owners(tiny):
    trial = tiny.record(1).header.trial_id
    tiny.record(1, first=2)
    shutil.rmtree(tiny.path / f"staging/{trial}/1")
    staged = StagedTrial(tiny.objects, trial)
    assert staged.holes == [0, 1]
    with pytest.raises(HoleError, match=f"trial {trial}, snapshot 0"):
        staged.log_probs(0, "test")


def test_chunks_of_half_written_names_are_not_snapshots(tiny):
    trial = tiny.record(1, stop=2).header.trial_id
    folder = tiny.path / f"staging/{trial}/1/test/log_probs"
    (folder / f"c.2.0.0.{'0' * 32}.partial").write_bytes(b"half")
    (folder / "c.x.0.0").write_bytes(b"")
    assert StagedTrial(tiny.objects, trial).n_recorded == 2


def test_what_was_never_staged_is_missing(tiny):
    with pytest.raises(MissingStoreError, match="nothing is stored"):
        StagedTrial(tiny.objects, "t0")


def test_an_attempt_of_another_trial_is_refused(tiny):
    one, other = (tiny.record(seed).header.trial_id for seed in (1, 2))
    shutil.rmtree(tiny.path / f"staging/{one}")
    (tiny.path / f"staging/{other}").rename(tiny.path / f"staging/{one}")
    with pytest.raises(StoreError, match=f"trial {one}: its attributes are those of trial {other}"):
        open_store(tiny.path).log_probs(one, "test")
