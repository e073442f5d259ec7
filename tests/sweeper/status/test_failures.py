import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.expression import parse
from sweeper.schedule.retry import Failure
from sweeper.status.failures import FailureGroup, advice, again, expression, group_failures
from sweeper.status.states import STATES


def failed(message="a bug", state="failed", **fields):
    return {"state": state, "t": 0.0, "error": "RuntimeError", "message": message, **fields}


def grouped(states, found):
    return [group.trials for group in group_failures(states, found)]


# --- groups -----------------------------------------------------------------------------------


def test_one_signature_is_one_group_whatever_the_messages_say():
    found = {
        "t1": failed("shape 3", signature="a"),
        "t2": failed("shape 4", signature="b"),
        "t3": failed("quite another", signature="b", kind="bug"),
    }
    first, second = group_failures(dict.fromkeys(found, "failed"), found)
    assert first == FailureGroup("RuntimeError", "shape 4", ("t2", "t3"), "", "b")
    assert second.trials == ("t1",)


def test_without_a_signature_messages_that_differ_in_numbers_alone_are_one_group():
    messages = [f"{share} reached after 3 epochs" for share in (0.11, 0.0969, 1e-05)]
    found = {f"t{i}": failed(text) for i, text in enumerate([*messages, "full"])}
    found["t9"] = {**failed("full"), "error": "OSError"}
    groups = group_failures(dict.fromkeys(found, "failed"), found)
    assert [group.trials for group in groups] == [("t0", "t1", "t2"), ("t3",), ("t9",)]
    assert groups[0].message == messages[0]


def test_what_is_run_again_is_among_them_and_what_came_right_is_not():
    found = {
        "t1": failed(),
        "t2": failed(state="retried"),
        "t3": failed(state="running"),
        "t4": failed(),  # launched again since, and not yet started
        "t5": {"state": "complete", "t": 0.0},
        "t6": failed(state="running"),
    }
    states = dict(zip(found, ("failed", "waiting", "running", "running"), strict=False))
    states |= {"t5": "complete", "t6": "complete", "t7": "waiting"}
    (group,) = group_failures(states, found)
    assert group.trials == ("t1", "t2", "t3")
    assert (group.retried, group.interrupted, group.n_failed) == (("t2", "t3"), (), 1)


def test_what_no_driver_runs_again_is_interrupted_and_not_run_again():
    found = {"t1": failed(), "t2": failed(state="retried"), "t3": failed(state="running")}
    states = {"t1": "failed", "t2": "interrupted", "t3": "interrupted"}
    (group,) = group_failures(states, found)
    assert (group.retried, group.interrupted, group.n_failed) == ((), ("t2", "t3"), 1)


@given(
    st.dictionaries(
        st.integers(0, 30).map(str),
        st.tuples(st.sampled_from(STATES), st.sampled_from("ab"), st.sampled_from(["", "s"])),
    )
)
def test_every_failed_trial_is_in_one_group_and_the_largest_comes_first(drawn):
    states = {trial: state for trial, (state, _, _) in drawn.items()}
    found = {
        trial: failed(text, "failed" if state == "failed" else "retried", signature=signature)
        for trial, (state, text, signature) in drawn.items()
    }
    groups = grouped(states, found)
    flat = [trial for trials in groups for trial in trials]
    assert len(flat) == len(set(flat))
    assert set(flat) == {t for t, state in states.items() if state not in ("complete", "diverged")}
    assert [len(trials) for trials in groups] == sorted(map(len, groups), reverse=True)


# --- what to do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("invalid", "sweeper plan GRID"),
        ("data", "not on n1, n2: put it there"),
        ("oom", "--per-gpu 1"),
        ("lost", "look at n1, n2, its memory"),
        ("storage", "launch again"),
        ("bug", "`sweeper logs 'my dir' t1`"),
        ("", "`sweeper logs 'my dir' t1`"),
    ],
)
def test_every_kind_has_its_advice(kind, said):
    group = FailureGroup("E", "m", ("t1",), kind)
    assert said in advice(group, "my dir", "t1", ["n1", "n2"])


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (Failure.lost("t1", "ran longer than --time-limit", "TimeLimit"), "raise `--time-limit`"),
        (Failure.lost("t1", "no step for 90 s: it was taken to hang"), "`--stalled-after`"),
        (Failure.lost("t1", "its node is gone"), "the machine failed it"),
    ],
)
def test_a_worker_that_was_given_up_is_not_blamed_on_its_machine(lost, said):
    group = FailureGroup(lost.error, lost.message, ("t1",), lost.kind)
    text = advice(group, "d", "t1", ["n1"])
    assert said in text
    assert ("sweeper logs d t1" in text) == (lost.error == "TimeLimit")


VALUES = st.dictionaries(
    st.sampled_from(["model.name", "optim.lr", "seed", "ema"]),
    st.one_of(
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
        st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ),
    min_size=1,
)


@given(VALUES)
def test_the_expression_of_values_holds_for_them(values):
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    assert parse(expression(values), "--where").holds(plain)


@given(VALUES)
def test_a_shell_reads_the_command_as_it_is_meant(values):
    words = shlex.split(again("runs/it's", values))
    assert words == [
        *("sweeper", "resume", "runs/it's", "--state", "failed", "--where", expression(values))
    ]


def test_a_command_names_trials_where_values_do_not_tell_them():
    assert again("d", ids=["t1", "t2"]) == "sweeper resume d --state failed --id t1 --id t2"
    assert again("d", {}) == "sweeper resume d --state failed"
    both = again("d", ids=["t1"], states=["failed", "interrupted"])
    assert both == "sweeper resume d --state failed --state interrupted --id t1"
    assert (
        again("d", {"model.name": "vit", "seed": 3})
        == "sweeper resume d --state failed --where \"model.name == 'vit' and seed == 3\""
    )
