"""When snapshots are taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.sections import RecordConfig
from sweeper.train.record import record_steps

SCHEDULES = st.one_of(
    st.sampled_from(["epoch", "log", "manifold"]), st.lists(st.floats(0, 1)).map(tuple)
)


@given(SCHEDULES, st.integers(1, 300), st.integers(1, 300))
def test_steps_ascend_once_each_from_zero_to_the_last(schedule, epochs, steps_per_epoch):
    steps = record_steps(RecordConfig(schedule=schedule), epochs, steps_per_epoch)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == epochs * steps_per_epoch


def test_epoch_records_every_epochs_end():
    assert record_steps(RecordConfig(), 3, 7) == (0, 7, 14, 21)


def test_log_records_half_octaves_and_the_last_step():
    found = record_steps(RecordConfig(schedule="log"), 10, 10)
    assert found == (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 100)


def test_a_list_of_epochs_goes_to_the_nearest_steps():
    record = RecordConfig(schedule=(0.04, 0.06, 0.5, 1.0, 1.99))
    assert record_steps(record, 2, 10) == (0, 1, 5, 10, 20)


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "n_snapshots"),
    [(200, 250, 67), (200, 50, 67), (200, 100, 62), (300, 250, 73), (300, 100, 68)],
)
def test_manifold_has_as_many_snapshots_as_the_papers_runs(epochs, steps_per_epoch, n_snapshots):
    """Counts read in the authors' files: batch sizes 200, 1,000 and 500 of 50,000 samples."""
    steps = record_steps(RecordConfig(schedule="manifold"), epochs, steps_per_epoch)
    assert len(steps) == n_snapshots


def test_manifold_records_after_the_batches_that_start_each_quarter():
    steps = record_steps(RecordConfig(schedule="manifold"), 2, 10)
    assert steps == (0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 20)


def test_manifold_thins_out_over_the_epochs():
    steps = record_steps(RecordConfig(schedule="manifold"), 200, 4)
    ends = [step // 4 - 1 for step in steps if step % 4 == 0 and step > 20]
    assert ends == [*range(5, 26), *range(28, 65, 4), *range(75, 196, 15), 199]


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3])
def test_manifold_records_every_batch_of_epochs_with_fewer_than_four(steps_per_epoch):
    steps = record_steps(RecordConfig(schedule="manifold"), 5, steps_per_epoch)
    assert steps == tuple(range(5 * steps_per_epoch + 1))
