"""A second reader of the format, written from store/README.md alone, agrees with ours.

It has nothing but json, numpy and numcodecs; one in another language would be as long.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from numcodecs.checksum32 import CRC32C

from sweeper.errors import FormatVersionError, StoreError
from sweeper.store import open_store, schema
from sweeper.store.seal import seal
from sweeper.store.verify import verify

GOLDEN = Path(__file__).parents[2] / "fixtures" / "store_v1"


# --- the reader ------------------------------------------------------------------------------


def checked(data):
    return bytes(CRC32C(location="end").decode(data))


def attributes(folder):
    return json.loads((folder / "zarr.json").read_text())["attributes"]


def read_array(folder):
    metadata = json.loads((folder / "zarr.json").read_text())
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    grid, codec = metadata["chunk_grid"]["configuration"]["chunk_shape"], metadata["codecs"][0]
    chunk = codec["configuration"]["chunk_shape"] if "sharding" in codec["name"] else grid
    counts = [-(-a // b) for a, b in zip(grid, chunk, strict=True)]
    found = np.full(metadata["shape"], np.nan if dtype.kind == "f" else 0, dtype)
    for path in folder.glob("c.*"):
        data, spans = path.read_bytes(), [(0, path.stat().st_size)]
        if chunk is not grid:
            spans = np.frombuffer(checked(data[-16 * np.prod(counts) - 4 :]), "<u8").reshape(-1, 2)
        corner = np.multiply([int(i) for i in path.name.split(".")[1:]], grid)
        for place, (start, size) in zip(np.ndindex(*counts), np.array(spans).tolist(), strict=True):
            if start == 2**64 - 1:
                continue
            values = np.frombuffer(Blosc().decode(checked(data[start : start + size])), dtype)
            first = corner + np.multiply(place, chunk)
            inside = tuple(slice(a, a + n) for a, n in zip(first, chunk, strict=True))
            fits = tuple(slice(n) for n in found[inside].shape)
            found[inside] = values.reshape(chunk)[fits]
    return found


def read_record(attempt, snapshot):
    """Step, epoch, time and metrics of a staged snapshot."""
    size = 8 * (3 + len(attributes(attempt)["metrics"])) + 4
    data = (attempt / f"test/log_probs/c.{snapshot}.0.0").read_bytes()
    return np.frombuffer(checked(data[:size]), "<f8")


# --- what it is compared in ------------------------------------------------------------------


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
            moments.append(read_record(owner, i))
    return np.stack(rows), np.stack(moments)


def test_the_checksum_is_the_one_of_the_specification():
    data = b"123456789"
    assert checked(data + (0xE3069283).to_bytes(4, "little")) == data  # RFC 3720's check value


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


def test_a_trial_of_a_newer_format_is_refused_and_named(tiny):
    trial = tiny.sealed()
    known = tiny.objects.attributes(f"trials/{trial}")
    del known["checksum"]
    (tiny.path / "trials" / trial / "zarr.json").unlink()
    tiny.objects.create_group(f"trials/{trial}", {**known, "format": 2})
    with pytest.raises(FormatVersionError, match=f"trial {trial}: stored in format `2`"):
        open_store(tiny.path).log_probs(trial, "test")


# --- zarr-python -----------------------------------------------------------------------------


def written_by_zarr(folder, values, chunks, shards, fill):
    """The same array as zarr-python writes it."""
    array = zarr.create_array(
        str(folder),
        shape=values.shape,
        chunks=chunks,
        shards=shards,
        dtype=values.dtype,
        fill_value=fill,
        compressors=(
            zarr.codecs.BloscCodec(
                cname="lz4", clevel=5, shuffle="bitshuffle", typesize=values.itemsize
            ),
            zarr.codecs.Crc32cCodec(),
        ),
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_labels_and_metadata_are_byte_for_byte_those_of_zarr(tiny, tmp_path):
    tiny.sealed()
    (labels,) = tiny.path.glob("samples/*/*/labels")
    ours = {path.name: path.read_bytes() for path in labels.iterdir()}
    values = tiny.samples["test"].labels
    assert written_by_zarr(tmp_path / "z", values, (12,), None, 0) == ours


@pytest.mark.parametrize("n_samples", [8, 12])
def test_a_sealed_array_is_byte_for_byte_that_of_zarr(
    make_tiny, make_samples, tmp_path, monkeypatch, n_samples
):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 4 * 2 * 3 * 2)
    monkeypatch.setattr(schema, "SHARD_BYTES", 2 * 4 * 2 * 3 * 2)
    tiny = make_tiny(tmp_path / "store", {"test": make_samples(n_samples=n_samples)})
    trial = tiny.sealed()
    folder = tiny.path / f"trials/{trial}/1/test/log_probs"
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    values = np.stack([tiny.predictions(1, i) for i in range(4)])
    theirs = written_by_zarr(tmp_path / "z", values, (4, 2, 3), (4, 4, 3), float("nan"))
    assert theirs == ours


def test_zarr_reads_what_is_staged_while_it_grows(tiny, monkeypatch):
    monkeypatch.setattr(
        schema, "STAGED_CHUNK_BYTES", 5 * 3 * 2
    )  # 12 samples: the last chunk is cut
    trial = tiny.record(stop=3).header.trial_id
    found = zarr.open_array(str(tiny.path / f"staging/{trial}/1/test/log_probs"), mode="r")[...]
    np.testing.assert_array_equal(found[:3], [tiny.predictions(1, i) for i in range(3)])
    assert np.isnan(found[3]).all()


# --- the golden store ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """What was written into the golden store, which was made once and is never made again."""
    with np.load(GOLDEN / "expected.npz") as content:
        return dict(content), json.loads((GOLDEN / "expected.json").read_text())


def test_a_store_of_format_1_reads_for_ever(golden):
    arrays, said = golden
    store = open_store(GOLDEN / "predictions.zarr")
    assert store.trial_ids() == sorted({said["sealed"], said["staged"]})
    for name in ("sealed", "staged"):
        for split in ("test", "train"):
            values = store.log_probs(said[name], split, dtype="float16")
            np.testing.assert_array_equal(values, arrays[f"{name}_{split}"])
            np.testing.assert_array_equal(
                store.labels(split, said[name]), arrays[f"{split}_labels"]
            )
        table = store.snapshots(said[name]).drop(columns=["snapshot", "time"])
        np.testing.assert_array_equal(table, arrays[f"{name}_moments"])
        np.testing.assert_array_equal(store.targets(said[name], "train"), arrays["targets"])
    row = store.trials().loc[said["sealed"]]
    assert (row["digest"], row["state"], row["model.name"]) == (said["digest"], "complete", "fc")
    assert store.class_names(said["sealed"]) == tuple(said["class_names"])


def test_a_store_of_format_1_is_healthy_for_ever(golden):
    report = verify(open_store(GOLDEN / "predictions.zarr"))
    assert (report.n_trials, report.n_snapshots, report.damages, report.orphans) == (2, 7, (), ())


def test_the_second_reader_reads_the_golden_store(golden):
    arrays, said = golden
    folder = GOLDEN / "predictions.zarr" / "trials" / said["sealed"]
    name = attributes(folder)["arrays"]
    for split in ("test", "train"):
        values = read_array(folder / name / split / "log_probs")
        np.testing.assert_array_equal(values, arrays[f"sealed_{split}"])
