"""A repair takes out what is damaged, all of it, and touches nothing else."""

import shutil

import numpy as np
import pytest

from sweeper.errors import ConfigError
from sweeper.journal import Tally
from sweeper.store import open_store
from sweeper.store.repair import repair
from sweeper.store.schema import samples_key
from sweeper.store.seal import seal
from sweeper.store.verify import verify

ARRAY = "1/test/log_probs"


def nothing(config):
    return []


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mend(tiny, samples=nothing):
    store = open_store(tiny.path)
    return repair(store, verify(store), samples)


def damages(tiny):
    return verify(open_store(tiny.path)).damages


@pytest.fixture
def others(tiny):
    """Healthy trials, sealed and staged; the check that they are as they were."""
    trials = [tiny.sealed(8), tiny.record(9, stop=3).header.trial_id]

    def healthy():
        files = tree(tiny.path)
        return {name: files[name] for name in files if {*trials} & {*name.split("/")}}

    before = healthy()
    assert before
    yield trials
    assert healthy() == before


@pytest.mark.parametrize(
    "name", ["zarr.json", "1/test/log_probs/c.0.0.0", "1/test/log_probs/zarr.json"]
)
@pytest.mark.parametrize("spoil", ["delete", "cut", "flip"])
def test_a_damaged_sealed_trial_is_run_again_and_no_other(tiny, others, name, spoil):
    trial = tiny.sealed()
    path = tiny.path / "trials" / trial / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.unlink() if spoil == "delete" else path.write_bytes(data if spoil == "flip" else data[:20])
    done = mend(tiny)
    assert (done.requeued, done.rewritten, done.left) == ([trial], [], [])
    assert damages(tiny) == ()
    assert open_store(tiny.path).trial_ids() == sorted(others)
    assert tiny.sealed() == trial  # a launch runs it again
    assert damages(tiny) == ()


@pytest.mark.parametrize(("snapshots", "left"), [([2], 2), ([3, 1], 1), ([0], 0)])
def test_of_an_unfinished_trial_what_is_before_the_damage_stays(tiny, others, snapshots, left):
    trial = tiny.record().header.trial_id
    for snapshot in snapshots:
        path = tiny.path / f"staging/{trial}/1/test/log_probs/c.{snapshot}.0.0"
        path.write_bytes(path.read_bytes()[:-1])
    assert mend(tiny).requeued == [trial]
    assert damages(tiny) == ()
    store = open_store(tiny.path)
    if not left:
        assert store.trial_ids() == sorted(others)
        return
    np.testing.assert_array_equal(
        store.log_probs(trial, "test", dtype="float16"),
        [tiny.predictions(1, i) for i in range(left)],
    )


def test_what_an_attempt_cannot_say_any_more_is_recorded_from_the_beginning(tiny, others):
    trial = tiny.record().header.trial_id
    tiny.record(first=2, stop=3)
    (tiny.path / f"staging/{trial}/2/zarr.json").unlink()
    assert mend(tiny).requeued == [trial]
    assert damages(tiny) == ()
    assert open_store(tiny.path).trial_ids() == sorted(others)


def test_a_cut_trial_goes_on_to_the_digest_of_an_undisturbed_one(tiny, make_tiny, tmp_path):
    other = make_tiny(tmp_path / "other.zarr")
    expected = other.objects.attributes(f"trials/{other.sealed()}")["digest"]
    trial = tiny.record().header.trial_id
    (tiny.path / f"staging/{trial}/1/test/log_probs/c.1.0.0").unlink()
    mend(tiny)
    writer = tiny.record(first=1)
    assert seal(tiny.objects, trial, "complete", writer.attempt) == expected


@pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])
def test_what_crashes_left_of_a_trial_that_is_taken_out_does_not_stay_behind_as_damage(
    tiny, others, is_sealed
):
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    left, kept = ("staging", "trials") if is_sealed else ("trials", "staging")
    tiny.objects.write(f"{left}/{trial}/1/test/log_probs/c.0.0.0", b"left over")
    tiny.objects.delete(f"{kept}/{trial}/1/test/log_probs/c.0.0.0")
    assert mend(tiny).requeued == [trial]
    assert damages(tiny) == ()
    assert trial not in open_store(tiny.path).trial_ids()


def test_a_damaged_set_of_samples_is_written_anew_from_the_data(tiny, others):
    samples = tiny.samples["test"]
    (folder,) = (tiny.path / samples_key(samples.hash)).glob("*/")
    (folder / "labels/c.0").write_bytes(b"")
    asked = []

    def made(config):
        asked.append(config["seed"])
        return [samples]

    done = mend(tiny, made)
    assert (done.requeued, done.rewritten, done.left) == ([], [samples.hash], [])
    assert len(asked) == 1  # both trials have the same data
    assert damages(tiny) == ()
    np.testing.assert_array_equal(open_store(tiny.path).labels("test"), samples.labels)


def test_an_absent_set_of_samples_is_written_anew_too(tiny, others):
    samples = tiny.samples["test"]
    shutil.rmtree(tiny.path / samples_key(samples.hash))
    assert mend(tiny, lambda config: [samples]).rewritten == [samples.hash]
    assert damages(tiny) == ()


def test_a_set_whose_data_is_not_here_is_left_as_it_is(tiny, others, make_samples):
    samples = tiny.samples["test"]
    path = tiny.path / samples_key(samples.hash) / "zarr.json"
    path.write_bytes(path.read_bytes()[:-9])

    def absent(config):
        raise ConfigError("data.name", "not here")

    for made in (nothing, absent, lambda config: [make_samples(seed=5)]):
        before = tree(tiny.path)
        assert [damage.key for damage in mend(tiny, made).left] == [samples.hash]
        assert tree(tiny.path) == before


def test_a_trial_of_a_newer_format_is_not_removed(tiny, others):
    trial = tiny.sealed()
    known = tiny.objects.attributes(f"trials/{trial}")
    del known["checksum"]
    (tiny.path / "trials" / trial / "zarr.json").unlink()
    tiny.objects.create_group(f"trials/{trial}", {**known, "format": 2})
    before = tree(tiny.path)
    done = mend(tiny)
    assert [damage.cure for damage in done.left] == ["upgrade"]
    assert "newer" in done.left[0].remedy
    assert tree(tiny.path) == before


@pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])
def test_a_damaged_import_is_taken_out_to_be_imported_again(tiny, others, is_sealed):
    imported = {"provenance": {"imported": {"file": "theirs.npz", "sha256": "0"}}}
    if is_sealed:
        trial = tiny.sealed(**imported)
        (shard,) = (tiny.path / f"trials/{trial}").rglob("c.0.0.0")
    else:
        trial = tiny.record(**imported).header.trial_id
        shard = tiny.path / f"staging/{trial}/{ARRAY}/c.0.0.0"
    shard.write_bytes(b"")
    (damage,) = damages(tiny)
    assert "sweeper import" in damage.remedy
    done = mend(tiny)
    assert (done.requeued, done.removed, done.left) == ([], [trial], [])
    assert damages(tiny) == ()


def test_a_trial_that_the_journal_has_complete_and_the_store_lost_is_found(tiny, others):
    gone, kept = tiny.sealed(1), tiny.sealed(2)
    shutil.rmtree(tiny.path / "trials" / gone)
    states = {gone: "complete", kept: "complete", "t0123456789ab": "failed"}
    tally = Tally(trials={trial: {"state": state, "t": 0.0} for trial, state in states.items()})
    (damage,) = verify(open_store(tiny.path), tally).damages
    assert (damage.key, damage.cure) == (gone, "rerun")
    assert "complete by the journal" in damage.found
