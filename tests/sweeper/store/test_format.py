"""A second reader of the format, written from store/README.md alone, agrees with ours."""

import hashlib
import itertools
import json

import numpy as np
import pytest
from numcodecs import Blosc

from sweeper.errors import StoreError
from sweeper.store import open_store, schema
from sweeper.store.seal import seal


def crc32c(data):
    """Castagnoli's CRC-32, reflected, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def checked(data):
    """What is before its checksum."""
    assert crc32c(data[:-4]) == int.from_bytes(data[-4:], "little")
    return data[:-4]


def read_array(folder):
    """Any array of a store."""
    metadata = json.loads((folder / "zarr.json").read_text())
    shape, dtype = metadata["shape"], np.dtype(metadata["data_type"]).newbyteorder("<")
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codec = metadata["codecs"][0]
    sharded = codec["name"] == "sharding_indexed"
    inner = codec["configuration"]["chunk_shape"] if sharded else grid
    found = np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
    for path in folder.glob("c.*"):
        corner = np.multiply([int(i) for i in path.name.split(".")[1:]], grid)
        for offset, data in split_shard(path.read_bytes(), grid, inner, sharded):
            start = corner + offset
            block = np.frombuffer(Blosc().decode(checked(data)), dtype).reshape(inner)
            place = tuple(slice(a, a + n) for a, n in zip(start, inner, strict=True))
            fits = found[place].shape
            found[place] = block[tuple(slice(n) for n in fits)]
    return found


def split_shard(data, grid, inner, sharded):
    """(offset in the shard, bytes) of each chunk; an absent one is all ones in the index."""
    if not sharded:
        return [(np.zeros(len(grid), int), data)]
    n_chunks = [-(-a // b) for a, b in zip(grid, inner, strict=True)]
    index = checked(data[-16 * int(np.prod(n_chunks)) - 4 :])
    entries = np.frombuffer(index, "<u8").reshape(-1, 2).tolist()
    places = itertools.product(*(range(n) for n in n_chunks))
    return [
        (np.multiply(place, inner), data[start : start + size])
        for place, (start, size) in zip(places, entries, strict=True)
        if start != 2**64 - 1
    ]


def attributes(folder):
    return json.loads((folder / "zarr.json").read_text())["attributes"]


def json_hash(document):
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def renormalised(values):
    values = values.astype(np.float64)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def staged(store, trial):
    """All snapshots of an unfinished trial, each from its owner, and their moments."""
    attempts = sorted((store / "staging" / trial).iterdir(), key=lambda path: int(path.name))
    firsts = [attributes(attempt)["first_snapshot"] for attempt in attempts]
    rows, moments = [], []
    for i in range(len(attributes(attempts[-1])["steps"])):
        owner = [a for a, first in zip(attempts, firsts, strict=True) if first <= i][-1]
        if (owner / f"test/log_probs/c.{i}.0.0").exists():
            rows.append(read_array(owner / "test/log_probs")[i])
            size = 8 * (3 + len(attributes(owner)["metrics"])) + 4
            record = (owner / f"test/log_probs/c.{i}.0.0").read_bytes()[:size]
            moments.append(np.frombuffer(checked(record), "<f8"))
    return np.stack(rows), np.stack(moments)


def test_the_checksum_is_the_one_of_the_specification():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_staged_trial_reads_alike(tiny):
    trial = tiny.record(9, stop=3, trial_id=tiny.header().trial_id).header.trial_id
    tiny.record(1, first=2)
    values, moments = staged(tiny.path, trial)
    store = open_store(tiny.path)
    np.testing.assert_allclose(store.log_probs(trial, "test"), renormalised(values), atol=1e-5)
    ours = store.snapshots(trial)[["step", "epoch", "time", "test_loss", "test_accuracy"]]
    np.testing.assert_array_equal(ours, moments)


@pytest.mark.parametrize(("chunk_bytes", "shard_bytes"), [(2 << 20, 256 << 20), (120, 250)])
def test_a_sealed_trial_reads_alike(tiny, monkeypatch, chunk_bytes, shard_bytes):
    monkeypatch.setattr(schema, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(schema, "SHARD_BYTES", shard_bytes)
    trial = tiny.sealed()
    monkeypatch.undo()
    folder = tiny.path / "trials" / trial
    found = attributes(folder)
    values = read_array(folder / found["arrays"] / "test/log_probs")
    expected = np.stack([tiny.predictions(1, i) for i in range(4)])
    np.testing.assert_array_equal(values, expected)
    ours = open_store(tiny.path).log_probs(trial, "test")
    np.testing.assert_allclose(ours, renormalised(values), atol=1e-5)


def test_labels_and_ids_read_alike_and_hash_to_their_name(tiny):
    trial = tiny.sealed()
    key = attributes(tiny.path / "trials" / trial)["sample_sets"]["test"]
    found = attributes(tiny.path / "samples" / key)
    folder = tiny.path / "samples" / key / found["arrays"]
    labels, ids = read_array(folder / "labels"), read_array(folder / "ids")
    np.testing.assert_array_equal(labels, open_store(tiny.path).labels("test"))
    sha = hashlib.sha256(json.dumps([found["split"], found["class_names"]]).encode())
    sha.update(labels.astype("<i8").tobytes() + ids.astype("<i8").tobytes())
    assert key == "s" + sha.hexdigest()[:12]


@pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])
def test_targets_read_alike_and_have_the_hash_that_is_said(tiny, make_samples, is_sealed):
    clean, rng = make_samples("train", 30), np.random.default_rng(0)
    given = {phase: rng.integers(0, 3, 30) for phase in ("train", "corner")}
    trial = tiny.record(targets=given, target_set=clean).header.trial_id
    folder = tiny.path / "staging" / trial
    if is_sealed:
        seal(tiny.objects, trial, "complete", 1)
        folder = tiny.path / "trials" / trial
    found = attributes(folder if is_sealed else folder / "1")
    assert found["targets"].keys() == given.keys()
    for phase, expected in given.items():
        values = read_array(folder / found["arrays"] / phase / "targets")
        np.testing.assert_array_equal(values, expected)
        hashed = hashlib.sha256(values.astype("<i8").tobytes()).hexdigest()
        assert found["targets"][phase] == hashed
        np.testing.assert_array_equal(open_store(tiny.path).targets(trial, phase), values)
    samples = tiny.path / "samples" / found["target_set"]
    about = attributes(samples)
    assert about["split"] == "train"
    np.testing.assert_array_equal(read_array(samples / about["arrays"] / "labels"), clean.labels)
    np.testing.assert_array_equal(read_array(samples / about["arrays"] / "ids"), clean.ids)


def test_hashes_digest_and_id_are_those_of_the_specification(tiny):
    trial = tiny.sealed()
    folder = tiny.path / "trials" / trial
    found = attributes(folder)
    values = read_array(folder / found["arrays"] / "test/log_probs")
    hashes = [hashlib.sha256(row.astype("<f2").tobytes()).hexdigest() for row in values]
    assert found["snapshot_hashes"] == {"test": hashes}
    document = {key: found[key] for key in ("epochs", "metrics", "steps")}
    document["predictions"] = {"test": hashes}
    assert found["digest"] == json_hash(document)
    assert trial == "t" + json_hash({"schema": 1, "trial": found["identity"]})[:12]


def test_unknown_attributes_and_members_are_ignored(tiny):
    trial = tiny.record().header.trial_id
    expected = open_store(tiny.path).log_probs(trial, "test")
    seal(tiny.objects, trial, "complete", 1)
    known = tiny.objects.attributes(f"trials/{trial}")
    del known["checksum"]
    (tiny.path / "trials" / trial / "zarr.json").unlink()
    tiny.objects.create_group(f"trials/{trial}", {**known, "activations": {"layers": 3}})
    tiny.objects.create_group(f"trials/{trial}/1/activations", {})
    tiny.objects.create_group("probes", {})
    np.testing.assert_array_equal(open_store(tiny.path).log_probs(trial, "test"), expected)


def test_the_metadata_checksum_is_the_one_of_the_specification(tiny):
    path = tiny.path / "trials" / tiny.sealed() / "zarr.json"
    checksum = attributes(path.parent)["checksum"]
    blank = path.read_bytes().replace(checksum.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == checksum
    path.write_bytes(path.read_bytes().replace(b"complete", b"diverged"))
    with pytest.raises(StoreError, match="altered metadata"):
        open_store(tiny.path).trials()
