"""Several stores read as one are the store that has all their trials."""

from __future__ import annotations

import pickle
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import stages
from analysis.blocks import DistanceBlocks
from analysis.select import Selection, select
from analysis.squares import Layout
from analysis.tiles import Tiling, open_distances
from analysis.union import open_union
from sweeper.errors import AnalysisError, HoleError, MissingStoreError, StoreError

ALL = ("t0", "t1", "t2", "t3", "t8", "t9")
K = 3


def blocks_of(selection: Selection) -> DistanceBlocks:
    homes = {trial_id: home.store.location for trial_id, home in selection.homes.items()}
    return DistanceBlocks(homes, selection.rows, selection.split, partial(int, 1 << 30))


def distances_of(blocks: DistanceBlocks) -> np.ndarray:
    M = len(blocks.rows)
    *_, part = blocks.compute(((0, 0),), Layout(Tiling(M, M)), 100)
    [piece] = part.pieces
    return piece.D


@pytest.fixture
def shards(sweep, tmp_path, copy_trials):
    """The sweep in two parts, `t1` in both; `t9` is unfinished."""
    copy_trials(sweep, ("t1", "t3", "t8"), tmp_path / "a")
    copy_trials(sweep, ("t0", "t1", "t2", "t9"), tmp_path / "b")
    return [tmp_path / "a", tmp_path / "b"]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries({t: st.sets(st.integers(0, K - 1), min_size=1) for t in ALL}),
    st.permutations(range(K)),
)
def test_a_store_split_at_random_with_overlaps_is_analysed_as_the_whole(
    sweep, copy_trials, parts, order
):
    whole = select(open_union([sweep]))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(K):
            trials = [trial_id for trial_id in ALL if i in parts[trial_id]]
            copy_trials(sweep, trials, Path(folder, str(i)))
        found = select(open_union([Path(folder, str(i)) for i in order]))
        D = distances_of(blocks_of(found))
    pd.testing.assert_frame_equal(found.rows, whole.rows)
    columns = whole.trials.columns.drop("sweep")
    pd.testing.assert_frame_equal(found.trials[columns], whole.trials[columns])
    assert found.digests == whole.digests
    assert found.left_out == whole.left_out
    np.testing.assert_array_equal(D, distances_of(blocks_of(whole)))
    first = {t: next(str(i) for i in order if i in parts[t]) for t in whole.digests}
    assert {t: home.name for t, home in found.homes.items()} == first
    n_more = sum(len(parts[t]) - 1 for t in whole.digests)
    assert sum(place["repeated"] for place in found.places(Path(folder))) == n_more


def test_every_artifact_of_the_parts_is_that_of_the_whole(sweep, shards, tmp_path):
    out = tmp_path / "merged"
    for folder, places in ((sweep, ()), (out, list(map(str, shards)))):
        stages.distances(folder, places=places)
        stages.embed(folder)
    whole, merged = open_distances(sweep), open_distances(out)
    np.testing.assert_array_equal(merged[:, :], whole[:, :])
    np.testing.assert_array_equal(merged.references, whole.references)
    assert merged.about["fingerprint"] == whole.about["fingerprint"]
    for name in ("snapshots", "embedding", "references"):
        tables = [pd.read_parquet(x / "analysis" / f"{name}.parquet") for x in (sweep, out)]
        pd.testing.assert_frame_equal(*tables)


def test_what_is_counted_once_is_said_and_recorded(shards, tmp_path):
    said: list[str] = []
    stages.distances(tmp_path / "m", say=said.append, places=list(map(str, shards)))
    assert "in several places, taken once: 1 (t1)" in said
    assert open_distances(tmp_path / "m").about["places"] == [
        {"place": "../a", "trials": 2, "repeated": 0},
        {"place": "../b", "trials": 2, "repeated": 1},
    ]


def test_a_place_that_adds_nothing_computes_nothing(shards, sweep, tmp_path):
    a, b = map(str, shards)
    stages.distances(tmp_path / "m", places=[b, a])
    stages.embed(tmp_path / "m")
    stages.report(tmp_path / "m")
    said: list[str] = []
    stages.distances(tmp_path / "m", say=said.append, places=[b, a, str(sweep)])
    stages.embed(tmp_path / "m", say=said.append)
    stages.report(tmp_path / "m", say=said.append)
    unchanged = [f"{stage}: unchanged" for stage in ("distances", "inpca", "report")]
    assert [line for line in said if "unchanged" in line] == unchanged
    assert [x["place"] for x in open_distances(tmp_path / "m").about["places"]] == [
        "../b",
        "../a",
        "../tiny",
    ]


def test_what_is_unfinished_in_one_place_and_finished_in_another_is_finished(tmp_path, write_trial):
    write_trial(tmp_path / "a", "t1", state=None)
    write_trial(tmp_path / "a", "t2", state=None)
    write_trial(tmp_path / "b", "t1")
    for places in (["a", "b"], ["b", "a"]):
        found = select(open_union([tmp_path / name for name in places]))
        assert list(found.digests) == ["t1"]
        assert found.left_out == {"incomplete": ["t2"]}
        assert found.homes["t1"].name == "b"
        assert found.repeated == {}


