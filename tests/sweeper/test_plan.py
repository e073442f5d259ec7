import itertools
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.config import SCHEMA_VERSION, TrialConfig
from sweeper.errors import PlanError, SweepDirError
from sweeper.grid import Trial
from sweeper.plan import (
    PlannedWork,
    Size,
    check_stored,
    make_plan,
    planned_ids,
    planned_work,
    plug_in_hashes,
    read_plan,
    write_plan,
)
from sweeper.shape import shape_of

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
    n_steps = 10 * config.epochs
    return Size(config.epochs + 1, 100 * config.epochs, config.seed, n_steps, 0.5 * config.seed)


# --- what is to be run -----------------------------------------------------------------------


def test_complete_trials_are_left_out_and_the_longest_of_the_rest_comes_first():
    plan = make_plan(reversed(TRIALS), {TRIALS[1].trial_id, "t0"}, size_of)
    assert list(plan.trials) == TRIALS[::-1]
    assert list(plan.todo) == [TRIALS[0], TRIALS[2]]


def test_all_trials_are_run_when_none_is_complete_and_none_when_all_are():
    assert make_plan(TRIALS, (), size_of).todo == (TRIALS[0], TRIALS[2], TRIALS[1])
    assert make_plan(TRIALS, {trial.trial_id for trial in TRIALS}, size_of).todo == ()


def test_sizes_add_up_over_all_trials():
    plan = make_plan(TRIALS, {TRIALS[0].trial_id}, size_of)
    assert (plan.n_snapshots, plan.n_bytes, plan.n_files) == (12, 900, 6)


SHAPED = [make_trial(seed=i, optim__batch_size=10 + i % 4) for i in range(12)]


@given(st.permutations(SHAPED), st.lists(st.integers(0, 3), min_size=12, max_size=12), st.data())
def test_trials_of_one_shape_run_together_and_the_longest_first(trials, works, data):
    """The order is the only one there is: told by its properties, ties by the grid's order."""
    work = {trial.trial_id: float(length) for trial, length in zip(SHAPED, works, strict=True)}
    complete = data.draw(st.sets(st.sampled_from(sorted(work))))
    plan = make_plan(trials, complete, lambda config: Size(1, 1, 1, 1, work[config.trial_id]))
    assert list(plan.trials) == trials
    assert len(plan.todo) == 12 - len(complete)
    assert {trial.trial_id for trial in plan.todo} == work.keys() - complete
    place = {trial.trial_id: i for i, trial in enumerate(trials)}
    runs = [list(run) for _, run in itertools.groupby(plan.todo, lambda t: shape_of(t.config))]
    assert len(runs) == len({shape_of(trial.config) for trial in plan.todo})
    for run in runs:
        keys = [(-work[trial.trial_id], place[trial.trial_id]) for trial in run]
        assert keys == sorted(keys)
    heads = [(-work[run[0].trial_id], min(place[trial.trial_id] for trial in run)) for run in runs]
    assert heads == sorted(heads)


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


def test_the_work_is_read_as_planned(tmp_path):
    path = tmp_path / "plan.parquet"
    plan = make_plan(TRIALS, {TRIALS[0].trial_id}, size_of)
    write_plan(path, plan)
    ids, shapes = [t.trial_id for t in TRIALS], [shape_of(t.config) for t in TRIALS]
    assert planned_work(path) == PlannedWork(ids, shapes, [30, 30, 30], [1.5, 0.5, 1.0])
    assert list(plan.work.shapes) == shapes
    assert pa.types.is_dictionary(pq.read_schema(path).field("shape").type)


def test_a_plan_of_an_earlier_version_is_read_without_its_work(tmp_path):
    """Such a file had the first five columns."""
    path = tmp_path / "plan.parquet"
    write_plan(path, make_plan(TRIALS, (), size_of))
    columns = ["trial_id", "schema", "config", "n_snapshots", "n_bytes"]
    pq.write_table(pq.read_table(path, columns=columns), path)
    ids = [trial.trial_id for trial in TRIALS]
    assert list(read_plan(path)) == TRIALS
    assert planned_ids(path) == ids
    assert planned_work(path) == PlannedWork(ids, [""] * 3, [0] * 3, [0.0] * 3)


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
    for read in (read_plan, planned_ids, planned_work):
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
