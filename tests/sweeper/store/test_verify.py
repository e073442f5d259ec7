import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import FormatVersionError, MissingStoreError, StoreError
from sweeper.store import open_store, schema
from sweeper.store import verify as verifying
from sweeper.store.arrays import write_whole
from sweeper.store.repair import repair
from sweeper.store.schema import samples_key
from sweeper.store.seal import seal
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter


def damages(tiny):
    return verify(open_store(tiny.path)).damages


def named(tiny):
    """(where, snapshot) of every damage."""
    return [(damage.where, damage.snapshot) for damage in damages(tiny)]


def stored(tiny, is_sealed, **changes):
    """A trial and the folder of its predictions."""
    trial = tiny.sealed(**changes) if is_sealed else tiny.record(**changes).header.trial_id
    place = "trials" if is_sealed else "staging"
    return trial, tiny.path / f"{place}/{trial}/1/test/log_probs"


def republish(tiny, trial, **changes):
    """Sealed attributes as a faulty writer would have made them, checksum and all."""
    attributes = tiny.objects.attributes(f"trials/{trial}")
    del attributes["checksum"]
    (tiny.path / f"trials/{trial}/zarr.json").unlink()
    tiny.objects.create_group(f"trials/{trial}", attributes | changes)


either = pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])


# --- health ----------------------------------------------------------------------------------


def test_an_empty_store_is_healthy(tiny):
    report = verify(open_store(tiny.path))
    assert (report.n_trials, report.n_snapshots, report.damages, report.orphans) == (0, 0, (), ())


def test_a_store_of_trials_in_every_state_is_healthy(make_tiny, make_samples, tmp_path):
    both = {"test": make_samples(), "train": make_samples("train", 20)}
    tiny = make_tiny(tmp_path / "store", both)
    tiny.sealed(1)
    tiny.record(2, stop=3)
    tiny.record(2, first=1, stop=2)
    trial = tiny.record(3, stop=2).header.trial_id
    seal(tiny.objects, trial, "diverged", 1)
    AttemptWriter(tiny.objects, tiny.header(4), 0)
    report = verify(open_store(tiny.path))
    assert (report.n_trials, report.n_snapshots, report.damages, report.orphans) == (4, 8, (), ())


def test_a_healthy_store_in_several_shards_is_healthy(tiny, monkeypatch):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 72)
    tiny.sealed()
    monkeypatch.undo()
    assert damages(tiny) == ()


def test_leftovers_of_crashes_are_listed_and_are_not_damage(tiny):
    sealed, staged = tiny.sealed(1), tiny.record(2).header.trial_id
    expected = [
        f"staging/{sealed}/1/zarr.json.{'a' * 32}.partial",  # killed while it swept
        f"staging/t0/1/zarr.json.{'b' * 32}.partial",  # killed while it claimed
        f"trials/{staged}/1/test/log_probs/c.0.0.0.{'c' * 32}.partial",  # killed while it sealed
        f"samples/s0/ab/labels/zarr.json.{'d' * 32}.partial",
    ]
    for name in expected:
        (tiny.path / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny.path / name).write_bytes(b"half")
    report = verify(open_store(tiny.path))
    assert report.damages == ()
    assert {*expected, f"staging/{sealed}", f"trials/{staged}"} == set(report.orphans)
    assert report.n_trials == 2


def test_verify_changes_nothing(tiny):
    _, folder = stored(tiny, True)
    (folder / "c.0.0.0").write_bytes(b"damaged")
    before = {path: path.stat().st_mtime_ns for path in tiny.path.rglob("*")}
    damages(tiny)
    assert {path: path.stat().st_mtime_ns for path in tiny.path.rglob("*")} == before


def test_a_newer_store_is_not_verified(tiny):
    path = tiny.path / "zarr.json"
    path.write_text(path.read_text().replace('_format": 1', '_format": 2'))
    with pytest.raises(FormatVersionError) as caught:
        verify(open_store(tiny.path))
    assert caught.value.exit_code == 2


# --- predictions -----------------------------------------------------------------------------


@either
def test_every_flipped_bit_of_a_chunk_is_found(tiny, is_sealed):
    trial, folder = stored(tiny, is_sealed)
    tiny.record(2)  # healthy neighbours are not blamed
    path = folder / ("c.0.0.0" if is_sealed else "c.2.0.0")
    whole = path.read_bytes()

    @settings(max_examples=40)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def check(position, bit):
        content = bytearray(whole)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        assert named(tiny) == [(f"trial {trial}", None if is_sealed else 2)]

    check()


@pytest.mark.parametrize("n_bytes", [0, 3, 40])
@either
def test_a_truncated_chunk_is_found(tiny, is_sealed, n_bytes):
    trial, folder = stored(tiny, is_sealed)
    path = folder / ("c.0.0.0" if is_sealed else "c.2.0.0")
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert named(tiny) == [(f"trial {trial}", None if is_sealed else 2)]


