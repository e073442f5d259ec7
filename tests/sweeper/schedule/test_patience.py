"""When an attempt is given up: on a clock of its own."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.attempt import Progress
from sweeper.schedule.patience import STALL_EPOCHS, Patience
from sweeper.schedule.rules import Rules

FLOOR = 100.0


def says(trial="t1", step=0, epoch=0.0):
    return Progress(trial, 1, step, 1000, "here", "cpu", epoch)


def begun(*, time_limit=None, at=0.0):
    patience = Patience(Rules(stalled_after=FLOOR, time_limit=time_limit))
    patience.begins("t1", "a", at)
    return patience


def test_an_attempt_that_never_says_a_word_stalls_after_the_floor():
    patience = begun(at=7.0)
    assert patience.stalled("t1", 7.0 + FLOOR) is None
    assert patience.stalled("t1", 7.0 + FLOOR + 1) == FLOOR + 1


def test_only_a_new_step_counts_as_movement():
    patience = begun()
    patience.reports(says(step=0), 50.0)
    patience.reports(says(step=0), 120.0)
    assert patience.stalled("t1", 151.0) == 101.0
    patience.reports(says(step=1), 151.0)
    assert patience.stalled("t1", 251.0) is None


def test_one_that_waits_for_room_is_alive_but_one_unknown_is_nobody():
    patience = begun()
    patience.lives("t1", 90.0)
    patience.lives("t9", 90.0)
    patience.reports(says("t9"), 90.0)
    assert patience.stalled("t1", 190.0) is None
    assert patience.stalled("t1", 191.0) == 101.0
    assert patience.stalled("t9", 10**6) is None
    assert not patience.is_over_limit("t9", 10**6)


def run_epochs(patience, seconds, trial="t1", start=0.0):
    """An attempt whose epochs take so long; the time of its last report."""
    now = start
    patience.reports(says(trial, 0), now)
    patience.reports(says(trial, 1, 0.01), now)
    for i, length in enumerate(seconds, 1):
        now += length
        patience.reports(says(trial, 1 + i, float(i)), now)
    return now


@given(st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=30))
def test_slow_epochs_earn_ten_times_their_median_in_patience(seconds):
    patience = begun()
    now = run_epochs(patience, seconds)
    limit = max(FLOOR, STALL_EPOCHS * median(seconds))
    assert patience.stalled("t1", now + limit * 0.999) is None
    assert patience.stalled("t1", now + limit * 1.001) == pytest.approx(limit * 1.001)


def test_what_one_trial_shows_holds_for_its_shape_and_for_no_other():
    patience = begun()
    run_epochs(patience, [60.0])
    patience.begins("t2", "a", 0.0)
    patience.begins("t3", "b", 0.0)
    assert patience.stalled("t2", 600.0) is None
    assert patience.stalled("t2", 601.0) == 601.0
    assert patience.stalled("t3", 101.0) == 101.0


def test_reports_that_skip_epochs_count_each_of_them_and_parts_of_one_count_nothing():
    patience = begun()
    patience.reports(says(step=0), 0.0)
    patience.reports(says(step=1, epoch=0.1), 0.0)
    patience.reports(says(step=2, epoch=0.9), 4000.0)
    assert patience.stalled("t1", 4101.0) == 101.0
    patience.reports(says(step=50, epoch=5.5), 5000.0)
    assert patience.stalled("t1", 5000.0 + 10 * 1000.0) is None
    assert patience.stalled("t1", 5000.0 + 10 * 1000.0 + 1) is not None


def test_the_first_report_says_where_the_attempt_starts_and_is_no_epoch():
    """A resumed attempt says epoch 0 first, and then where it really is."""
    patience = begun()
    patience.reports(says(step=700, epoch=0.0), 0.0)
    patience.reports(says(step=701, epoch=7.01), 90.0)
    assert patience.stalled("t1", 191.0) == 101.0
    patience.reports(says(step=800, epoch=8.0), 90.0 + 50.0)
    assert patience.stalled("t1", 140.0 + 500.0) is None


def test_a_corner_init_s_first_phase_has_epochs_below_zero():
    patience = begun()
    patience.reports(says(step=0, epoch=0.0), 0.0)
    for i, epoch in enumerate([-1.9, -1.0, -0.5, 0.0, 1.0]):
        patience.reports(says(step=1 + i, epoch=epoch), 30.0 * i)
    assert patience.stalled("t1", 120.0 + 300.0) is None
    assert patience.stalled("t1", 120.0 + 451.0) == 451.0


def test_the_time_limit_counts_all_attempts_of_a_launch_and_not_what_is_between():
    patience = begun(time_limit=100.0)
    assert not patience.is_over_limit("t1", 100.0)
    patience.ends("t1", 60.0, for_good=False)
    assert not patience.is_over_limit("t1", 10**6)
    patience.begins("t1", "a", 1000.0)
    assert not patience.is_over_limit("t1", 1040.0)
    assert patience.is_over_limit("t1", 1041.0)
    patience.ends("t1", 1020.0, for_good=False)
    patience.begins("t1", "a", 2000.0)
    assert not patience.is_over_limit("t1", 2020.0)
    assert patience.is_over_limit("t1", 2021.0)


def test_a_trial_that_has_ended_leaves_no_time_behind():
    patience = begun(time_limit=100.0)
    patience.ends("t1", 90.0, for_good=False)
    patience.begins("t1", "a", 90.0)
    patience.ends("t1", 95.0, for_good=True)
    patience.begins("t1", "a", 100.0)
    assert not patience.is_over_limit("t1", 200.0)


def test_without_a_limit_no_trial_is_over_it():
    assert not begun().is_over_limit("t1", 10**9)


def test_what_has_ended_is_not_remembered():
    patience = begun(time_limit=10.0)
    patience.ends("t1", 0.0, for_good=True)
    kept = [len(value) for value in vars(patience).values() if hasattr(value, "__len__")]
    for i in range(1000):
        for is_last in (False, True):
            patience.begins(f"t{i}", "a", 0.0)
            patience.ends(f"t{i}", 1.0, for_good=is_last)
    assert kept == [len(value) for value in vars(patience).values() if hasattr(value, "__len__")]


def test_time_spent_waiting_for_room_is_not_the_trial_s():
    patience = begun(time_limit=100.0)
    patience.reports(says(step=1), 60.0)
    for second in range(65, 1000, 5):  # as a full disk has it say
        patience.lives("t1", float(second))
        assert not patience.is_over_limit("t1", float(second))
    patience.reports(says(step=2), 1000.0)
    assert not patience.is_over_limit("t1", 1030.0)
    assert patience.is_over_limit("t1", 1041.0)
