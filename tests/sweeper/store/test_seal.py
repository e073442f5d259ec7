import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from sweeper.errors import HoleError, StoreError
from sweeper.store import open_store, schema
from sweeper.store.schema import digest, sealed_layout
from sweeper.store.seal import is_sealed, seal
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter

SEAL = """
import sys
from pathlib import Path
from sweeper.store.local import LocalObjects
from sweeper.store.seal import seal

objects = LocalObjects(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for pair in sys.argv[2:]:
    trial, _, attempt = pair.partition(":")
    print(trial, seal(objects, trial, "complete", int(attempt)), flush=True)
"""


def sealing(store, *pairs, crash_at=""):
    """A process that seals these trials (`trial:attempt`) when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", SEAL, str(store), *pairs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SWEEPER_CRASH_AT": crash_at},
    )


def files(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def published(tiny, trial):
    return tiny.objects.attributes(f"trials/{trial}")


# --- what is sealed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk_bytes", "shard_bytes", "n_shards"),
    [(1, 1, 12), (72, 150, 2), (120, 130, 3), (100, 10**6, 1)],
)
def test_what_is_sealed_is_what_was_staged_bit_for_bit(
    make_tiny, make_samples, tmp_path, monkeypatch, chunk_bytes, shard_bytes, n_shards
):
    monkeypatch.setattr(schema, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(schema, "SHARD_BYTES", shard_bytes)
    both = {"test": make_samples(), "train": make_samples("train", 17)}
    tiny = make_tiny(tmp_path / "store", both)
    trial = tiny.record(1).header.trial_id
    before = {split: open_store(tiny.path).log_probs(trial, split) for split in both}
    stored = np.stack([tiny.predictions(1, i) for i in range(4)])
    seal(tiny.objects, trial, "complete", 1)
    after = open_store(tiny.path)
    for split, expected in before.items():
        assert after.log_probs(trial, split).tobytes() == expected.tobytes()
    folder = tiny.path / f"trials/{trial}/1/test/log_probs"
    assert len(list(folder.glob("c.*"))) == n_shards
    raw = zarr.open_array(str(folder), mode="r")[:]
    assert raw.tobytes() == stored.tobytes()


def test_a_sealed_trial_leaves_nothing_staged(tiny):
    trial = tiny.sealed()
    assert files(tiny.path / "staging") == []
    assert files(tiny.path / f"trials/{trial}") == [
        "1/test/log_probs/c.0.0.0",
        "1/test/log_probs/zarr.json",
        "zarr.json",
    ]


def test_a_trial_of_the_size_of_cifar_is_at_most_five_objects(tiny, make_samples):
    classes = tuple("abcdefghij")
    samples = replace(make_samples(n_samples=10_000), class_names=classes)
    header = tiny.header(steps=range(67), metrics=(), sample_sets={"test": samples})
    writer = AttemptWriter(tiny.objects, header, 0)
    rng = np.random.default_rng(0)
    for snapshot in range(67):
        values = np.log(rng.dirichlet(np.ones(10), 10_000)).astype(np.float16)
        writer.append(snapshot, snapshot, {}, {"test": values})
    seal(tiny.objects, header.trial_id, "complete", 1)
    assert len(files(tiny.path / f"trials/{header.trial_id}")) <= 5
    read = open_store(tiny.path).log_probs(header.trial_id, "test", 66)
    assert read.shape == (1, 10_000, 10)


@pytest.mark.parametrize("shape", [(67, 10_000, 10), (90, 50_000, 1000), (5000, 3, 1000)])
def test_a_shard_is_whole_chunks_and_at_most_256_mib_or_one_sample(shape):
    chunk, shard = sealed_layout(shape)
    sample = shape[0] * shape[2] * 2
    assert shard % chunk == 0
    assert chunk * sample <= 2 << 20 or chunk == 1
    assert shard * sample <= 256 << 20 or shard == 1


def test_the_published_attributes_say_what_was_recorded(tiny):
    trial = tiny.sealed(seed=5)
    found = published(tiny, trial)
    header = tiny.header(5)
    assert found["config"] == header.config
    assert found["identity"] == header.identity
    assert found["state"] == "complete"
    assert found["steps"] == [0, 10, 20, 30]
    assert found["epochs"] == [0, 0.5, 1, 1.5]
    assert found["metrics"] == {
        "test_loss": [1, 1 / 2, 1 / 3, 1 / 4],
        "test_accuracy": [0, 0.1, 0.2, 0.3],
    }
    assert found["attempts"] == [
        {"attempt": 1, "first_snapshot": 0, "provenance": {"host": "here"}}
    ]
    assert found["sample_sets"] == {"test": tiny.samples["test"].hash}


def test_a_diverged_trial_is_sealed_with_what_it_has(tiny):
    writer = AttemptWriter(tiny.objects, tiny.header(), 0)
    tiny.append(writer, 1, 0)
    nan = {"test_loss": float("nan"), "test_accuracy": float("inf")}
    writer.append(1, 0.5, nan, {"test": tiny.predictions(1, 1)})
    trial = writer.header.trial_id
    seal(tiny.objects, trial, "diverged", 1)
    found = published(tiny, trial)
    assert (found["state"], found["n_snapshots"]) == ("diverged", 2)
    assert found["metrics"] == {"test_loss": [1, None], "test_accuracy": [0, None]}
    assert verify(open_store(tiny.path)).damages == ()


def test_a_hole_is_refused_with_its_trial_and_nothing_is_published(tiny):
    trial = tiny.record().header.trial_id
    (tiny.path / f"staging/{trial}/1/test/log_probs/c.1.0.0").unlink()
    with pytest.raises(HoleError, match=f"trial {trial}, snapshot 1"):
        seal(tiny.objects, trial, "complete", 1)
    assert not is_sealed(tiny.objects, trial)


@pytest.mark.parametrize(("stop", "state"), [(3, "complete"), (0, "complete"), (0, "diverged")])
def test_too_few_snapshots_are_refused(tiny, stop, state):
    trial = tiny.record(stop=stop).header.trial_id
    with pytest.raises(HoleError, match=f"{stop} snapshots staged"):
        seal(tiny.objects, trial, state, 1)
    assert not is_sealed(tiny.objects, trial)


def test_a_damaged_chunk_is_refused_and_what_is_staged_stays(tiny):
    trial = tiny.record().header.trial_id
    path = tiny.path / f"staging/{trial}/1/test/log_probs/c.2.0.0"
    path.write_bytes(path.read_bytes()[:-3])
    before = files(tiny.path / "staging")
    with pytest.raises(StoreError, match=f"trial {trial}, snapshot 2"):
        seal(tiny.objects, trial, "complete", 1)
    assert not is_sealed(tiny.objects, trial)
    assert files(tiny.path / "staging") == before


def test_sealing_takes_every_snapshot_from_its_owner(tiny):
    late = tiny.record(9, stop=3, trial_id=tiny.header().trial_id)
    tiny.record(1, first=2)
    tiny.append(late, 9, 3)
    trial = late.header.trial_id
    seal(tiny.objects, trial, "complete", 2)
    found = published(tiny, trial)
    owned = [tiny.predictions(seed, i) for i, seed in enumerate((9, 9, 1, 1))]
    expected = [hashlib.sha256(values.tobytes()).hexdigest() for values in owned]
    assert found["snapshot_hashes"] == {"test": expected}
    assert [attempt["first_snapshot"] for attempt in found["attempts"]] == [0, 2]


def test_a_late_attempt_changes_nothing_after_sealing(tiny):
    late = tiny.record(9, stop=2, trial_id=tiny.header().trial_id)
    trial = late.header.trial_id
    second = tiny.record(1)
    digest_ = seal(tiny.objects, trial, "complete", second.attempt)
    before = open_store(tiny.path).log_probs(trial, "test")
    for snapshot in (2, 3):
        tiny.append(late, 9, snapshot)
    assert seal(tiny.objects, trial, "diverged", late.attempt) == digest_
    store = open_store(tiny.path)
    np.testing.assert_array_equal(store.log_probs(trial, "test"), before)
    assert store.trials().loc[trial, "state"] == "complete"
    assert files(tiny.path / "staging") == []
    assert verify(store).damages == ()


# --- crashes and races -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "is_published"),
    [("seal-arrays", False), ("seal-publish", True), ("seal-removed", True)],
)
def test_a_seal_killed_at_any_step_is_finished_by_the_next_one(
    tiny, make_tiny, tmp_path, step, is_published
):
    undisturbed = make_tiny(tmp_path / "other.zarr")
    expected = published(undisturbed, undisturbed.sealed())["digest"]
    trial = tiny.record().header.trial_id
    before = open_store(tiny.path).log_probs(trial, "test")
    process = sealing(tiny.path, f"{trial}:1", crash_at=step)
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    assert is_sealed(tiny.objects, trial) == is_published
    np.testing.assert_array_equal(open_store(tiny.path).log_probs(trial, "test"), before)
    assert verify(open_store(tiny.path)).damages == ()
    attempt = 1 if is_published else tiny.record(first=4).attempt
    assert seal(tiny.objects, trial, "complete", attempt) == expected
    np.testing.assert_array_equal(open_store(tiny.path).log_probs(trial, "test"), before)
    assert files(tiny.path / "staging") == []
    assert len(files(tiny.path / f"trials/{trial}")) == 3
    assert verify(open_store(tiny.path)).orphans == ()


def test_sealing_again_gives_the_digest_of_an_undisturbed_seal(tiny, make_tiny, tmp_path):
    undisturbed = make_tiny(tmp_path / "other.zarr")
    expected = published(undisturbed, undisturbed.sealed())["digest"]
    trial = tiny.record().header.trial_id
    assert seal(tiny.objects, trial, "complete", 1) == expected
    assert seal(tiny.objects, trial, "complete", 1) == expected


def test_an_attempt_that_another_took_over_from_seals_nothing(tiny):
    trial = tiny.record().header.trial_id
    tiny.record(first=2, stop=3)
    with pytest.raises(StoreError, match="attempt 2 has taken over from attempt 1"):
        seal(tiny.objects, trial, "diverged", 1)
    assert not is_sealed(tiny.objects, trial)
    assert verify(open_store(tiny.path)).damages == ()


def test_two_processes_that_seal_one_trial_publish_one_result(tiny):
    trials = [tiny.record(seed).header.trial_id for seed in range(8)]
    for seed in range(8):
        tiny.record(seed, first=2)
    running = [
        sealing(tiny.path, *(f"{trial}:{attempt}" for trial in trials)) for attempt in (1, 2)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:  # both at once
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in running]
    # The older attempt may only find what the newer one has published already.
    assert running[1].returncode == 0
    assert len(outputs[1]) == 8
    assert outputs[0] == outputs[1][: len(outputs[0])]
    assert files(tiny.path / "staging") == []
    assert all(len(files(tiny.path / f"trials/{trial}")) == 3 for trial in trials)
    assert verify(open_store(tiny.path)).damages == ()


# --- the digest ------------------------------------------------------------------------------


def test_the_digest_does_not_tell_attempts_times_or_shards(tiny, make_tiny, tmp_path, monkeypatch):
    one = published(tiny, tiny.sealed())
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 72)
    other = make_tiny(tmp_path / "other.zarr")
    other.record(stop=3)
    trial = other.record(first=1, provenance={"host": "there"}).header.trial_id
    seal(other.objects, trial, "complete", 2)
    two = published(other, trial)
    assert one["times"] != two["times"]
    assert len(files(other.path / f"trials/{trial}")) > 3
    assert one["digest"] == two["digest"]


def test_the_digest_tells_every_value_step_epoch_and_metric(tiny):
    found = published(tiny, tiny.sealed())
    parts = {key: found[key] for key in ("snapshot_hashes", "steps", "epochs", "metrics")}

    def changed(key, change):
        document = json.loads(json.dumps(parts))
        change(document[key])
        return digest(*document.values())

    digests = {
        digest(*parts.values()),
        changed("steps", lambda steps: steps.__setitem__(1, 11)),
        changed("epochs", lambda epochs: epochs.__setitem__(1, 0.5000001)),
        changed("metrics", lambda metrics: metrics["test_loss"].__setitem__(3, None)),
        changed("metrics", lambda metrics: metrics.update(extra=metrics.pop("test_loss"))),
        changed("snapshot_hashes", lambda hashes: hashes.update(train=hashes["test"])),
    }
    assert len(digests) == 6
    assert found["digest"] in digests


def test_the_digest_tells_one_value_of_one_snapshot(tiny, make_tiny, tmp_path):
    one = published(tiny, tiny.sealed())
    other = make_tiny(tmp_path / "other.zarr")
    writer = other.record(stop=3)
    values = other.predictions(1, 3).copy()
    values[11, 2] = np.nextafter(values[11, 2], np.float16(-100))
    writer.append(3, 1.5, {"test_loss": 0.25, "test_accuracy": 0.3}, {"test": values})
    seal(other.objects, writer.header.trial_id, "complete", 1)
    two = published(other, writer.header.trial_id)
    assert one["metrics"] == two["metrics"]
    assert one["snapshot_hashes"]["test"][:3] == two["snapshot_hashes"]["test"][:3]
    assert one["digest"] != two["digest"]
