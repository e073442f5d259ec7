from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sweeper
from sweeper.errors import AnalysisError, ExpressionError, StoreError
from sweeper.store import export as exporting
from sweeper.store import open_store
from sweeper.store.export import export
from sweeper.store.writer import AttemptWriter


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def about(path):
    return json.loads(pq.read_schema(path).metadata[b"sweeper"])


def read(folder, name):
    return pd.read_parquet(folder / f"{name}.parquet")


@pytest.fixture
def three(tiny):
    """A store of two complete trials and one of two snapshots so far."""
    tiny.sealed(1)
    tiny.sealed(2)
    tiny.record(3, stop=2)
    return open_store(tiny.path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "export"


# --- what is written is what the store has ---------------------------------------------------


def test_trials_are_those_of_the_store_with_their_configuration_and_last_metrics(three, out):
    written = export(three, out)
    assert written == {out / "snapshots.parquet": 10, out / "trials.parquet": 3}
    found, expected = read(out, "trials").set_index("trial_id"), three.trials()
    assert list(found.index) == list(expected.index)
    assert list(found["state"]) == list(expected["state"])
    assert sorted(found["state"]) == ["complete", "complete", "incomplete"]
    for name in ("model.name", "seed", "epochs", "n_snapshots", "test_loss", "test_accuracy"):
        assert list(found[name]) == list(expected[name]), name
    assert found["digest"].dropna().to_dict() == expected["digest"].dropna().to_dict()
    assert [list(widths) for widths in found["model.widths"]] == [[8, 8]] * 3


def test_snapshots_are_those_of_the_store(three, out):
    export(three, out)
    found = read(out, "snapshots")
    assert list(dict.fromkeys(found["trial_id"])) == three.trial_ids()
    for trial_id, table in found.groupby("trial_id"):
        expected = three.snapshots(trial_id)
        pd.testing.assert_frame_equal(
            table.drop(columns="trial_id").reset_index(drop=True), expected, check_dtype=False
        )


def test_predictions_are_those_of_the_store_a_row_a_snapshot_and_sample(three, out):
    assert export(three, out, predictions=True)[out / "predictions.parquet"] == 10 * 12
    found = read(out, "predictions")
    for trial_id in three.trial_ids():
        rows = found[found["trial_id"] == trial_id]
        expected = three.log_probs(trial_id, "test")
        values = np.stack(rows["log_probs"]).reshape(expected.shape)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)
        n_snapshots = len(expected)
        np.testing.assert_array_equal(rows["snapshot"], np.repeat(np.arange(n_snapshots), 12))
        for column, stored in (
            ("sample_id", three.sample_ids("test", trial_id)),
            ("label", three.labels("test", trial_id)),
        ):
            np.testing.assert_array_equal(rows[column], np.tile(stored, n_snapshots))


def test_log_probs_are_lists_of_fixed_length_and_the_classes_are_named(three, out):
    export(three, out, predictions=True)
    field = pq.read_schema(out / "predictions.parquet").field("log_probs")
    assert field.type == pa.list_(pa.float32(), 3)
    assert about(out / "predictions.parquet")["class_names"] == ["ant", "bee", "cat"]


def test_the_files_say_of_what_they_were_made(three, out):
    export(three, out, where="seed < 3", predictions=True)
    for path in out.iterdir():
        found = about(path)
        assert found["store"] == os.path.abspath(three.location)
        assert found["version"] == sweeper.__version__
        assert found["where"] == "seed < 3"


def test_a_metric_that_is_not_finite_or_not_recorded_is_null(tiny, out):
    whole, part = AttemptWriter(tiny.objects, tiny.header(1), 0), tiny.header(2, metrics=("own",))
    values = {"test": tiny.predictions(1, 0)}
    whole.append(0, 0.0, {"test_loss": float("nan"), "test_accuracy": 0.5}, values)
    AttemptWriter(tiny.objects, part, 0).append(0, 0.0, {"own": 2.0}, values)
    export(open_store(tiny.path), out)
    for name in ("trials", "snapshots"):
        table = pq.read_table(out / f"{name}.parquet")
        rows = {row["trial_id"]: row for row in table.to_pylist()}
        assert rows[whole.header.trial_id]["test_loss"] is None
        assert rows[whole.header.trial_id]["own"] is None
        assert rows[part.trial_id]["test_accuracy"] is None
        assert rows[part.trial_id]["own"] == 2.0


def test_a_trial_that_has_recorded_nothing_yet_has_a_row_and_no_snapshots(tiny, out):
    AttemptWriter(tiny.objects, tiny.header(), 0)
    written = export(open_store(tiny.path), out, predictions=True)
    assert [
        written[out / f"{name}.parquet"] for name in ("trials", "snapshots", "predictions")
    ] == [
        1,
        0,
        0,
    ]
    assert read(out, "trials")["n_snapshots"].tolist() == [0]
    assert len(read(out, "snapshots")) == len(read(out, "predictions")) == 0


