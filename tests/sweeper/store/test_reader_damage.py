"""What the reader refuses: damaged bytes, altered metadata, swapped folders."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import HoleError, StoreError
from sweeper.store import open_store, schema


def shard(tiny, trial):
    return tiny.path / f"trials/{trial}/1/test/log_probs/c.0.0.0"


def damaged(path, spoil):
    data = path.read_bytes()
    path.unlink() if spoil is None else path.write_bytes(spoil(data))


def read_all(tiny, trial):
    """Predictions, and what is said of each snapshot, which lies in front of them while staged."""
    store = open_store(tiny.path)
    return store.log_probs(trial, "test"), store.snapshots(trial)


SPOILS = {
    "deleted": None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "short": lambda data: data[:3],
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "zeros": lambda data: bytes(len(data)),
    "appended": lambda data: data + b"0",
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_damaged_predictions_are_refused_with_the_trial(tiny, is_sealed, spoil):
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    staged = tiny.path / f"staging/{trial}/1/test/log_probs/c.1.0.0"
    damaged(shard(tiny, trial) if is_sealed else staged, spoil)
    with pytest.raises(StoreError, match=f"trial {trial}"):
        read_all(tiny, trial)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_no_flipped_bit_of_a_chunk_is_read(tiny, is_sealed):
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    staged = tiny.path / f"staging/{trial}/1/test/log_probs/c.1.0.0"
    path = shard(tiny, trial) if is_sealed else staged
    whole = path.read_bytes()

    @settings(max_examples=60)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def check(position, bit):
        content = bytearray(whole)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(StoreError, match=f"trial {trial}"):
            read_all(tiny, trial)

    check()


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("part", ["labels/c.0", "labels/zarr.json", "../zarr.json"])
def test_damaged_samples_are_refused_with_their_set(tiny, part, spoil):
    trial = tiny.sealed()
    (folder,) = (tiny.path / "samples" / tiny.samples["test"].hash).glob("*/")
    if part.endswith("/zarr.json") and spoil is SPOILS["zeros"]:
        spoil = SPOILS["short"]
    damaged(folder / part, spoil)
    with pytest.raises(StoreError, match=tiny.samples["test"].hash):
        open_store(tiny.path).labels("test", trial)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"float16"', '"int16"'),
        ('"little"', '"big"'),
        ('"bitshuffle"', '"shuffle"'),
        ('"blosc"', '"zlib"'),
        ('"regular"', '"irregular"'),
        ("}", ""),
        ("\n    12,", "\n    6,"),
        ("\n    12,", "\n    24,"),
    ],
)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_altered_metadata_of_an_array_are_refused_with_the_trial(tiny, is_sealed, old, new):
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    place = "trials" if is_sealed else "staging"
    path = tiny.path / f"{place}/{trial}/1/test/log_probs/zarr.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(StoreError, match=trial):
        open_store(tiny.path).log_probs(trial, "test")


@pytest.mark.parametrize("place", ["trials/{}/zarr.json", "staging/{}/1/zarr.json"])
@pytest.mark.parametrize(
    ("old", "new"),
    [('"seed": 1', '"seed": 2'), ("20", "21"), ('"sample_sets"', '"sets"'), ("{", "["), ("}", "")],
)
def test_altered_metadata_of_a_trial_are_refused(tiny, place, old, new):
    is_sealed = place.startswith("trials")
    trial = tiny.sealed() if is_sealed else tiny.record().header.trial_id
    path = tiny.path / place.format(trial)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    store = open_store(tiny.path)
    for ask in (store.trials, lambda: store.log_probs(trial, "test")):
        with pytest.raises(StoreError, match=trial):
            ask()


def test_a_shard_of_other_chunks_than_were_written_is_refused(tiny, monkeypatch):
    """As many of them, so that the shard's own index does not show it."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 4 * 4 * 3 * 2)
    monkeypatch.setattr(schema, "SHARD_BYTES", 2 * schema.CHUNK_BYTES)
    trial = tiny.sealed()
    path = tiny.path / f"trials/{trial}/1/test/log_probs/zarr.json"
    document = json.loads(path.read_text())
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [4, 8, 3]
    document["chunk_grid"]["configuration"]["chunk_shape"][1] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="differs from the format"):
        open_store(tiny.path).log_probs(trial, "test", samples=slice(0, 4))


def test_swapped_trial_folders_are_refused(tiny):
    one, other = tiny.sealed(1), tiny.sealed(2)
    trials = tiny.path / "trials"
    (trials / one).rename(trials / "aside")
    (trials / other).rename(trials / one)
    (trials / "aside").rename(trials / other)
    with pytest.raises(StoreError, match=f"trial {one}: its attributes are those of trial {other}"):
        open_store(tiny.path).log_probs(one, "test")


def test_an_absent_shard_is_a_hole_even_if_another_one_is_there(tiny, monkeypatch):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 72)
    monkeypatch.setattr(schema, "SHARD_BYTES", 150)
    trial = tiny.sealed()
    (tiny.path / f"trials/{trial}/1/test/log_probs/c.0.1.0").unlink()
    store = open_store(tiny.path)
    assert store.log_probs(trial, "test", samples=slice(0, 6)).shape == (4, 6, 3)
    with pytest.raises(HoleError, match=f"trial {trial}"):
        store.log_probs(trial, "test")
