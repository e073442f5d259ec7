"""The labels that a trial was trained on are stored with it where they are not the clean ones."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import HoleError, MissingStoreError, StoreError
from sweeper.store import open_store
from sweeper.store.arrays import write_whole
from sweeper.store.repair import repair
from sweeper.store.schema import samples_key
from sweeper.store.seal import is_sealed, seal
from sweeper.store.staging import attempts
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter

N_TRAIN = 30
PHASES = ("train", "corner")

RUN = """
import pickle, sys
from pathlib import Path
from sweeper.store.local import LocalObjects
from sweeper.store.seal import seal
from sweeper.store.writer import AttemptWriter

objects, header = LocalObjects(Path(sys.argv[1])), pickle.loads(Path(sys.argv[2]).read_bytes())
if sys.argv[3] == "claim":
    AttemptWriter(objects, header, 0)
else:
    seal(objects, header.trial_id, "complete", 1)
"""


def labels(seed, n=N_TRAIN):
    return np.random.default_rng(seed).integers(0, 3, n)


TARGETS = {"train": labels(11), "corner": labels(12)}


@pytest.fixture
def noisy(make_samples):
    """What a header says of a trial that was trained on other labels."""
    return {"targets": TARGETS, "target_set": make_samples("train", N_TRAIN)}


def stored(tiny, is_sealed, **changes):
    """A trial, and where its targets are."""
    trial = tiny.sealed(**changes) if is_sealed else tiny.record(**changes).header.trial_id
    if is_sealed:
        return trial, tiny.path / f"trials/{trial}/1"
    (folder,) = (tiny.path / f"staging/{trial}").glob("targets-*")
    return trial, folder


def run(tiny, tmp_path, header, what, crash_at):
    """Claim or seal in a process that is killed at this step."""
    (tmp_path / "header").write_bytes(pickle.dumps(header))
    command = [sys.executable, "-c", RUN, str(tiny.path), str(tmp_path / "header"), what]
    done = subprocess.run(command, env={**os.environ, "SWEEPER_CRASH_AT": crash_at})
    assert done.returncode == -signal.SIGKILL


def damages(tiny):
    return verify(open_store(tiny.path)).damages


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_read(tiny, trial):
    store = open_store(tiny.path)
    assert store.target_phases(trial) == PHASES
    for phase, expected in TARGETS.items():
        found = store.targets(trial, phase)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


either = pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])


# --- what is written is what is read ---------------------------------------------------------


@either
def test_targets_are_read_as_written_beside_the_clean_labels(tiny, noisy, is_sealed):
    trial, _ = stored(tiny, is_sealed, **noisy)
    check_read(tiny, trial)
    store, clean = open_store(tiny.path), noisy["target_set"]
    for trial_id in (trial, None):
        np.testing.assert_array_equal(store.labels("train", trial_id), clean.labels)
        np.testing.assert_array_equal(store.sample_ids("train", trial_id), clean.ids)
    assert damages(tiny) == ()


@either
def test_targets_alone_are_no_train_predictions(tiny, noisy, is_sealed):
    trial, _ = stored(tiny, is_sealed, **noisy)
    store = open_store(tiny.path)
    for ask in (store.sample_set, lambda split, trial: store.log_probs(trial, split)):
        with pytest.raises(MissingStoreError, match="no predictions of split `train`"):
            ask("train", trial)


@either
def test_targets_and_train_predictions_share_their_samples(
    make_tiny, make_samples, tmp_path, noisy, is_sealed
):
    both = {"test": make_samples(), "train": noisy["target_set"]}
    tiny = make_tiny(tmp_path / "both", both)
    trial, _ = stored(tiny, is_sealed, **noisy)
    check_read(tiny, trial)
    assert len(list((tiny.path / "samples").iterdir())) == 2
    assert open_store(tiny.path).log_probs(trial, "train").shape == (4, N_TRAIN, 3)
    assert damages(tiny) == ()


@either
def test_a_phase_without_targets_was_given_the_clean_labels(tiny, noisy, is_sealed):
    trial, _ = stored(tiny, is_sealed, **noisy | {"targets": {"corner": TARGETS["corner"]}})
    store = open_store(tiny.path)
    assert store.target_phases(trial) == ("corner",)
    with pytest.raises(MissingStoreError, match="no targets of phase `train`; stored: corner"):
        store.targets(trial, "train")


def test_a_sealed_trial_leaves_its_targets_and_nothing_staged(tiny, noisy):
    trial = tiny.sealed(**noisy)
    assert files(tiny.path / "staging") == []
    assert files(tiny.path / f"trials/{trial}") == [
        "1/corner/targets/c.0",
        "1/corner/targets/zarr.json",
        "1/test/log_probs/c.0.0.0",
        "1/test/log_probs/zarr.json",
        "1/train/targets/c.0",
        "1/train/targets/zarr.json",
        "zarr.json",
    ]


def test_a_trial_without_targets_says_and_stores_nothing_of_them(tiny):
    trial = tiny.record().header.trial_id
    group = tiny.path / f"staging/{trial}/1/zarr.json"
    assert " ".join(json.loads(group.read_text())["attributes"]) == (
        "checksum format trial first_snapshot schema config identity steps metrics sample_sets "
        "provenance claim attempt"
    )
    assert tiny.objects.names(f"staging/{trial}") == ["1"]
    seal(tiny.objects, trial, "complete", 1)
    group = tiny.path / f"trials/{trial}/zarr.json"
    assert " ".join(json.loads(group.read_text())["attributes"]) == (
        "checksum format trial state schema config identity arrays sample_sets n_snapshots steps "
        "epochs times metrics snapshot_hashes digest attempts"
    )
    assert len(list((tiny.path / "samples").iterdir())) == 1
    store = open_store(tiny.path)
    assert store.target_phases(trial) == ()
    with pytest.raises(MissingStoreError, match="stored: none"):
        store.targets(trial, "train")


def test_the_digest_compares_trajectories_and_the_hashes_labels(tiny, make_tiny, tmp_path, noisy):
    other, third = make_tiny(tmp_path / "other.zarr"), make_tiny(tmp_path / "third.zarr")
    swapped = {"train": TARGETS["corner"], "corner": TARGETS["train"]}
    found = [
        open_store(store.path).trial_attributes(store.sealed(**changes))
        for store, changes in (
            (tiny, {}),
            (other, noisy),
            (third, noisy | {"targets": swapped}),
        )
    ]
    assert len({one["digest"] for one in found}) == 1
    assert found[1]["targets"]["train"] == found[2]["targets"]["corner"]
    assert found[1]["targets"] != found[2]["targets"]


# --- what is refused -------------------------------------------------------------------------


def outside(value):
    changed = labels(11)
    changed[7] = value
    return changed


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"targets": {"train": labels(11, 29)}}, "shape (29,)"),
        ({"targets": {"train": labels(11)[:, None]}}, "shape (30, 1)"),
        ({"targets": {"train": labels(11).astype(np.int32)}}, "type int32"),
        ({"targets": {"train": labels(11).astype(float)}}, "type float64"),
        ({"targets": {"train": TARGETS["train"], "corner": outside(3)}}, "corner targets from 0"),
        ({"targets": {"train": outside(-1)}}, "train targets from -1"),
        ({"target_set": None}, "targets without their samples"),
        ({"targets": {}}, "samples of no targets"),
    ],
    ids=["short", "column", "int32", "float", "above", "below", "no samples", "no targets"],
)
def test_what_is_no_targets_is_refused_before_anything_is_written(tiny, noisy, change, found):
    before = files(tiny.path)
    with pytest.raises(StoreError) as caught:
        tiny.record(**noisy | change)
    assert found in caught.value.found
    assert f"trial {tiny.header().trial_id}" == caught.value.where
    assert files(tiny.path) == before


def test_targets_of_another_training_set_than_the_predictions_are_refused(
    make_tiny, make_samples, tmp_path, noisy
):
    both = {"test": make_samples(), "train": make_samples("train", N_TRAIN, seed=5)}
    with pytest.raises(StoreError, match="one training set"):
        make_tiny(tmp_path / "both", both).record(**noisy)


# --- crashes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "n_claimed"), [("targets:1", 0), ("targets:2", 0), ("claim:1", 1)]
)
def test_a_claim_killed_at_any_step_is_followed_by_a_whole_one(
    tiny, tmp_path, noisy, step, n_claimed
):
    header = tiny.header(**noisy)
    trial, folder = header.trial_id, tiny.path / f"staging/{header.trial_id}"
    run(tiny, tmp_path, header, "claim", step)
    left = [f"staging/{trial}/{path.name}" for path in folder.glob("targets-*")]
    assert len(left) == 1
    report = verify(open_store(tiny.path))
    assert (report.n_trials, report.n_snapshots, report.damages) == (n_claimed, 0, ())
    assert list(report.orphans) == ([] if n_claimed else left)
    assert open_store(tiny.path).trial_ids() == [trial][:n_claimed]
    if n_claimed:
        check_read(tiny, trial)
    attempt = tiny.record(**noisy).attempt
    assert attempt == n_claimed + 1
    check_read(tiny, trial)
    seal(tiny.objects, trial, "complete", attempt)
    check_read(tiny, trial)
    report = verify(open_store(tiny.path))
    assert (report.damages, report.orphans) == ((), ())
    assert files(tiny.path / "staging") == []


@pytest.mark.parametrize("step", ["seal-arrays", "seal-publish", "seal-removed"])
def test_a_seal_killed_at_any_step_loses_no_targets(tiny, tmp_path, noisy, step):
    header = tiny.record(**noisy).header
    run(tiny, tmp_path, header, "seal", step)
    check_read(tiny, header.trial_id)
    assert damages(tiny) == ()
    seal(tiny.objects, header.trial_id, "complete", 1)
    check_read(tiny, header.trial_id)
    report = verify(open_store(tiny.path))
    assert (report.damages, report.orphans) == ((), ())


# --- several attempts ------------------------------------------------------------------------


def test_attempts_that_share_a_trial_share_its_labels(tiny, noisy):
    tiny.record(stop=2, **noisy)
    trial = tiny.record(first=2, **noisy).header.trial_id
    check_read(tiny, trial)
    seal(tiny.objects, trial, "complete", 2)
    check_read(tiny, trial)


@pytest.mark.parametrize("older", ["other", "none"])
def test_snapshots_trained_on_other_labels_than_the_rest_are_refused(tiny, noisy, older):
    changed = noisy | {"targets": {**TARGETS, "corner": labels(13)}}
    tiny.record(stop=2, **{"other": changed, "none": {}}[older])
    trial = tiny.record(first=2, **noisy).header.trial_id
    for ask in (
        lambda: open_store(tiny.path).targets(trial, "train"),
        lambda: seal(tiny.objects, trial, "complete", 2),
    ):
        with pytest.raises(StoreError, match=f"trial {trial}, snapshot 0: attempt 1 was trained"):
            ask()
    assert not is_sealed(tiny.objects, trial)
    (damage,) = damages(tiny)
    assert (damage.where, damage.snapshot) == (f"trial {trial}", None)
    assert "other labels" in damage.found


def test_an_attempt_that_owns_nothing_may_have_had_other_labels(tiny, noisy):
    late = tiny.record(stop=2, **noisy | {"targets": {"train": labels(13)}})
    trial = tiny.record(**noisy).header.trial_id
    tiny.append(late, 1, 2)
    check_read(tiny, trial)
    assert damages(tiny) == ()
    seal(tiny.objects, trial, "complete", 2)
    check_read(tiny, trial)


def test_a_late_attempt_changes_no_targets_after_sealing(tiny, noisy):
    trial = tiny.sealed(**noisy)
    late = AttemptWriter(tiny.objects, tiny.header(**noisy | {"targets": {"train": labels(13)}}), 0)
    check_read(tiny, trial)
    seal(tiny.objects, trial, "complete", late.attempt)
    check_read(tiny, trial)
    assert attempts(tiny.objects, trial) == []
    assert verify(open_store(tiny.path)).orphans == ()


# --- damage ----------------------------------------------------------------------------------


@either
def test_no_flipped_bit_of_targets_is_read_or_verified(tiny, noisy, is_sealed):
    trial, folder = stored(tiny, is_sealed, **noisy)
    tiny.record(2, stop=0, **noisy)  # healthy neighbours are not blamed
    path = folder / "train/targets/c.0"
    whole = path.read_bytes()

    @settings(max_examples=12)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def check(position, bit):
        content = bytearray(whole)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        assert [(one.where, one.snapshot) for one in damages(tiny)] == [(f"trial {trial}", None)]
        with pytest.raises(StoreError, match=f"trial {trial}"):
            open_store(tiny.path).targets(trial, "train")

    check()


@pytest.mark.parametrize("part", ["", "corner", "corner/targets/zarr.json", "corner/targets/c.0"])
@either
def test_absent_targets_are_found(tiny, noisy, is_sealed, part):
    trial, folder = stored(tiny, is_sealed, **noisy)
    path = folder / part
    if part:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    else:
        for phase in PHASES:
            shutil.rmtree(path / phase)
    found = damages(tiny)
    assert [(one.where, one.snapshot) for one in found] == [(f"trial {trial}", None)] * len(found)
    assert len(found) == (1 if part else 2)
    error = StoreError if part.endswith("c.0") else HoleError
    with pytest.raises(error, match="corner/targets"):
        open_store(tiny.path).targets(trial, "corner")


@either
def test_swapped_phases_are_found(tiny, noisy, is_sealed):
    _, folder = stored(tiny, is_sealed, **noisy)
    for old, new in (("train", "aside"), ("corner", "train"), ("aside", "corner")):
        (folder / new).mkdir(exist_ok=True)
        (folder / old / "targets").rename(folder / new / "targets")
    assert {one.found for one in damages(tiny)} == {
        f"{phase}/targets differ from their hash" for phase in PHASES
    }


@pytest.mark.parametrize("spoil", ["truncate", "absent"])
def test_damaged_targets_are_not_sealed_and_stay(tiny, noisy, spoil):
    trial, folder = stored(tiny, False, **noisy)
    path = folder / "corner/targets/c.0"
    path.unlink() if spoil == "absent" else path.write_bytes(path.read_bytes()[:-3])
    before = files(tiny.path / "staging")
    with pytest.raises(StoreError, match=f"trial {trial}: corner/targets"):
        seal(tiny.objects, trial, "complete", 1)
    assert not is_sealed(tiny.objects, trial)
    assert files(tiny.path / "staging") == before


@either
def test_an_absent_training_set_is_found(tiny, noisy, is_sealed):
    trial, _ = stored(tiny, is_sealed, **noisy)
    shutil.rmtree(tiny.path / samples_key(noisy["target_set"].hash))
    assert {(one.where, one.found) for one in damages(tiny)} == {
        (
            f"sample set {noisy['target_set'].hash}",
            f"absent, but the predictions of trial {trial} are of it",
        )
    }
    with pytest.raises(HoleError, match=f"sample set {noisy['target_set'].hash}"):
        open_store(tiny.path).labels("train", trial)


def test_targets_of_another_number_of_samples_are_found(tiny, make_samples, noisy):
    trial, _ = stored(tiny, True, **noisy)
    longer = make_samples("train", N_TRAIN + 1)
    tiny.record(2, targets={"train": labels(1, N_TRAIN + 1)}, target_set=longer, stop=0)
    attributes = tiny.objects.attributes(f"trials/{trial}")
    del attributes["checksum"]
    (tiny.path / f"trials/{trial}/zarr.json").unlink()
    tiny.objects.create_group(f"trials/{trial}", attributes | {"target_set": longer.hash})
    assert {one.found for one in damages(tiny)} == {
        f"30 {phase}/targets instead of 31" for phase in PHASES
    }


def test_the_remedy_removes_the_damage_and_only_its_trial(tiny, noisy):
    trial, folder = stored(tiny, True, **noisy)
    other = tiny.sealed(2, **noisy)
    shutil.rmtree(folder / "train/targets")
    write_whole(tiny.objects, f"trials/{trial}/1/train/targets", labels(99))
    store = open_store(tiny.path)
    repair(store, verify(store), lambda config: [])
    assert damages(tiny) == ()
    assert open_store(tiny.path).trial_ids() == [other]
