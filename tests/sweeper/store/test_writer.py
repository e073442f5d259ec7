import pickle
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sweeper.errors import FormatVersionError, StoreError
from sweeper.store import open_store, staging
from sweeper.store.moments import record_size
from sweeper.store.opening import create_store
from sweeper.store.schema import LOG_PROB_MIN, staging_key
from sweeper.store.staging import attempts
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter

CLAIM = """
import pickle, sys, time
from pathlib import Path
from sweeper.store.opening import create_store
from sweeper.store.writer import AttemptWriter

store, headers = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
print("ready", flush=True)
start = float(sys.stdin.readline())
objects = create_store(store)
for i, header in enumerate(headers):
    while time.time() < start + 0.03 * i:  # so that all claim each trial at once
        pass
    print(header.trial_id, AttemptWriter(objects, header, 0).attempt)
"""


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def spoilt(values, value):
    changed = values.copy()
    changed[5, 2] = value
    return changed


def metrics(loss=0.5):
    return {"test_loss": loss, "test_accuracy": 0.5}


# --- what is written is what is read ---------------------------------------------------------


def test_what_is_read_is_what_was_written_to_float16(tiny):
    trial = tiny.record().header.trial_id
    written = np.stack([tiny.predictions(1, i) for i in range(4)]).astype(np.float64)
    expected = written - np.log(np.exp(written).sum(axis=-1, keepdims=True))
    read = open_store(tiny.path).log_probs(trial, "test")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, atol=1e-6, rtol=1e-6)


def test_rows_that_are_read_sum_to_one(tiny):
    trial = tiny.record().header.trial_id
    sums = np.exp(open_store(tiny.path).log_probs(trial, "test").astype(np.float64)).sum(-1)
    np.testing.assert_allclose(sums, 1, atol=1e-6)


def test_over_confident_networks_are_stored_without_infinities(tiny, make_log_probs):
    writer = AttemptWriter(tiny.objects, tiny.header(), 0)
    values = make_log_probs(7, scale=1e6)
    assert (values == LOG_PROB_MIN).any()
    assert np.isfinite(values).all()
    writer.append(0, 0.0, metrics(), {"test": values})
    read = open_store(tiny.path).log_probs(writer.header.trial_id, "test", 0)[0]
    assert np.isfinite(read).all()
    assert read.min() == LOG_PROB_MIN
    np.testing.assert_allclose(np.exp(read.astype(np.float64)).sum(-1), 1, atol=1e-6)


def test_moments_are_read_as_written_with_metrics_that_are_not_finite(tiny):
    writer = AttemptWriter(tiny.objects, tiny.header(), 0)
    writer.append(0, 0.25, metrics(float("nan")), {"test": tiny.predictions(1, 0)})
    row = open_store(tiny.path).snapshots(writer.header.trial_id).iloc[0]
    assert (row["snapshot"], row["step"], row["epoch"], row["test_accuracy"]) == (0, 0, 0.25, 0.5)
    assert np.isnan(row["test_loss"])


# --- once is enough --------------------------------------------------------------------------


def test_a_snapshot_written_twice_with_equal_bytes_changes_nothing(tiny):
    writer = tiny.record()
    before = tree(tiny.path)
    tiny.append(writer, 1, 2)
    assert tree(tiny.path) == before


def test_a_snapshot_written_twice_with_other_bytes_is_refused_and_changes_nothing(tiny):
    writer = tiny.record()
    before = tree(tiny.path)
    values = tiny.predictions(1, 2).copy()
    values[3] = values[3, [1, 2, 0]]
    largest = np.abs(values.astype(float) - tiny.predictions(1, 2).astype(float)).max()
    with pytest.raises(StoreError) as caught:
        writer.append(2, 1.0, metrics(99.0), {"test": values})
    assert caught.value.where == f"trial {writer.header.trial_id}, snapshot 2"
    assert f"(max |difference| {largest:.3g})" in caught.value.found
    assert tree(tiny.path) == before


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda values: values[:-1], "shape (11, 3)"),
        (lambda values: values.T, "shape (3, 12)"),
        (lambda values: values.astype(np.float32), "type float32"),
        (lambda values: values.astype(">f2"), "type >f2"),
        (lambda values: spoilt(values, np.nan), "not finite"),
        (lambda values: spoilt(values, -np.inf), "not finite"),
    ],
    ids=["rows", "transposed", "float32", "big-endian", "nan", "inf"],
)
def test_predictions_of_a_wrong_kind_are_refused_before_anything_is_written(tiny, spoil, found):
    writer = AttemptWriter(tiny.objects, tiny.header(), 0)
    before = tree(tiny.path)
    with pytest.raises(StoreError) as caught:
        writer.append(1, 0.5, metrics(), {"test": spoil(tiny.predictions(1, 1))})
    assert f"trial {writer.header.trial_id}, snapshot 1" in str(caught.value)
    assert found in caught.value.found
    assert tree(tiny.path) == before


