"""Whose fault a failure is: the trial's, one node's, or nobody's in particular."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.schedule.suspects import TRIALS, Blame, Suspects

BIG = 100  # nodes: none fails like most of them


@pytest.fixture
def suspects():
    return Suspects()


def fails(suspects, *trials, node="x", step=5, way="way"):
    for trial in trials:
        suspects.failed(trial, node, step, way)


def completes(suspects, *trials, node="y"):
    for trial in trials:
        suspects.completed(trial, node)


def test_three_trials_that_complete_elsewhere_are_a_nodes_fault(suspects):
    fails(suspects, "a", "b", "c")
    completes(suspects, "a", "b")
    assert suspects.to_blame(BIG) == {}
    completes(suspects, "c")
    assert suspects.to_blame(BIG) == {"x": Blame(("a", "b", "c"), "way")}


def test_three_failures_of_one_trial_are_not(suspects):
    fails(suspects, "a", "a", "a", "b")
    completes(suspects, "a", "b")
    assert suspects.to_blame(BIG) == {}


def test_a_trial_that_completes_on_the_same_node_or_fails_for_good_shows_nothing(suspects):
    fails(suspects, "a", "b", "c", "d")
    completes(suspects, "a", "b")
    completes(suspects, "c", node="x")
    suspects.ended("d")
    completes(suspects, "d")
    assert suspects.to_blame(BIG) == {}


@pytest.mark.parametrize(("step", "is_fault"), [(5, False), (6, True)])
def test_a_step_beyond_those_made_on_the_node_shows_as_much(suspects, step, is_fault):
    fails(suspects, "a", "b", "c", step=5)
    for trial in "abc":
        suspects.reached(trial, "x", 99)  # on the very node
        suspects.reached(trial, "y", step)
    assert ("x" in suspects.to_blame(BIG)) == is_fault


def test_an_attempt_that_began_is_beyond_one_that_did_not(suspects):
    fails(suspects, "a", "b", "c", step=-1)
    for trial in "abc":
        suspects.reached(trial, "y", 0)
    assert "x" in suspects.to_blame(BIG)


def test_a_second_failure_keeps_the_furthest_step(suspects):
    fails(suspects, "a", "b", "c", step=9)
    fails(suspects, "a", "b", "c", step=2)
    for trial in "abc":
        suspects.reached(trial, "y", 5)
    assert suspects.to_blame(BIG) == {}


@pytest.mark.parametrize(("n_completed", "is_blamed"), [(2, True), (3, False)])
def test_what_a_node_completes_since_the_first_of_them_speaks_for_it(
    suspects, n_completed, is_blamed
):
    completes(suspects, *"opqrstuv", node="x")  # long before
    fails(suspects, "a")
    completes(suspects, *range(n_completed), node="x")
    fails(suspects, "b", "c")
    completes(suspects, "a", "b", "c")
    assert ("x" in suspects.to_blame(BIG)) == is_blamed


def test_a_node_that_turns_bad_late_is_found(suspects):
    fails(suspects, "a")
    completes(suspects, "a")
    completes(suspects, *range(1000), node="x")
    fails(suspects, "b", "c", "d")
    completes(suspects, "b", "c", "d")
    assert suspects.to_blame(BIG)["x"].trial_ids == ("b", "c", "d")


@pytest.mark.parametrize(("n_nodes", "blamed"), [(4, {"x", "y"}), (3, set())])
def test_a_way_in_which_more_than_half_of_the_nodes_fail_is_no_nodes_fault(
    suspects, n_nodes, blamed
):
    fails(suspects, "a", "b", "c", node="x")
    fails(suspects, "d", "e", "f", node="y")
    completes(suspects, *"abcdef", node="z")
    assert set(suspects.to_blame(n_nodes)) == blamed


def test_the_signature_is_that_of_most(suspects):
    fails(suspects, "a", "b", way="often")
    fails(suspects, "c", way="once")
    completes(suspects, *"abc")
    assert suspects.to_blame(BIG)["x"].signature == "often"


def test_a_node_is_suspect_as_soon_as_three_failed_there_whoever_is_to_blame(suspects):
    fails(suspects, "a", "b")
    assert not suspects.is_suspect("x")
    fails(suspects, "c")
    assert suspects.is_suspect("x")
    assert not suspects.is_suspect("y")
    completes(suspects, 1, 2, 3, node="x")
    assert not suspects.is_suspect("x")


def test_a_node_that_has_gone_is_forgotten(suspects):
    fails(suspects, "a", "b", "c")
    suspects.gone("x")
    completes(suspects, "a", "b", "c")
    assert suspects.to_blame(BIG) == {}


def test_one_failure_makes_a_node_doubtful_that_has_completed_nothing(suspects):
    assert not suspects.is_doubtful("x")
    assert not suspects.is_sound("x")
    fails(suspects, "a")
    assert suspects.is_doubtful("x")
    assert not suspects.is_doubtful("x", but="a")
    suspects.ended("a")  # it failed elsewhere, too: that does not show that x is sound
    assert suspects.is_doubtful("x")
    completes(suspects, "b", node="x")
    assert suspects.is_sound("x")


def test_three_in_a_row_make_one_doubtful_that_was_sound(suspects):
    completes(suspects, "o", node="x")
    fails(suspects, "a", "b")
    assert suspects.is_sound("x")
    fails(suspects, "b", "b")
    assert suspects.is_sound("x")
    fails(suspects, "c")
    assert suspects.is_doubtful("x")
    assert suspects.is_sound("x", but="a")
    completes(suspects, "p", node="x")
    assert suspects.is_sound("x")


def test_of_most_nodes_those_are_to_blame_that_go_on_when_others_have_overcome_it(suspects):
    for node in "xy":
        fails(suspects, *(f"{node}{i}" for i in range(3)), node=node)
    completes(suspects, *(f"{node}{i}" for node in "xy" for i in range(3)), node="z")
    assert suspects.to_blame(3) == {}
    fails(suspects, "more", node="x")
    assert set(suspects.to_blame(3)) == {"x"}


def test_what_was_overcome_before_a_node_completed_a_trial_says_nothing_of_the_next_time(suspects):
    for node in "xy":
        fails(suspects, *(f"{node}{i}" for i in range(3)), node=node)
    completes(suspects, *(f"{node}{i}" for node in "xy" for i in range(3)), node="z")
    completes(suspects, *"opq", node="x")
    fails(suspects, *"abc", node="x")
    fails(suspects, *"def", node="y")
    completes(suspects, *"abc", node="z")
    assert "x" not in suspects.to_blame(3)


TRIAL, NODE = st.integers(0, 5), st.sampled_from("xyz")
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("fails"), TRIAL, NODE, st.integers(-1, 3)),
        st.tuples(st.just("reaches"), TRIAL, NODE, st.integers(0, 4)),
        st.tuples(st.just("completes"), TRIAL, NODE, st.just(0)),
        st.tuples(st.just("ends"), TRIAL, st.just(""), st.just(0)),
    ),
    max_size=40,
)


def faults(happenings, node):
    """A node's faults, said again: each trial's last failure there and whether it was one."""
    found, made, n_completed = {}, {}, 0
    for what, trial, where, step in happenings:
        if what == "fails" and where == node:
            found.pop(trial, None)
            made[trial] = max(step, made.get(trial, -1))
            found[trial] = [n_completed, False]
        went_well = what == "completes" or (what == "reaches" and step > made.get(trial, 99))
        if went_well and where != node and trial in found:
            found[trial][1] = True
        n_completed += what == "completes" and where == node
        if what in ("completes", "ends") and not found.get(trial, (0, True))[1]:
            del found[trial], made[trial]
    last = [(trial, before) for trial, (before, is_fault) in found.items() if is_fault][-TRIALS:]
    is_blamed = len(last) == TRIALS > n_completed - min((n for _, n in last), default=0)
    return {trial for trial, _ in last} if is_blamed else None


@given(HAPPENINGS)
def test_the_last_three_faults_count(happenings):
    suspects = Suspects()
    for what, trial, node, step in happenings:
        if what == "fails":
            suspects.failed(trial, node, step, f"way of {node}")
        elif what == "reaches":
            suspects.reached(trial, node, step)
        elif what == "completes":
            suspects.completed(trial, node)
        else:
            suspects.ended(trial)
    for node in "xyz":
        found = suspects.to_blame(BIG).get(node)
        expected = faults(happenings, node)
        assert (set(found.trial_ids) if found else None) == expected


def test_what_has_ended_leaves_three_faults_a_node(suspects):
    for i in range(1000):
        fails(suspects, i)
        completes(suspects, i)
        completes(suspects, -i, node="x")
    kept = Counter({node: len(there) for node, there in suspects._failed.items()})
    assert kept == {"x": TRIALS}
