import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.select import select
from analysis.union import open_union
from sweeper.errors import FormatVersionError, MissingStoreError, StoreError
from sweeper.store import Store, open_store, reader, schema
from sweeper.store import seal as sealing
from sweeper.store.predictions import read_staged
from sweeper.store.seal import is_sealed, seal
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter

SEAL_ALL = """
import sys
from pathlib import Path
from sweeper.store.local import LocalObjects
from sweeper.store.seal import seal

objects = LocalObjects(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for trial in sys.argv[2:]:
    seal(objects, trial, "complete", 1)
"""


# --- opening ---------------------------------------------------------------------------------


def test_a_store_is_found_in_its_sweep_directory(tiny):
    for place in (tiny.path.parent, tiny.path, f"file://{tiny.path}"):
        assert open_store(place).location == str(tiny.path)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_where_there_is_no_store_nothing_is_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingStoreError) as caught:
        open_store(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("version", ["2", "0", '"1"', "null"])
def test_another_format_is_refused(tiny, version):
    path = tiny.path / "zarr.json"
    path.write_text(path.read_text().replace('_format": 1', f'_format": {version}'))
    with pytest.raises((FormatVersionError, MissingStoreError)) as caught:
        open_store(tiny.path)
    assert caught.value.exit_code == 2


def test_a_newer_format_is_named_with_what_can_be_read(tiny):
    path = tiny.path / "zarr.json"
    path.write_text(path.read_text().replace('_format": 1', '_format": 2'))
    with pytest.raises(FormatVersionError, match=r"store format `2`; .* formats 1 to 1"):
        open_store(tiny.path)


# --- trials ----------------------------------------------------------------------------------


def test_an_empty_store_has_a_table_without_rows(tiny):
    table = open_store(tiny.path).trials()
    assert len(table) == 0
    assert table.index.name == "trial_id"
    assert {"state", "n_snapshots", "digest"} <= set(table.columns)


def test_trials_of_every_state_and_of_different_options_share_one_table(tiny):
    whole = tiny.sealed(1)
    part = tiny.record(2, stop=2).header.trial_id
    vit = {"model.name": "vit", "model.dim": 256, "seed": 3}
    diverged = tiny.record(3, stop=1, trial_id="t3", config=vit, identity=vit).header.trial_id
    seal(tiny.objects, diverged, "diverged", 1)
    claimed = AttemptWriter(tiny.objects, tiny.header(4), 0).header.trial_id
    table = open_store(tiny.path).trials()
    assert list(table.index) == sorted([whole, part, diverged, claimed])
    assert table["state"].to_dict() == {
        whole: "complete",
        part: "incomplete",
        diverged: "diverged",
        claimed: "incomplete",
    }
    assert table["n_snapshots"].to_dict() == {whole: 4, part: 2, diverged: 1, claimed: 0}
    assert table.loc[whole, "model.widths"] == (8, 8)
    assert table.loc[diverged, "model.dim"] == 256
    assert table["model.dim"].isna().sum() == 3
    assert table.loc[part, "test_loss"] == 0.5
    assert np.isnan(table.loc[claimed, "test_loss"])
    assert table["digest"].notna().to_dict()[whole]
    assert table["digest"].isna().sum() == 2


def test_a_folder_that_no_attempt_has_claimed_is_not_a_trial(tiny):
    (tiny.path / "staging/t0/1").mkdir(parents=True)
    assert open_store(tiny.path).trial_ids() == []


def test_unknown_trials_and_splits_are_refused_with_what_there_is(tiny):
    trial = tiny.sealed()
    store = open_store(tiny.path)
    with pytest.raises(MissingStoreError) as caught:
        store.log_probs(trial[:-1] + "x", "test")
    assert trial in caught.value.hint
    with pytest.raises(MissingStoreError, match="recorded: test"):
        store.log_probs(trial, "train")
    with pytest.raises(MissingStoreError, match="not complete"):
        store.trial_attributes("t0")


def test_epochs_below_0_are_recorded_sealed_verified_and_selected(tiny):
    epochs = [-2.0, -1.5, 0.0, 1.0]
    header = tiny.header()
    writer = AttemptWriter(tiny.objects, header, 0)
    for i, epoch in enumerate(epochs):
        metrics = {"test_loss": 1.0, "test_accuracy": 0.5}
        writer.append(i, epoch, metrics, {"test": tiny.predictions(1, i)})
    staged = open_store(tiny.path).snapshots(header.trial_id)
    assert staged["epoch"].tolist() == epochs
    seal(tiny.objects, header.trial_id, "complete", 1)
    store = open_store(tiny.path)
    assert store.trial_attributes(header.trial_id)["epochs"] == epochs
    assert store.snapshots(header.trial_id).equals(staged)
    assert verify(store).damages == ()
    rows = select(open_union([tiny.path])).rows
    assert rows["epoch"].tolist() == epochs
    assert rows["step"].tolist() == list(header.steps)


# --- samples ---------------------------------------------------------------------------------


def test_labels_ids_and_classes_are_those_of_the_samples(tiny):
    trial = tiny.sealed()
    store, expected = open_store(tiny.path), tiny.samples["test"]
    assert store.labels("test").dtype == np.int64
    np.testing.assert_array_equal(store.labels("test"), expected.labels)
    np.testing.assert_array_equal(store.sample_ids("test", trial), expected.ids)
    assert store.class_names(trial) == expected.class_names


def test_labels_of_differing_sample_sets_are_refused_and_the_sets_named(tiny, make_samples):
    one, other = tiny.sealed(1), make_samples(seed=5)
    second = tiny.record(2, sample_sets={"test": other}).header.trial_id
    store = open_store(tiny.path)
    with pytest.raises(StoreError) as caught:
        store.labels("test")
    for name in (tiny.samples["test"].hash, other.hash, one, second):
        assert name in str(caught.value)
    np.testing.assert_array_equal(store.labels("test", second), other.labels)


def test_labels_of_a_store_without_trials_are_missing(tiny):
    with pytest.raises(MissingStoreError, match="no trials"):
        open_store(tiny.path).labels("test")


# --- selections ------------------------------------------------------------------------------


SELECTIONS = st.one_of(
    st.slices(4),
    st.integers(-4, 3),
    st.lists(st.integers(-4, 3), max_size=5),
    st.lists(st.booleans(), min_size=4, max_size=4).map(np.array),
)
SAMPLES = st.one_of(
    st.slices(12),
    st.integers(-12, 11),
    st.lists(st.integers(-12, 11), max_size=15),
    st.lists(st.booleans(), min_size=12, max_size=12).map(np.array),
)


def keeping(chosen):
    """An index alone keeps its axis; an empty list has a type."""
    if isinstance(chosen, int):
        return [chosen]
    return chosen if isinstance(chosen, (slice, np.ndarray)) else np.array(chosen, dtype=int)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_selections_are_those_of_numpy(make_tiny, tmp_path, monkeypatch, is_sealed):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 150)
    tiny = make_tiny(tmp_path / "store")
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    store = open_store(tiny.path)
    full = store.log_probs(trial, "test")

    @settings(max_examples=30)
    @given(SELECTIONS, SAMPLES)
    def check(snapshots, samples):
        expected = full[keeping(snapshots)][:, keeping(samples)]
        np.testing.assert_array_equal(store.log_probs(trial, "test", snapshots, samples), expected)

    check()


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("chosen", [4, -5, [0, 4], [0.5], [True, False], "last"])
def test_snapshots_that_are_not_there_are_refused(tiny, is_sealed, chosen):
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    with pytest.raises(MissingStoreError, match=f"trial {trial}: snapshots .* 0 to 3"):
        open_store(tiny.path).log_probs(trial, "test", chosen)