@either
def test_a_deleted_chunk_is_found(tiny, is_sealed, monkeypatch):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 72)
    trial, folder = stored(tiny, is_sealed)
    (folder / "c.1.0.0").unlink() if not is_sealed else (folder / "c.0.2.0").unlink()
    assert named(tiny) == [(f"trial {trial}", None if is_sealed else 1)]


def test_a_shard_of_another_trial_is_found_with_its_snapshots(tiny):
    (_, first), (other, second) = stored(tiny, True), stored(tiny, True, seed=2)
    shutil.copy(first / "c.0.0.0", second / "c.0.0.0")
    assert set(named(tiny)) == {(f"trial {other}", i) for i in (0, 1, 2, 3, None)}


def test_a_damaged_record_of_a_moment_is_found(tiny):
    trial, folder = stored(tiny, False)
    data = bytearray((folder / "c.2.0.0").read_bytes())
    data[9] ^= 1  # of the epoch
    (folder / "c.2.0.0").write_bytes(data)
    assert named(tiny) == [(f"trial {trial}", 2)]


def test_a_snapshot_in_the_place_of_another_is_found(tiny):
    trial, folder = stored(tiny, False)
    shutil.copy(folder / "c.1.0.0", folder / "c.2.0.0")
    assert named(tiny) == [(f"trial {trial}", 2)]


# --- metadata --------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["delete", "empty", "list", "cut"])
@pytest.mark.parametrize("place", ["trial", "array"])
@either
def test_deleted_or_unreadable_metadata_are_found(tiny, is_sealed, place, spoil):
    trial, folder = stored(tiny, is_sealed)
    group = folder.parent.parent.parent if is_sealed else folder.parent.parent
    path = (group if place == "trial" else folder) / "zarr.json"
    if spoil == "delete":
        path.unlink()
    else:
        text = path.read_text()
        path.write_text({"empty": "", "list": f"[{text}]", "cut": text[:-30]}[spoil])
    assert {where for where, _ in named(tiny)} == {f"trial {trial}"}


@either
def test_every_altered_byte_of_a_trials_metadata_is_found(tiny, is_sealed):
    trial, folder = stored(tiny, is_sealed)
    group = folder.parent.parent.parent if is_sealed else folder.parent.parent
    path = group / "zarr.json"
    whole = path.read_bytes()

    @settings(max_examples=40)
    @given(st.integers(0, len(whole) - 1), st.sampled_from(b'0123456789abcdef"[]{},: \n\x00\xff'))
    def check(position, byte):
        content = bytearray(whole)
        content[position] = byte
        path.write_bytes(content)
        expected = [] if content == whole else [(f"trial {trial}", None)]
        assert named(tiny) == expected

    check()


@pytest.mark.parametrize(
    ("old", "new"),
    [('"little"', '"big"'), ('"float16"', '"int16"'), ("\n    12,", "\n    6,")],
    ids=["endian", "type", "shape"],
)
@either
def test_altered_metadata_of_an_array_are_found(tiny, is_sealed, old, new):
    trial, folder = stored(tiny, is_sealed)
    path = folder / "zarr.json"
    path.write_text(path.read_text().replace(old, new))
    assert {where for where, _ in named(tiny)} == {f"trial {trial}"}


def test_a_lost_claim_of_one_of_several_attempts_is_found(tiny):
    trial, _ = stored(tiny, False)
    tiny.record(first=2)
    (tiny.path / f"staging/{trial}/2/zarr.json").unlink()
    assert named(tiny) == [(f"trial {trial}", None)]


def test_swapped_attempts_are_found(tiny):
    trial, _ = stored(tiny, False)
    tiny.record(first=2)
    folder = tiny.path / f"staging/{trial}"
    (folder / "1").rename(folder / "3")
    (folder / "2").rename(folder / "1")
    (folder / "3").rename(folder / "2")
    assert (f"trial {trial}", None) in named(tiny)


@either
def test_swapped_trial_folders_are_found_in_both(tiny, is_sealed):
    (one, _), (other, _) = stored(tiny, is_sealed), stored(tiny, is_sealed, seed=2)
    folder = tiny.path / ("trials" if is_sealed else "staging")
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)
    assert {where for where, _ in named(tiny)} == {f"trial {one}", f"trial {other}"}


@either
def test_a_configuration_of_another_id_is_found(tiny, is_sealed):
    identity = {"model.name": "fc", "seed": 8}
    trial, _ = stored(tiny, is_sealed, identity=identity, config=identity)
    (damage,) = damages(tiny)
    assert damage.where == f"trial {trial}"
    assert "its configuration has the id" in damage.found


