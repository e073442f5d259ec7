"""What is left of a sweep in seconds, against sums by hand and against running it."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.plan import PlannedWork
from sweeper.work import Rates

# Two shapes that are measured, and one that is not. A step of `a` is 2 operations, of `b` 4.
PLANNED = PlannedWork(
    ids=["a1", "a2", "a3", "b1", "b2", "c1"],
    shapes=["a", "a", "a", "b", "b", "c"],
    n_steps=[100, 100, 200, 50, 50, 10],
    works=[200.0, 200.0, 400.0, 200.0, 200.0, 900.0],
)
TALLIED = {
    "a1": {"state": "complete", "t": 1.0, "seconds": 10.0, "steps": 100},
    "a2": {"state": "complete", "t": 2.0, "seconds": 5.0, "steps": 20},  # resumed at step 80
    "b1": {"state": "diverged", "t": 3.0, "seconds": 30.0, "steps": 10},
    "a3": {"state": "running", "t": 4.0},
}


def test_a_step_takes_what_the_steps_of_its_shape_took_on_average():
    rates = Rates(PLANNED, TALLIED)
    assert rates.seconds("a", 200, 400.0) == pytest.approx(200 * (10 + 5) / (100 + 20))
    assert rates.seconds("b", 50, 200.0) == pytest.approx(50 * 30 / 10)


def test_a_shape_that_was_not_measured_goes_by_the_operations_of_all():
    done = 200 + 200 * 20 / 100 + 200 * 10 / 50
    expected = 900 * (10 + 5 + 30) / done
    assert Rates(PLANNED, TALLIED).seconds("c", 10, 900.0) == pytest.approx(expected)


def test_what_is_left_of_a_running_trial_is_its_steps_to_come():
    rates = Rates(PLANNED, TALLIED)
    whole = rates.seconds("a", 200, 400.0)
    assert rates.remaining({"a3": 0}) == pytest.approx(whole)
    assert rates.remaining({"a3": 150}) == pytest.approx(whole / 4)
    assert rates.remaining({"a3": 200}) == 0
    assert rates.remaining({"a3": 201}) == 0
    assert rates.remaining({"a3": 150, "b2": 0}) == pytest.approx(whole / 4 + 150)
    assert rates.remaining({}) == 0


def test_slots_share_what_is_left_but_one_trial_runs_in_one():
    rates = Rates(PLANNED, TALLIED)
    whole = rates.seconds("a", 200, 400.0)  # 25 s, beside the 150 s of `b2`
    assert rates.eta({"a3": 0, "b2": 0}, 1) == pytest.approx(whole + 150)
    assert rates.eta({"a3": 0, "b2": 0}, 2) == pytest.approx(150)
    assert rates.eta({}, 2) == 0
    assert rates.eta({"a3": 0}, 0) is None


@pytest.mark.parametrize(
    "found",
    [
        {"state": "running"},
        {"state": "complete"},  # taken from the store, by a driver that did not see it end
        {"state": "complete", "seconds": 3.0, "steps": 0},  # all was there, it only sealed
        {"state": "diverged", "seconds": 3.0},
        {"state": "failed", "error": "E", "message": ""},
    ],
)
def test_nothing_is_said_before_anything_is_measured(found):
    rates = Rates(PLANNED, {"a1": {"t": 1.0} | found, "gone": TALLIED["a1"]})
    assert rates.seconds("a", 100, 200.0) is None
    assert rates.remaining({"a2": 0}) is None
    assert rates.eta({"a2": 0}, 4) is None


def test_an_attempt_of_an_older_journal_is_taken_to_have_made_all_steps():
    tallied = {"a1": {"state": "complete", "t": 1.0, "seconds": 10.0}}
    assert Rates(PLANNED, tallied).seconds("a", 300, 600.0) == pytest.approx(30)


@pytest.mark.parametrize("steps", [{}, {"steps": 70}])
def test_of_an_older_plan_trials_are_counted(steps):
    ids = ["x", "y", "z", "w"]
    planned = PlannedWork(ids, [""] * 4, [0] * 4, [0.0] * 4)
    tallied = {
        "x": {"state": "complete", "t": 1.0, "seconds": 10.0, **steps},
        "y": {"state": "complete", "t": 1.0, "seconds": 20.0, **steps},
    }
    assert Rates(planned, tallied).remaining({"z": 0, "w": 30}) == pytest.approx(2 * 15)


SECONDS = st.floats(0.01, 1000)


@given(st.lists(SECONDS, min_size=1, max_size=8))
def test_what_was_measured_adds_up_to_itself(seconds):
    """One shape and all of its trials measured: estimated again, they take what they took."""
    ids = [f"t{i}" for i in range(len(seconds))]
    planned = PlannedWork(ids, ["a"] * len(ids), range(1, len(ids) + 1), [1.0] * len(ids))
    tallied = {
        trial: {"state": "complete", "t": 0.0, "seconds": took, "steps": i + 1}
        for i, (trial, took) in enumerate(zip(ids, seconds, strict=True))
    }
    rates = Rates(planned, tallied)
    assert rates.remaining(dict.fromkeys(ids, 0)) == pytest.approx(sum(seconds))


@given(st.lists(SECONDS, min_size=1, max_size=12), st.integers(1, 5))
def test_a_sweep_takes_no_less_and_little_more_than_its_eta(seconds, n_slots):
    """Against slots that take the next trial whenever they are free, in any order."""
    ids = [f"t{i}" for i in range(len(seconds))]
    planned = PlannedWork(ids, ids, [1] * len(ids), [1.0] * len(ids))
    tallied = {
        trial: {"state": "complete", "t": 0.0, "seconds": took, "steps": 1}
        for trial, took in zip(ids, seconds, strict=True)
    }
    eta = Rates(planned, tallied).eta(dict.fromkeys(ids, 0), n_slots)
    busy_until = [0.0] * n_slots
    for took in seconds:
        heapq.heapreplace(busy_until, busy_until[0] + took)
    assert eta <= max(busy_until) * (1 + 1e-9)
    assert max(busy_until) <= (eta + max(seconds)) * (1 + 1e-9)


# --- on GPUs ----------------------------------------------------------------------------------


def test_a_gpu_that_runs_one_trial_at_a_time_takes_the_sum_of_them():
    ids = [f"t{i}" for i in range(9)]
    planned = PlannedWork(ids, ["a"] * 9, [1] * 9, [1.0] * 9)
    rates = Rates(planned, {ids[0]: {"state": "complete", "t": 0.0, "seconds": 60.0, "steps": 1}})
    left = dict.fromkeys(ids[1:], 0)
    assert rates.eta(left, 8) == pytest.approx(60)
    assert rates.eta(left, 8, n_gpus=1) == pytest.approx(480)
    assert rates.eta(left, 8, 1, {"a": 4}) == pytest.approx(120)
    assert rates.eta(left, 2, 1, {"a": 4}) == pytest.approx(240), "processors feed only two"
    assert rates.eta(left, 8, 2, {"b": 4}) == pytest.approx(240), "of another shape"
    assert rates.eta({"t1": 0}, 8, 2, {"a": 4}) == pytest.approx(60), "the longest trial"


@given(
    st.lists(SECONDS, min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4, 8]),
)
def test_where_all_share_alike_gpus_are_so_many_slots(seconds, n_gpus, per_gpu):
    ids = [f"t{i}" for i in range(len(seconds))]
    planned = PlannedWork(ids, ids, [1] * len(ids), [1.0] * len(ids))
    tallied = {
        trial: {"state": "complete", "t": 0.0, "seconds": took, "steps": 1}
        for trial, took in zip(ids, seconds, strict=True)
    }
    rates, left = Rates(planned, tallied), dict.fromkeys(ids, 0)
    as_slots = rates.eta(left, n_gpus * per_gpu)
    assert rates.eta(left, 99, n_gpus, dict.fromkeys(ids, per_gpu)) == pytest.approx(as_slots)
    running = {trial: {"per_gpu": per_gpu} for trial in ids}
    as_they_run = Rates(planned, tallied, running).eta(left, 99, n_gpus)
    assert as_they_run == pytest.approx(as_slots)


# --- attempts in progress ---------------------------------------------------------------------

BEGUN = {"state": "running", "t": 0.0, "attempt": 2, "step": 40}
NOW = {"attempt": 2, "step": 60, "since": 1000.0, "beat": 1005.0}


def test_an_attempt_in_progress_is_measured_from_where_it_began():
    rates = Rates(PLANNED, {"a1": BEGUN}, {"a1": NOW})
    assert rates.seconds("a", 100, 200.0) == pytest.approx(5 / 20 * 100)
    earlier = {**BEGUN, "seconds": 3.0, "steps": 40}  # the attempt before
    both = Rates(PLANNED, {"a1": earlier}, {"a1": NOW})
    assert both.seconds("a", 100, 200.0) == pytest.approx((5 + 3) / (20 + 40) * 100)


@pytest.mark.parametrize(
    ("begun", "now"),
    [
        ({}, NOW),  # before the journal has it
        ({**BEGUN, "attempt": 1}, NOW),
        ({**BEGUN, "state": "retried"}, NOW),  # since the driver said so
        (BEGUN, {**NOW, "step": 40}),
        (BEGUN, {**NOW, "step": 30}),
        (BEGUN, {**NOW, "beat": 1000.0}),
        (BEGUN, {"attempt": 2}),
    ],
)
def test_an_attempt_that_has_shown_nothing_yet_measures_nothing(begun, now):
    tallied = {"a1": begun} if begun else {}
    assert Rates(PLANNED, tallied, {"a1": now, "gone": NOW}).seconds("a", 100, 200.0) is None
