import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper.config import SCHEMA_VERSION, TrialConfig
from sweeper.errors import PlanError, SweepDirError
from sweeper.grid import Trial
from sweeper.plan import (
    Size,
    check_stored,
    make_plan,
    planned_ids,
    plug_in_hashes,
    read_plan,
    write_plan,
)

REQUIRED = {
    "data.name": "digits",
    "model.name": "fc",
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "epochs": 3,
}


def make_trial(**changes):
    config = TrialConfig.from_flat(
        REQUIRED | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return Trial(config.trial_id, config)


TRIALS = [
    make_trial(seed=3),
    make_trial(seed=1, model__widths=[16, 8], optim__lr=1e-3),
    make_trial(seed=2, record__schedule=[0, 0.5, 3], optim__name="adam"),
]


def size_of(config):
    return Size(config.epochs + 1, 100 * config.epochs, config.seed)


# --- what is to be run -----------------------------------------------------------------------


def test_complete_trials_are_left_out_and_the_rest_keeps_its_order():
    plan = make_plan(TRIALS, {TRIALS[1].trial_id, "t0"}, size_of)
    assert list(plan.trials) == TRIALS
    assert list(plan.todo) == [TRIALS[0], TRIALS[2]]


def test_all_trials_are_run_when_none_is_complete_and_none_when_all_are():
    assert make_plan(TRIALS, (), size_of).todo == tuple(TRIALS)
    assert make_plan(TRIALS, {trial.trial_id for trial in TRIALS}, size_of).todo == ()


def test_sizes_add_up_over_all_trials():
    plan = make_plan(TRIALS, {TRIALS[0].trial_id}, size_of)
    assert (plan.n_snapshots, plan.n_bytes, plan.n_files) == (12, 900, 6)


def test_two_configurations_of_one_id_are_refused():
    clash = replace(TRIALS[1], trial_id=TRIALS[0].trial_id)
    with pytest.raises(PlanError, match=f"trial {clash.trial_id}: two configurations") as caught:
        make_plan([*TRIALS, clash], (), size_of)
    assert "'seed': 3" in str(caught.value)
    assert "'seed': 1" in str(caught.value)


# --- plan.parquet ----------------------------------------------------------------------------


def test_a_plan_is_read_as_written(tmp_path):
    path = tmp_path / "plan.parquet"
    write_plan(path, make_plan(TRIALS, {TRIALS[0].trial_id}, size_of))
    assert list(read_plan(path)) == TRIALS
    assert planned_ids(path) == [trial.trial_id for trial in TRIALS]


def test_a_plan_is_a_table_that_others_can_read(tmp_path):
    path = tmp_path / "plan.parquet"
    write_plan(path, make_plan(TRIALS, (), size_of))
    rows = pq.read_table(path).to_pylist()
    assert [row["n_snapshots"] for row in rows] == [4, 4, 4]
    assert [row["n_bytes"] for row in rows] == [300, 300, 300]
    assert {row["schema"] for row in rows} == {SCHEMA_VERSION}
    assert json.loads(rows[1]["config"]) == TRIALS[1].config.to_flat()


@pytest.mark.parametrize("damage", ["absent", "empty", "junk", "cut", "other table"])
def test_a_plan_that_cannot_be_read_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "plan.parquet"
    write_plan(path, make_plan(TRIALS, (), size_of))
    if damage == "absent":
        path.unlink()
    elif damage == "other table":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        path.write_bytes({"empty": b"", "junk": b"junk" * 9, "cut": path.read_bytes()[:-9]}[damage])
    for read in (read_plan, planned_ids):
        with pytest.raises(SweepDirError) as caught:
            read(path)
        assert caught.value.where == str(path)
        assert "launch" in caught.value.hint


# --- plug-ins --------------------------------------------------------------------------------


def test_the_sources_of_plug_ins_are_hashed_once_each(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planned_models.py").write_text("def build(shape, n_classes):\n    return None\n")
    theirs = [make_trial(seed=seed, model__name="planned_models:build") for seed in (1, 2)]
    hashes = plug_in_hashes([*TRIALS, *theirs])
    assert list(hashes) == ["planned_models:build"]
    assert plug_in_hashes(TRIALS) == {}


def test_a_trial_stored_with_another_value_under_its_id_is_refused():
    trial = make_trial()
    stored = {trial.trial_id: trial.config.to_flat()}
    check_stored([trial], stored)
    check_stored([trial], {trial.trial_id: {}})
    with pytest.raises(PlanError, match=r"the store holds this trial with `7`") as caught:
        check_stored([trial], {trial.trial_id: stored[trial.trial_id] | {"epochs": 7}})
    assert "set `epochs` in the grid" in caught.value.hint