def test_a_configuration_that_contradicts_its_identity_is_found(tiny):
    config = {"model.name": "fc", "model.widths": [8, 8], "seed": 9}
    stored(tiny, True, config=config)
    (damage,) = damages(tiny)
    assert "contradicts its identity in seed" in damage.found


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "0" * 63 + "1"},
        {"steps": [0, 10, 20, 31]},
        {"epochs": [0, 0.5, 1, 1.25]},
        {"metrics": {}},
        {"times": []},
        {"n_snapshots": 3},
        {"arrays": "2"},
        {"snapshot_hashes": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_sealed_attributes_that_do_not_agree_are_found(tiny, change):
    trial, _ = stored(tiny, True)
    republish(tiny, trial, **change)
    assert {where for where, _ in named(tiny)} == {f"trial {trial}"}


@pytest.mark.parametrize("n_attempts", [0, 1])
def test_an_attempt_that_is_claimed_meanwhile_is_no_damage(tiny, monkeypatch, n_attempts):
    for _ in range(n_attempts):
        tiny.record(stop=2)
    trial, find, claimed = tiny.header().trial_id, verifying.attempts, []
    if not n_attempts:  # its folder comes a moment before its claim
        (tiny.path / f"staging/{trial}").mkdir(parents=True)

    def claimed_meanwhile(objects, trial_id):
        if not claimed:
            claimed.append(tiny.record(first=n_attempts, stop=2).attempt)
        return find(objects, trial_id)

    monkeypatch.setattr(verifying, "attempts", claimed_meanwhile)
    assert damages(tiny) == ()
    assert claimed


@either
def test_a_disk_that_fails_is_named_and_nothing_is_taken_out_for_it(tiny, is_sealed, monkeypatch):
    trial, _ = stored(tiny, is_sealed)
    other, kind = tiny.sealed(2), type(tiny.objects)
    read = kind.read

    def failing(self, key):
        if trial in key and "/c." in key:
            raise OSError(5, "Input/output error")
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "read", failing)
        store = open_store(tiny.path)
        report = verify(store)
        done = repair(store, report, lambda config: [])
    assert {(damage.key, damage.cure) for damage in report.damages} == {(trial, "copy")}
    assert "cannot be read (Input/output error)" in report.damages[0].found
    assert (done.requeued, len(done.left)) == ([], len(report.damages))
    assert damages(tiny) == ()
    assert open_store(tiny.path).trial_ids() == sorted([trial, other])


def test_attempts_of_other_samples_are_not_put_together(tiny, make_samples):
    trial = tiny.record(stop=2).header.trial_id
    others = {"test": make_samples(seed=9)}
    writer = AttemptWriter(tiny.objects, tiny.header(sample_sets=others), 2)
    for snapshot in (2, 3):
        tiny.append(writer, 1, snapshot)
    assert {damage.key for damage in damages(tiny)} == {trial}
    with pytest.raises(StoreError, match="attempt 1 is of other samples than attempt 2"):
        seal(tiny.objects, trial, "complete", 2)


# --- samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["labels", "ids"])
def test_swapped_labels_or_ids_are_found(tiny, part):
    stored(tiny, True)
    samples = tiny.samples["test"]
    key = samples_key(samples.hash)
    (folder,) = (tiny.path / key).glob("*/")
    shutil.rmtree(folder / part)
    values = getattr(samples, part).copy()
    values[[0, 1]] = values[[1, 0]] + np.array([0, 1])  # differ even if the two are equal
    write_whole(tiny.objects, f"{key}/{folder.name}/{part}", values)
    assert named(tiny) == [(f"sample set {samples.hash}", None)]


@pytest.mark.parametrize("name", ["zarr.json", "labels/c.0", "labels/zarr.json", "ids/c.0"])
@pytest.mark.parametrize("spoil", ["delete", "alter"])
def test_damaged_samples_are_found(tiny, name, spoil):
    stored(tiny, True)
    key = tiny.samples["test"].hash
    folder = tiny.path / "samples" / key
    path = folder / name if name == "zarr.json" else next(folder.glob("*/")) / name
    data = path.read_bytes()
    path.unlink() if spoil == "delete" else path.write_bytes(data.replace(data[4:8], b"zzzz"))
    assert named(tiny) == [(f"sample set {key}", None)]


def test_predictions_of_another_number_of_samples_are_found(tiny, make_samples):
    trial, _ = stored(tiny, True)
    longer = make_samples(n_samples=13)
    tiny.record(2, sample_sets={"test": longer}, stop=0)
    republish(tiny, trial, sample_sets={"test": longer.hash})
    (damage,) = damages(tiny)
    assert "shape (12, 3) instead of (13, 3)" in damage.found


def test_a_store_whose_own_metadata_are_gone_is_no_store(tiny):
    stored(tiny, True)
    (tiny.path / "zarr.json").unlink()
    with pytest.raises(MissingStoreError):
        open_store(tiny.path)