def test_a_trial_that_came_out_differently_is_refused_until_one_is_chosen(tmp_path, write_trial):
    for place, n_snapshots in (("a", 5), ("b", 6)):
        write_trial(tmp_path / place, "t1", n_snapshots=n_snapshots)
        write_trial(tmp_path / place, f"t-{place}")
    union = open_union([tmp_path / "b", tmp_path / "a"])
    first, second = (s.store.trials().loc["t1", "digest"][:12] for s in union.sources)
    with pytest.raises(AnalysisError) as caught:
        select(union)
    assert str(caught.value) == (
        f"trial t1: complete in `{tmp_path / 'b'}` with digest {first} and in `{tmp_path / 'a'}` "
        f"with digest {second}; one outcome a trial"
    )
    hint = caught.value.hint
    assert "on GPUs repeated trials agree only to rounding" in hint
    where = hint.rpartition("--where ")[2].strip('"')
    chosen = select(union, where)
    assert list(chosen.digests) == ["t-a", "t-b", "t1"]
    assert chosen.digests["t1"].startswith(second if "sweep == 'a'" in where else first)
    assert set(select(union, "trial_id != 't1'").digests) == {"t-a", "t-b"}


def test_how_many_trials_came_out_differently_is_said(tmp_path, write_trial):
    for place, n_snapshots in (("a", 5), ("b", 6)):
        for trial_id in ("t1", "t2", "t3"):
            write_trial(tmp_path / place, trial_id, n_snapshots=n_snapshots)
    with pytest.raises(AnalysisError, match=r"trial t1: .*; so are 2 more trials; one outcome"):
        select(open_union([tmp_path / "a", tmp_path / "b"]))


def test_where_may_say_which_place(shards):
    union = open_union(shards)
    assert set(select(union, "sweep == 'b'").digests) == {"t0", "t1", "t2"}
    assert set(select(union, "sweep == 'a' and model.name == 'vit'").digests) == {"t3"}


def test_an_axis_that_one_grid_has_alone_is_none_elsewhere(sweep, tmp_path, write_trial):
    write_trial(tmp_path / "deep", "t5", {"model.name": "deep", "model.depth": 3})
    write_trial(tmp_path / "deep", "t6", {"model.name": "deep", "model.widths": [8, 8]})
    union = open_union([sweep, tmp_path / "deep"])
    assert list(select(union, "model.depth == 3").digests) == ["t5"]
    assert list(select(union, "model.widths == [8, 8]").digests) == ["t6"]
    assert list(select(union, "model.depth == None").digests) == ["t0", "t1", "t2", "t3", "t6"]
    assert list(select(union, "model.depth > 2 or seed == 1").digests) == ["t1", "t5"]


@pytest.mark.parametrize("changed", [{"n_samples": 36}, {"class_names": ("a", "b", "c", "d")}])
def test_places_of_other_samples_or_classes_are_named(sweep, tmp_path, write_trial, changed):
    write_trial(tmp_path / "other", "t5", **changed)
    with pytest.raises(AnalysisError, match="trials differ in") as caught:
        select(open_union([sweep, tmp_path / "other"]))
    for place, trials in ((sweep, "t0, t1, t2 and 1 more"), (tmp_path / "other", "t5")):
        assert f"(trial {trials} in `{place}`)" in str(caught.value)


def test_one_store_named_twice_is_taken_once_and_said(shards, tmp_path):
    (tmp_path / "link").symlink_to(shards[0])
    said: list[str] = []
    inside = shards[0] / "predictions.zarr"
    union = open_union([shards[0], inside, tmp_path / "link", shards[1]], said.append)
    assert [source.place for source in union.sources] == list(map(str, shards))
    assert said == [
        f"{place}: the same place as `{shards[0]}`, taken once"
        for place in (inside, tmp_path / "link")
    ]


def test_places_have_the_shortest_names_that_set_them_apart(tmp_path, write_trial):
    paths = [tmp_path / "x" / "s", tmp_path / "y" / "s", tmp_path / "z"]
    for path in paths:
        write_trial(path, "t0")
    assert [s.name for s in open_union(paths[::2]).sources] == ["s", "z"]
    union = open_union(paths)
    assert [s.name for s in union.sources] == ["x/s", "y/s", f"{tmp_path.name}/z"]
    assert open_union([*paths, *_more(tmp_path, write_trial)]).name.endswith(" and 2 more")


def _more(folder: Path, write_trial) -> list[Path]:
    for name in ("u", "v"):
        write_trial(folder / name, "t0")
    return [folder / "u", folder / "v"]


def test_the_report_shows_the_places_where_they_differ(shards, sweep, tmp_path):
    from analysis.contents import gather

    for folder, places in ((tmp_path / "m", list(map(str, shards))), (sweep, ())):
        stages.distances(folder, places=places)
        stages.embed(folder)
    merged = gather(tmp_path / "m", tmp_path / "m" / "analysis")
    assert merged.name == "a, b"
    assert merged.varying == ["model.name", "optim.lr", "seed", "sweep"]
    assert dict(merged.trials["sweep"]) == {
        **{"t0": "b", "t1": "a", "t2": "b", "t3": "a"},
        **{"t8": "a", "t9": "b"},
    }
    whole = gather(sweep, sweep / "analysis")
    assert (whole.name, whole.varying) == ("tiny", ["model.name", "optim.lr", "seed"])


def test_blocks_of_several_stores_work_after_pickling(shards):
    blocks = blocks_of(select(open_union(shards)))
    copied = pickle.loads(pickle.dumps(blocks))
    np.testing.assert_array_equal(distances_of(copied), distances_of(blocks))


def test_damage_in_one_of_several_places_is_met(shards, tmp_path):
    [chunk] = (shards[1] / "predictions.zarr" / "trials" / "t2").rglob("log_probs/c.*")
    chunk.unlink()
    with pytest.raises(HoleError, match="t2"):
        stages.distances(tmp_path / "m", places=list(map(str, shards)))


def test_a_place_without_a_store_is_named(shards, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nothing"):
        with pytest.raises(MissingStoreError, match=f"{name}: no prediction store here"):
            open_union([shards[0], tmp_path / name])
    with pytest.raises(StoreError):
        stages.distances(tmp_path / "m", places=[str(shards[0]), str(tmp_path / "empty")])
    assert not (tmp_path / "m").exists()