def test_an_attempt_that_recorded_nothing_reads_as_no_snapshots(tiny):
    trial = AttemptWriter(tiny.objects, tiny.header(), 0).header.trial_id
    store = open_store(tiny.path)
    assert store.log_probs(trial, "test").shape == (0, 12, 3)
    assert store.log_probs(trial, "test", samples=[1, 2]).shape == (0, 2, 3)
    assert len(store.snapshots(trial)) == 0


def test_an_attempt_killed_before_its_arrays_reads_as_no_snapshots(tiny):
    trial = AttemptWriter(tiny.objects, tiny.header(), 0).header.trial_id
    tiny.objects.delete(f"staging/{trial}/1/test")
    assert open_store(tiny.path).log_probs(trial, "test").shape == (0, 12, 3)


# --- while others write ----------------------------------------------------------------------


def test_what_is_read_while_another_process_seals_is_whole(tiny):
    seeds = range(12)
    trials = [tiny.record(seed).header.trial_id for seed in seeds]
    expected = {trial: open_store(tiny.path).log_probs(trial, "test") for trial in trials}
    process = subprocess.Popen(
        [sys.executable, "-c", SEAL_ALL, str(tiny.path), *trials],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    n_rounds = 0
    while process.poll() is None or n_rounds == 0:
        store = open_store(tiny.path)
        assert store.trial_ids() == sorted(trials)
        for trial in trials:
            np.testing.assert_array_equal(store.log_probs(trial, "test"), expected[trial])
        assert set(store.trials()["n_snapshots"]) == {4}
        n_rounds += 1
    process.communicate()
    assert process.returncode == 0
    assert open_store(tiny.path).complete_ids() == sorted(trials)


def test_a_trial_sealed_between_two_steps_of_a_read_is_read_as_sealed(tiny, monkeypatch):
    writer = tiny.record()
    trial, store = writer.header.trial_id, open_store(tiny.path)
    expected = store.log_probs(trial, "test")

    def sealed_meanwhile(staged, *selection):
        seal(tiny.objects, trial, "complete", 1)
        return read_staged(staged, *selection)

    monkeypatch.setattr(reader, "read_staged", sealed_meanwhile)
    np.testing.assert_array_equal(store.log_probs(trial, "test"), expected)


def test_a_sweep_in_progress_does_not_make_a_trial_look_shorter(tiny, monkeypatch):
    trial = tiny.record().header.trial_id
    expected, find = open_store(tiny.path).snapshots(trial), Store._staged

    def half_swept(self, trial_id):
        if not is_sealed(tiny.objects, trial):
            with monkeypatch.context() as patch:
                patch.setattr(sealing, "remove_leftovers", lambda objects, key: {"digest": ""})
                seal(tiny.objects, trial, "complete", 1)
            (tiny.path / f"staging/{trial}/1/test/log_probs/c.3.0.0").unlink()
        return find(self, trial_id)

    monkeypatch.setattr(Store, "_staged", half_swept)
    assert open_store(tiny.path).snapshots(trial).equals(expected)


def test_a_trial_sealed_between_two_listings_is_listed(tiny, monkeypatch):
    trial = tiny.record().header.trial_id
    listed = Store.complete_ids

    def sealed_afterwards(self):
        found = listed(self)
        seal(tiny.objects, trial, "complete", 1)
        return found

    monkeypatch.setattr(Store, "complete_ids", sealed_afterwards)
    assert open_store(tiny.path).trial_ids() == [trial]