# --- one type a column -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "read_back"),
    [
        ([1, None, 3], pa.int64(), [1, None, 3]),
        ([1, 0.5, None], pa.float64(), [1.0, 0.5, None]),
        ([0.5, 1e-5], pa.float64(), [0.5, 1e-5]),
        (["a", None], pa.string(), ["a", None]),
        ([True, None], pa.bool_(), [True, None]),
        ([None, None], pa.string(), [None, None]),
        ([[8, 8], [], None], pa.list_(pa.int64()), [[8, 8], [], None]),
        ([[8], [0.5]], pa.list_(pa.float64()), [[8.0], [0.5]]),
        ([[[1], [2, 3]]], pa.list_(pa.list_(pa.int64())), [[[1], [2, 3]]]),
        (["epoch", [0.5, 1], None], pa.string(), ['"epoch"', "[0.5, 1]", None]),
        ([True, 2], pa.string(), ["true", "2"]),
        (["2", 2], pa.string(), ['"2"', "2"]),
        ([[1, "a"]], pa.string(), ['[1, "a"]']),
        ([2**64 + 1, 0], pa.string(), ["18446744073709551617", "0"]),
        ([2**53 + 1, 0.5], pa.string(), ["9007199254740993", "0.5"]),
    ],
    ids=str,
)
def test_a_configuration_column_has_one_type_that_loses_nothing(tiny, out, values, kind, read_back):
    for seed, value in enumerate(values):
        header = tiny.header(seed)
        tiny.sealed(seed, config={**header.config, "option": value})
    export(open_store(tiny.path), out)
    table = pq.read_table(out / "trials.parquet").sort_by("seed")
    assert table.schema.field("option").type == kind
    assert table.column("option").to_pylist() == read_back
    is_plain = read_back == values or kind != pa.string()
    assert about(out / "trials.parquet")["json"] == ([] if is_plain else ["option"])


# --- which trials ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "seeds"),
    [
        ("seed > 1", [2, 3]),
        ("state == 'complete'", [1, 2]),
        ("model.widths == [8, 8] and seed == 3", [3]),
        ("n_snapshots < 4 or seed == 1", [1, 3]),
    ],
)
def test_where_selects_rows_of_every_file(three, out, where, seeds):
    export(three, out, where, predictions=True)
    trials = read(out, "trials")
    assert sorted(trials["seed"]) == seeds
    for name in ("snapshots", "predictions"):
        assert set(read(out, name)["trial_id"]) == set(trials["trial_id"])


@pytest.mark.parametrize(
    ("where", "error", "found"),
    [
        ("seed > 99", AnalysisError, "`seed > 99` holds for none of 3 trials"),
        ("sead > 1", ExpressionError, "sead"),
        ("seed + 1", ExpressionError, "true or false is needed"),
        ("seed >", ExpressionError, "seed >"),
    ],
)
def test_what_selects_nothing_is_refused_and_writes_nothing(three, out, where, error, found):
    with pytest.raises(error) as caught:
        export(three, out, where)
    assert found in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert not out.exists()


def test_a_store_without_trials_is_refused(tiny, out):
    with pytest.raises(AnalysisError, match="no trials") as caught:
        export(open_store(tiny.path), out)
    assert "sweeper launch" in caught.value.hint
    assert not out.exists()


def test_predictions_of_other_classes_are_refused_before_anything_is_written(
    make_tiny, make_samples, tmp_path, out
):
    samples = make_samples()
    other = type(samples)("test", samples.labels, samples.ids, ("ant", "bee", "cow"))
    store = make_tiny(tmp_path / "store.zarr")
    store.sealed(1)
    store.sealed(2, sample_sets={"test": other})
    with pytest.raises(AnalysisError, match="differ in their classes") as caught:
        export(open_store(store.path), out, predictions=True)
    assert "--where" in caught.value.hint
    assert not out.exists()
    assert len(export(open_store(store.path), out, "seed == 2", predictions=True)) == 3
    assert len(export(open_store(store.path), out)) == 2, "without predictions they may differ"


# --- whole or not at all, in bounded memory ---------------------------------------------------


def test_damage_is_raised_and_the_files_that_were_there_stay(tiny, three, out):
    export(three, out, predictions=True)
    before = tree(out)
    for trial in three.complete_ids():
        (shard,) = (tiny.path / f"trials/{trial}").rglob("c.0.0.0")
        shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(StoreError, match=f"trial {three.complete_ids()[0]}"):
        export(open_store(tiny.path), out, predictions=True)
    assert tree(out) == before


def test_a_hole_is_raised_and_the_files_that_were_there_stay(tiny, three, out):
    export(three, out)
    before = tree(out)
    trial = tiny.record(5).header.trial_id
    (tiny.path / f"staging/{trial}/1/test/log_probs/c.1.0.0").unlink()
    with pytest.raises(StoreError) as caught:
        export(open_store(tiny.path), out)
    assert caught.value.exit_code == 5
    assert tree(out) == before


def test_an_interrupted_export_leaves_what_was_there_and_nothing_else(tiny, three, out):
    export(three, out, predictions=True)
    before = tree(out)
    tiny.sealed(6)

    def interrupt(done, total):
        assert 0 < done < total == 14
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(open_store(tiny.path), out, predictions=True, progress=interrupt)
    assert tree(out) == before


def test_a_row_group_holds_some_predictions_of_one_trial(three, out, monkeypatch):
    monkeypatch.setattr(exporting, "GROUP_BYTES", 3 * 12 * 3 * 4)
    sizes = []
    export(three, out, predictions=True, progress=lambda done, total: sizes.append(done))
    file = pq.ParquetFile(out / "predictions.parquet")
    rows = [file.metadata.row_group(i).num_rows // 12 for i in range(file.num_row_groups)]
    assert np.cumsum(rows).tolist() == sizes
    assert max(rows) == 3
    for i in range(file.num_row_groups):
        assert len(set(file.read_row_group(i).column("trial_id").to_pylist())) == 1
    assert len(file.read()) == 120


def test_files_of_an_earlier_export_are_replaced(tiny, three, out):
    export(three, out)
    tiny.sealed(7)
    assert export(open_store(tiny.path), out)[out / "trials.parquet"] == 4
    assert len(read(out, "trials")) == 4
    assert sorted(path.name for path in out.iterdir()) == ["snapshots.parquet", "trials.parquet"]
