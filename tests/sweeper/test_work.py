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