@pytest.mark.parametrize("snapshot", [1, 4])
def test_an_attempt_writes_only_planned_snapshots_from_its_first_on(tiny, snapshot):
    writer = AttemptWriter(tiny.objects, tiny.header(), 2)
    with pytest.raises(StoreError, match="not a snapshot of this attempt; 2 to 3"):
        tiny.append(writer, 1, snapshot)


# --- in a thread of its own ------------------------------------------------------------------


def test_a_thread_appends_the_bytes_that_the_caller_would(tiny, make_tiny, tmp_path):
    other = make_tiny(tmp_path / "other.zarr")
    key = tiny.record().header.trial_id
    writer = AttemptWriter(other.objects, other.header(), 0)
    with ThreadPoolExecutor(1) as thread:
        appended = [thread.submit(other.append, writer, 1, i) for i in range(4)]
        while not appended[-1].done():  # this thread goes on with zarr, as a reader
            open_store(tiny.path).log_probs(key, "test")
        for one in appended:
            one.result()
    size = record_size(("test_loss", "test_accuracy"))  # what differs is the time
    ours, theirs = (
        {name: data[size:] for name, data in tree(store.path / f"staging/{key}/1/test").items()}
        for store in (tiny, other)
    )
    assert ours == theirs
    assert verify(open_store(other.path)).damages == ()


def test_what_is_wrong_with_a_snapshot_is_raised_in_the_thread_that_appends_it(tiny):
    writer = tiny.record()
    values = {"test": tiny.predictions(1, 3)}
    with ThreadPoolExecutor(1) as thread:
        appended = thread.submit(writer.append, 2, 1.0, metrics(), values)
        with pytest.raises(StoreError, match="already stored with other"):
            appended.result()


# --- claims ----------------------------------------------------------------------------------


def test_four_processes_claim_twenty_trials_with_different_numbers(tiny, tmp_path):
    headers = [tiny.header(seed) for seed in range(20)]
    (tmp_path / "headers").write_bytes(pickle.dumps(headers))
    store = tmp_path / "raced.zarr"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(store), str(tmp_path / "headers")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    start = time.time() + 0.05
    for process in running:
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    claims = [line for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * 4
    assert len(set(claims)) == len(claims) == 80
    numbers = Counter(line.split()[1] for line in claims)
    assert numbers == {"1": 20, "2": 20, "3": 20, "4": 20}
    assert len(list((store / "samples").iterdir())) == 1


def test_a_claim_skips_numbers_that_others_take_meanwhile(tiny, monkeypatch):
    trial = tiny.record().header.trial_id
    tiny.record(first=2)
    with monkeypatch.context() as patch:  # as if both had been claimed after the listing
        patch.setattr(staging, "attempts", lambda objects, trial_id: [])
        late = AttemptWriter(tiny.objects, tiny.header(), 3)
    assert late.attempt == 3
    assert attempts(tiny.objects, trial) == [1, 2, 3]
    assert tiny.objects.attributes(staging_key(trial, 3))["first_snapshot"] == 3


def test_an_attempt_that_cannot_be_made_leaves_nothing_behind(tiny, make_samples, monkeypatch):
    targets = {"train": np.zeros(12, np.int64)}
    header = tiny.header(targets=targets, target_set=make_samples("train"))
    tiny.record()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for fails in ("create_array", "claim"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sweeper.store.writer.{fails}", full)
            with pytest.raises(OSError, match="No space left"):
                AttemptWriter(tiny.objects, header, 0)
        assert tiny.objects.names(f"staging/{header.trial_id}") == ["1"]


def test_a_set_of_samples_is_written_once(tiny):
    tiny.record(1)
    before = tree(tiny.path / "samples")
    tiny.record(2)
    assert tree(tiny.path / "samples") == before
    (folder,) = (tiny.path / "samples").iterdir()
    assert folder.name == tiny.samples["test"].hash


# --- the store itself ------------------------------------------------------------------------


def test_a_folder_of_something_else_is_not_made_a_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(StoreError, match="not a store"):
        create_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_crash_while_the_store_was_created_does_not_block_the_next_launch(tmp_path):
    (tmp_path / f"zarr.json.{'0' * 32}.partial").write_text('{"zarr_')
    create_store(tmp_path)
    assert open_store(tmp_path).trial_ids() == []


def test_a_store_of_a_newer_format_is_not_written_to(tiny):
    path = tiny.path / "zarr.json"
    path.write_text(path.read_text().replace('"sweeper_format": 1', '"sweeper_format": 2'))
    with pytest.raises(FormatVersionError) as caught:
        create_store(tiny.path)
    assert caught.value.exit_code == 2
    assert "`2`" in str(caught.value)
