"""What an analysis is of, and what it leaves out and says so."""

from __future__ import annotations

import pytest

from analysis.select import ROWS, select
from analysis.union import open_union
from sweeper.errors import AnalysisError, ExpressionError, MissingStoreError
from sweeper.store import open_store


def test_rows_are_trials_by_id_and_snapshots_in_order(sweep):
    rows = select(open_union([sweep])).rows
    assert tuple(rows.columns) == ROWS
    assert list(rows["trial_id"]) == [t for t in ("t0", "t1", "t2", "t3") for _ in range(5)]
    assert list(rows["snapshot"]) == [0, 1, 2, 3, 4] * 4
    assert list(rows["step"][:5]) == [0, 10, 20, 30, 40]
    assert rows["accuracy"].between(0, 1).all()


def test_incomplete_and_diverged_trials_are_left_out_and_named(sweep):
    assert select(open_union([sweep])).left_out == {"diverged": ["t8"], "incomplete": ["t9"]}


def test_digests_are_those_of_the_analysed_trials(sweep):
    store = open_store(sweep)
    found = select(open_union([sweep])).digests
    assert list(found) == ["t0", "t1", "t2", "t3"]
    assert found == {name: store.trials().loc[name, "digest"] for name in found}


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("model.name == 'vit'", {"t2", "t3"}),
        ("model.name == 'fc' and seed < 1", {"t0"}),
        ("optim.lr > 0.25 or trial_id == 't1'", {"t1", "t2", "t3"}),
        ("model.depth == None and seed == 2", {"t2"}),
        ("test_accuracy >= 0", {"t0", "t1", "t2", "t3"}),
    ],
)
def test_where_selects_by_configuration_and_metrics(sweep, write_trial, where, kept):
    write_trial(sweep, "t7", {"model.name": "deep", "model.depth": 3, "optim.lr": 0.0}, "diverged")
    selection = select(open_union([sweep]), where)
    assert set(selection.rows["trial_id"]) == kept


def test_where_selects_by_a_field_that_is_a_list(sweep, write_trial):
    write_trial(sweep, "t5", {"model.widths": [128, 64]})
    write_trial(sweep, "t6", {"model.widths": [64, 128]})
    union = open_union([sweep])
    assert list(select(union, "model.widths == [128, 64]").digests) == ["t5"]
    assert list(select(union, "model.widths in [[128, 64], [1]]").digests) == ["t5"]
    assert list(select(union, "64 in model.widths").digests) == ["t5", "t6"]


def test_untrained_trials_are_left_out_on_request_only(sweep, write_trial):
    write_trial(sweep, "t4", train_accuracy=0.89)
    write_trial(sweep, "t5", train_accuracy=0.9)
    union = open_union([sweep])
    assert "t4" in select(union).digests
    found = select(union, exclude_untrained=True)
    assert found.left_out["untrained"] == ["t4"]
    assert "t5" in found.digests


def test_training_accuracy_must_be_known_to_leave_out_the_untrained(sweep, write_trial):
    write_trial(sweep, "t4", train_accuracy=None)
    with pytest.raises(AnalysisError) as caught:
        select(open_union([sweep]), exclude_untrained=True)
    expected = "--exclude-untrained: trial t4 recorded no training accuracy"
    assert str(caught.value) == expected


def test_nothing_left_to_analyse_says_why(sweep):
    with pytest.raises(AnalysisError) as caught:
        select(open_union([sweep]), "trial_id in ['t8', 't9']")
    assert "nothing to analyse: 4 not selected, 1 " in str(caught.value)
    with pytest.raises(AnalysisError, match="nothing to analyse: 6 not selected of 6 trials"):
        select(open_union([sweep]), "seed == 77")


@pytest.mark.parametrize(
    ("where", "exclude_untrained", "hint"),
    [
        ("seed == 77", False, "`--where` has to hold for some of them"),
        ("trial_id == 't9'", False, "`sweeper resume DIR` completes them"),
        ("trial_id == 't4'", True, "without `--exclude-untrained` they are analysed"),
    ],
)
def test_what_to_do_when_nothing_is_left_depends_on_why(
    tmp_path, write_trial, where, exclude_untrained, hint
):
    write_trial(tmp_path, "t4", train_accuracy=0.5)
    if "t9" in where:
        write_trial(tmp_path, "t9", state=None)
    with pytest.raises(AnalysisError, match="nothing to analyse") as caught:
        select(open_union([tmp_path]), where, exclude_untrained)
    assert caught.value.hint == hint


def test_a_where_that_is_neither_true_nor_false_is_refused(sweep):
    with pytest.raises(ExpressionError) as caught:
        select(open_union([sweep]), "seed")
    assert str(caught.value) == "--where: `seed` is `0`; true or false is needed"


def test_a_malformed_where_is_advised_about_the_shell(sweep):
    with pytest.raises(ExpressionError, match="not an expression") as caught:
        select(open_union([sweep]), "model.name ==")
    assert caught.value.hint.startswith("in a shell, put double quotes around")


def test_a_misspelt_name_in_where_is_refused_with_the_nearest(sweep):
    with pytest.raises(ExpressionError) as caught:
        select(open_union([sweep]), "model.nam == 'fc'")
    assert "unknown name `model.nam`" in str(caught.value)
    assert caught.value.hint == "did you mean `model.name`?"


def test_trials_of_other_samples_are_refused_by_name(sweep, write_trial):
    write_trial(sweep, "t5", n_samples=36)
    with pytest.raises(
        AnalysisError, match=r"differ in sample set: .*\(trial t0, t1, t2 and 1 more"
    ):
        select(open_union([sweep]))
    assert "t5" not in select(open_union([sweep]), "trial_id != 't5'").digests


def test_trials_of_other_classes_are_refused(sweep, write_trial):
    write_trial(sweep, "t5", class_names=("a", "b", "c", "d"))
    with pytest.raises(AnalysisError, match="differ in"):
        select(open_union([sweep]))


def test_a_split_that_was_not_recorded_is_refused(sweep):
    with pytest.raises(MissingStoreError, match="no predictions of split `train`"):
        select(open_union([sweep]), split="train")
