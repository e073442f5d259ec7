"""A sweep's embedding in one file, and sweeps that are placed in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import ahead, maps, stages
from analysis.cli import app
from analysis.inpca import inpca
from analysis.map_file import Map, read_map
from analysis.provenance import read_table
from analysis.tiles import open_distances
from sweeper.errors import AnalysisError, FormatVersionError, StoreError
from sweeper.store import open_store

AXES = ["pc1", "pc2", "pc3"]


@pytest.fixture
def embedded(sweep: Path) -> Path:
    stages.distances(sweep)
    stages.embed(sweep, 3)
    return sweep


def frozen(sweep: Path, n_landmarks: int = 300) -> Path:
    [path] = maps.freeze(sweep, n_landmarks)
    return path


def projected(path: Path, place: Path) -> tuple[pd.DataFrame, dict]:
    [table] = maps.project(path, str(place))
    return read_table(table)


@pytest.mark.parametrize("n_landmarks", [5, 12, 300])
@pytest.mark.parametrize("weigh", [None, "trials"])
def test_the_maps_own_snapshots_are_placed_where_they_are_within_the_stated_error(
    embedded, write_trial, n_landmarks, weigh
):
    write_trial(embedded, "t4", {"model.name": "cnn", "seed": 9}, n_snapshots=9)
    stages.distances(embedded)
    stages.embed(embedded, 3, weigh=weigh)
    path = frozen(embedded, n_landmarks)
    table, about = projected(path, embedded)
    expected = pd.read_parquet(embedded / "analysis" / "embedding.parquet")
    pd.testing.assert_frame_equal(table[list(expected)[:6]], expected[list(expected)[:6]])
    off = np.abs(table[AXES].to_numpy() - expected[AXES].to_numpy()).max(axis=0)
    stated = np.array(about["parameters"]["axis_error"])
    assert (off <= stated).all()
    if n_landmarks == 300:  # all 29 snapshots
        assert stated.max() < 1e-5
    else:
        assert (off > stated / 1.01).all()  # it is the largest error, not more
    found = read_map(path)
    assert (found.axis_rms <= found.axis_error).all()
    assert (table["misfit"] <= found.misfit).mean() == pytest.approx(0.99, abs=0.05)


def test_another_sweep_is_placed_by_its_distances_to_the_landmarks(embedded, tmp_path, write_trial):
    path = frozen(embedded)
    other = tmp_path / "other"
    p = write_trial(other, "t7", {"model.name": "cnn"}, n_snapshots=6)
    write_trial(other, "t8", {"model.name": "cnn"}, "diverged")
    table, about = projected(path, other)
    store = open_store(embedded)
    q = np.concatenate([store.log_probs(t, "test") for t in ("t0", "t1", "t2", "t3")])
    coefficient = np.exp((p.astype(float)[:, None] + q.astype(float)[None]) / 2).sum(-1)
    d = -np.log(coefficient).mean(-1)
    expected = inpca(open_distances(embedded), 3).project(d)
    assert table[AXES].to_numpy() == pytest.approx(expected, abs=2e-3)  # float16 rows, as they are
    assert list(table["trial_id"]) == ["t7"] * 6
    assert about["left_out"] == {"diverged": ["t8"]}
    assert about["inputs"]["map"] == read_map(path).about["provenance"]["fingerprint"]


def test_memory_decides_nothing_but_how_much_is_read_and_placed_at_once(
    embedded, tmp_path, write_trial, monkeypatch
):
    path, other, asked = frozen(embedded, 10), tmp_path / "other", []
    write_trial(other, "t6", n_snapshots=6)
    write_trial(other, "t7", n_snapshots=5)
    whole, _ = projected(path, other)
    (other / "analysis" / "projection.parquet").unlink()
    monkeypatch.setattr(maps, "ROWS", 4)
    monkeypatch.setattr(maps, "budget", lambda memory: asked.append(memory) or 140_000)
    parts, _ = projected(path, other)
    assert asked == [None]
    assert parts[AXES].to_numpy() == pytest.approx(whole[AXES].to_numpy(), abs=1e-5)
    (other / "analysis" / "projection.parquet").unlink()
    monkeypatch.setattr(maps, "budget", lambda memory: 1000)
    with pytest.raises(AnalysisError, match=r"trial t6: .* too little memory"):
        projected(path, other)


def test_a_snapshot_that_holds_no_distributions_is_named(
    embedded, tmp_path, write_trial, monkeypatch
):
    path, read = frozen(embedded, 10), ahead.Rows._read

    def wrong(self, store, trial_id, snapshots, places, span, into):
        read(self, store, trial_id, snapshots, places, span, into)
        into.numpy()[places][2, 17] = np.nan

    write_trial(tmp_path / "other", "t7")
    monkeypatch.setattr(ahead.Rows, "_read", wrong)
    with pytest.raises(StoreError, match="trial t7, snapshot 2, sample 17: NaN"):
        projected(path, tmp_path / "other")


def test_several_stores_are_placed_in_the_order_of_their_rows(
    embedded, tmp_path, write_trial, copy_trials
):
    path = frozen(embedded, 10)
    expected, _ = projected(path, embedded)
    for name, trials in (("a", ("t0", "t2")), ("b", ("t1", "t3"))):
        write_trial(tmp_path / name, "t9x", state=None)
        copy_trials(embedded, trials, tmp_path / name)
    both = tmp_path / "both"
    stages.distances(both, places=[str(tmp_path / "a"), str(tmp_path / "b")])
    table, _ = projected(path, both)
    pd.testing.assert_frame_equal(table[[*AXES, "trial_id"]], expected[[*AXES, "trial_id"]])


def test_a_map_is_an_archive_that_numpy_reads(embedded):
    with np.load(frozen(embedded, 7), allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        assert file["log_probs"].shape == (7, 40, 4)
        assert file["log_probs"].dtype == np.float16
        store = open_store(embedded)
        for i, (trial_id, snapshot) in enumerate(
            zip(about["trial_id"], about["snapshot"], strict=True)
        ):
            stored = store.log_probs(trial_id, "test", snapshot, dtype="float16")
            assert np.array_equal(file["log_probs"][i], stored.reshape(40, 4))
        assert about["class_names"] == ["ape", "bee", "cat", "dog"]
        assert about["provenance"]["parameters"]["n_landmarks"] == 7


def test_what_is_unchanged_is_not_made_again(embedded):
    said: list[str] = []
    for _ in range(2):
        [path] = maps.freeze(embedded, 7, said.append)
        maps.project(path, str(embedded), say=said.append)
    assert [line for line in said if "unchanged" in line] == [
        "map: unchanged",
        "projection: unchanged",
    ]
    maps.freeze(embedded, 8, said.append)
    maps.project(path, str(embedded), say=said.append)
    assert len([line for line in said if "unchanged" in line]) == 2


def test_other_samples_and_other_classes_are_refused(embedded, tmp_path, write_trial):
    path = frozen(embedded)
    write_trial(tmp_path / "few", "t5", n_samples=24)
    with pytest.raises(AnalysisError, match=r"of other samples than the map's; the 40 of `.*npz`"):
        maps.project(path, str(tmp_path / "few"))
    write_trial(tmp_path / "named", "t5", class_names=("bee", "ape", "cat", "dog"))
    with pytest.raises(AnalysisError, match="of other classes than the map's; those of") as caught:
        maps.project(path, str(tmp_path / "named"))
    assert caught.value.hint
    assert not list(tmp_path.rglob("projection.parquet"))


def map_or_error(path: Path) -> Map | StoreError:
    try:
        return read_map(path)
    except StoreError as error:
        return error


def test_a_damaged_map_is_refused_unless_nothing_that_is_read_was_hit(embedded):
    path = frozen(embedded)
    whole, data = read_map(path), path.read_bytes()
    refused = 0
    for place in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[place] ^= 8
        path.write_bytes(damaged)
        found = map_or_error(path)
        if isinstance(found, StoreError):
            assert "no map, or damaged" in str(found)
            assert "sweeper analyze map DIR" in found.hint
            refused += 1
        else:
            assert found.about == whole.about
            assert np.array_equal(found.log_probs, whole.log_probs)
            assert np.array_equal(found.axis_error, whole.axis_error)
            for name, value in vars(whole.landmarks).items():
                assert np.array_equal(getattr(found.landmarks, name), value)
    assert refused > 0.8 * len(data) / 23
    maps.project(frozen(embedded), str(embedded))


def test_a_map_of_which_an_array_seems_smaller_is_refused(embedded):
    path = frozen(embedded)
    data = path.read_bytes()
    assert data.count(b"(20, 40, 4)") == 1
    path.write_bytes(data.replace(b"(20, 40, 4)", b"(20, 40, 0)"))
    with pytest.raises(StoreError, match=r"damaged \(`log_probs.npy` does not match its checksum"):
        read_map(path)


def test_what_is_no_map_is_refused(embedded, tmp_path):
    with pytest.raises(AnalysisError, match="no map here"):
        maps.project(tmp_path / "map.npz", str(embedded))
    with pytest.raises(AnalysisError, match="no map here"):
        maps.project(tmp_path, str(embedded))
    (tmp_path / "text").write_text("text")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    np.save(tmp_path / "array.npy", np.arange(3))
    for name in ("text", "other.npz", "array.npy"):
        with pytest.raises(StoreError, match="no map, or damaged"):
            maps.project(tmp_path / name, str(embedded))


def test_a_map_of_a_newer_format_is_refused(embedded, monkeypatch):
    monkeypatch.setattr(maps, "FORMAT", 2)
    path = frozen(embedded)
    with pytest.raises(FormatVersionError, match="a map of format `2`; this sweeper reads up to 1"):
        maps.project(path, str(embedded))


def test_a_map_that_would_be_no_good_is_refused(embedded, monkeypatch):
    with pytest.raises(AnalysisError, match="--landmarks: `3`; more than the 3 axes"):
        maps.freeze(embedded, 3)
    monkeypatch.setattr(maps, "MOST_BYTES", 5 * 2 * 40 * 4)
    with pytest.raises(AnalysisError, match=r"--landmarks: `6`, whose .*; up to 5, so that"):
        maps.freeze(embedded, 6)
    monkeypatch.setattr(maps, "MOST_BYTES", 5 * 8 * 20)
    with pytest.raises(AnalysisError, match=r"--landmarks: `6`, whose distances take .*; up to 5,"):
        maps.freeze(embedded, 6)


def test_an_embedding_of_an_earlier_version_is_to_be_made_again(embedded):
    path = embedded / "analysis" / "inpca.json"
    document = json.loads(path.read_text())
    del document["sha256"], document["explained_l1"]
    path.write_text(json.dumps(document))
    for stage in (stages.report, maps.freeze):
        with pytest.raises(StoreError, match="of an earlier version") as caught:
            stage(embedded)
        assert "sweeper analyze all" in caught.value.hint
    stages.embed(embedded, 3)
    stages.report(embedded)


def test_a_map_needs_the_embedding_and_the_predictions_it_is_of(sweep, write_trial):
    with pytest.raises(AnalysisError, match="no embedding here"):
        maps.freeze(sweep)
    stages.distances(sweep)
    stages.embed(sweep, 3)
    shutil.rmtree(sweep / "predictions.zarr" / "trials" / "t2")
    with pytest.raises(AnalysisError, match="trial t2 is embedded, but not as it is in the store"):
        maps.freeze(sweep)
    write_trial(sweep, "t2", n_snapshots=6)
    stages.distances(sweep)
    with pytest.raises(AnalysisError, match="the embedding is not of the distances here"):
        maps.freeze(sweep)


def test_the_commands_print_the_paths(embedded, tmp_path):
    result = CliRunner().invoke(app, ["map", str(embedded), "--landmarks", "9"])
    assert result.exit_code == 0, result.output
    path = result.stdout.strip()
    assert path == str(embedded / "analysis" / "map.npz")
    assert "9 landmarks" in result.stderr
    result = CliRunner().invoke(
        app, ["project", path, str(embedded), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out" / "analysis" / "projection.parquet")
    assert "fit worse than 99% of the map's own" in result.stderr
    with pytest.raises(AnalysisError, match="--out: missing"):
        maps.project(Path(path), "s3://bucket/sweep")
