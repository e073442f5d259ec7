import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.chosen import Selectors, chosen, find_trial
from sweeper.errors import ConfigError, ExpressionError, SweepDirError, SweeperError
from sweeper.plan import planned_configs
from sweeper.status.states import STATES

CONFIGS = [
    {"model.name": "fc", "seed": 0},
    {"model.name": "fc", "seed": 1},
    {"model.name": "vit", "model.dim": 8, "seed": 0},
    {"model.name": "vit", "model.dim": 16, "seed": 1},
]
IDS = ["ta10", "ta11", "tb20", "tb2"]
FOUND = dict(zip(IDS, ("complete", "failed", "failed", "waiting"), strict=True))


def select(where=None, ids=(), states=(), configs=CONFIGS):
    asked = Selectors.of(where, ids, states)
    return chosen(asked, IDS, lambda: configs, lambda: FOUND)


def refuse(*arguments, kind=SweeperError, **options):
    with pytest.raises(kind) as caught:
        select(*arguments, **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, IDS),
        ({"where": "seed == 1"}, ["ta11", "tb2"]),
        ({"where": "model.dim > 8"}, ["tb2"]),
        ({"where": "model.dim == None"}, ["ta10", "ta11"]),
        ({"states": ["failed"]}, ["ta11", "tb20"]),
        ({"states": ["waiting", "complete"]}, ["ta10", "tb2"]),
        ({"ids": ["tb2"]}, ["tb2"]),
        ({"ids": ["tb20", "ta10"]}, ["ta10", "tb20"]),
        ({"ids": ["ta11", "ta10"], "states": ["failed"]}, ["ta11"]),
        ({"where": "seed == 0", "states": ["failed"], "ids": ["tb20", "ta11"]}, ["tb20"]),
    ],
)
def test_what_satisfies_all_that_is_asked_for_is_chosen_in_order(asked, expected):
    assert select(**asked) == expected


@given(
    st.sampled_from([None, "seed == 0", "model.name == 'vit'"]),
    st.lists(st.sampled_from(IDS), max_size=3),
    st.lists(st.sampled_from(STATES), max_size=3),
)
def test_each_selector_only_narrows(where, ids, states):
    def found(*asked):
        try:
            return set(select(*asked))
        except SweeperError:
            return set()

    together = found(where, ids, states)
    assert together == found(where) & found(None, ids) & found(None, (), states)


def test_what_is_not_needed_is_not_read():
    def never():
        raise AssertionError

    assert chosen(Selectors.of(None, ["tb20"], ()), IDS, never, never) == ["tb20"]
    assert chosen(Selectors(), IDS, never, never) == IDS


def test_a_configuration_that_nobody_can_read_is_taken():
    assert select("seed == 1", configs=[None, *CONFIGS[1:]]) == ["ta10", "ta11", "tb2"]
    assert select("sead == 1", configs=[None] * 4) == IDS


def test_a_selection_says_what_it_is():
    asked = Selectors.of("seed == 1", ["t1", "t2"], ["failed"])
    assert str(asked) == "--where seed == 1 --id t1 --id t2 --state failed"
    assert asked
    assert not Selectors.of(None, None, None)


# --- what is refused --------------------------------------------------------------------------


def test_an_unknown_state_is_refused_with_the_nearest():
    error = refuse(states=["faild"])
    assert (error.where, error.hint) == ("--state", "did you mean `failed`?")
    assert "`faild`" in error.found
    assert "interrupted" in error.allowed


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ("ta", "`ta` begins 2 ids", "these: ta10, ta11"),
        ("", "`` begins 4 ids", "these: ta10, "),
        ("ta12", "no trial `ta12`", "did you mean `ta1"),
        ("x", "no trial `x`", "sweeper failures"),
    ],
)
def test_an_id_that_is_none_or_several_is_refused_with_what_it_may_be(text, found, hint):
    error = refuse(ids=[text])
    assert (error.where, error.found) == ("--id", found)
    assert hint in error.hint


def test_an_id_that_begins_another_is_itself():
    assert find_trial("tb2", IDS, "TRIAL") == "tb2"


def test_nothing_is_an_error():
    error = refuse("seed == 7")
    assert str(error) == "--where seed == 7: none of 4 trials; at least one"
    assert refuse(ids=["ta10"], states=["failed"]).where == "--id ta10 --state failed"


@pytest.mark.parametrize(
    ("where", "said"),
    [("sead == 1", "did you mean `seed`?"), ("vit == 1", "a string needs quotes: 'vit'")],
)
def test_a_name_that_no_trial_has_is_refused(where, said):
    error = refuse(where, kind=ExpressionError)
    assert error.where == "--where"
    assert said in error.hint


@pytest.mark.parametrize("where", ["seed ==", "seed", "open('x')"])
def test_what_is_no_expression_or_neither_true_nor_false_is_refused(where):
    assert refuse(where, kind=ExpressionError).where == "--where"


# --- the plan's configurations ----------------------------------------------------------------


def write(path, configs, version=1):
    texts = [json.dumps(config) for config in configs]
    pq.write_table(pa.table({"config": texts, "schema": [version] * len(texts)}), path)


def test_planned_configurations_are_read_in_order(tmp_path):
    configs = [{"seed": seed} for seed in range(25_000)]
    write(tmp_path / "plan.parquet", configs)
    assert list(planned_configs(tmp_path / "plan.parquet")) == configs


def test_a_plan_that_cannot_be_read_is_an_error(tmp_path):
    path = tmp_path / "plan.parquet"
    with pytest.raises(SweepDirError, match="no readable plan"):
        list(planned_configs(path))
    path.write_bytes(b"PAR1")
    with pytest.raises(SweepDirError, match="no readable plan"):
        list(planned_configs(path))


def test_a_plan_of_a_newer_version_is_an_error(tmp_path):
    write(tmp_path / "plan.parquet", CONFIGS, version=99)
    with pytest.raises(ConfigError, match="schema version 99"):
        list(planned_configs(tmp_path / "plan.parquet"))
