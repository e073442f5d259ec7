"""Image files streamed by workers, and read from a prepared copy."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sweeper.errors import ConfigError
from sweeper.train.sources import prepared as prepared_copies
from sweeper.train.sources import streamed
from sweeper.train.sources.folder import list_images
from sweeper.train.sources.prepared import Prepared, open_prepared, prepare
from sweeper.train.sources.streamed import ImageFiles
from tests.data_files import write_photographs

SIDE = 32
ORDER = torch.randperm(12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    place = tmp_path_factory.mktemp("photographs")
    write_photographs(place, "val")
    return place


@pytest.fixture
def place(photographs, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(photographs, tmp_path / "own")
    return tmp_path / "own"


def listed(place):
    return {split: list_images(place / split, "path").names for split in ("train", "val")}


def files(place):
    return ImageFiles(place / "train", listed(place)["train"], SIDE)


def decoded(place):
    """All training images by torchvision's transforms, one after another."""
    transform = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.PILToTensor()])
    names = [name.decode() for name in listed(place)["train"]]
    return torch.stack([transform(Image.open(place / "train" / n).convert("RGB")) for n in names])


def prepared(place, progress=lambda n: None):
    assert prepare(place, SIDE, listed(place), progress, lambda: None)
    return open_prepared(place, SIDE, listed(place))["train"]


def has_workers():
    """Whether this process has children, given a moment to leave."""
    for _ in range(100):
        if not multiprocessing.active_children():
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("made", [files, prepared])
def test_batches_are_the_images_that_torchvision_makes_in_the_order_asked_for(place, made):
    images, source = decoded(place), made(place)
    assert source.shape == (12, 3, SIDE, SIDE)
    for sizes in ([5, 5, 2], [1], [12], []):
        batches = ORDER[: sum(sizes)].split(sizes) if sizes else []
        found = list(source.batches(batches))
        assert [len(batch) for batch in found] == sizes
        assert all(batch.dtype == torch.uint8 for batch in found)
        for batch, positions in zip(found, batches, strict=True):
            assert torch.equal(batch, images[positions])
    assert not has_workers()


@pytest.mark.parametrize("made", [files, prepared])
def test_a_selection_is_those_samples(place, made):
    chosen = torch.tensor([7, 2, 2])
    source = made(place)[chosen][torch.tensor([2, 0])]
    assert source.shape == (2, 3, SIDE, SIDE)
    (found,) = source.batches([torch.arange(2)])
    assert torch.equal(found, decoded(place)[[2, 7]])


def test_a_batch_of_more_than_one_piece_is_put_together_in_order(photographs, monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE", 2)
    found = torch.cat(list(files(photographs).batches(ORDER.split(5))))
    assert torch.equal(found, decoded(photographs)[ORDER])


@pytest.mark.parametrize("made", [files, prepared])
def test_what_is_closed_early_leaves_no_process_and_no_thread(place, made):
    source = made(place)
    before = set(threading.enumerate())
    reading = source.batches([ORDER] * 50)
    next(reading)
    reading.close()
    assert not has_workers()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)  # one that has been told to end may not have done so yet
    assert set(threading.enumerate()) <= before


def test_streaming_works_in_a_thread(photographs):
    found = []
    thread = threading.Thread(target=lambda: found.extend(files(photographs).batches([ORDER])))
    thread.start()
    thread.join(60)
    assert torch.equal(found[0], decoded(photographs)[ORDER])


def test_streaming_draws_no_random_numbers_of_this_process(photographs):
    torch.manual_seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    list(files(photographs).batches([ORDER]))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut"])
def test_a_file_that_cannot_be_decoded_is_named(place, content):
    path = place / "train" / listed(place)["train"][5].decode()
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ConfigError, match="cannot be decoded") as caught:
        list(files(place).batches(torch.arange(12).split(4)))
    assert f"`{path}`" in caught.value.found
    assert not has_workers()


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(place):
    source = files(place)
    path = place / "train" / source.names[5].decode()
    path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        list(source.batches([ORDER]))
    assert caught.value.filename == str(path)


# --- the prepared copy ----------------------------------------------------------------------


def test_a_copy_is_made_once_and_then_checked(place):
    counted = []
    assert prepare(place, SIDE, listed(place), counted.append, lambda: None)
    assert sum(counted) == 12 + 6
    before = (place / f"prepared-{SIDE}/train.u8").stat().st_mtime_ns
    assert not prepare(place, SIDE, listed(place), counted.append, lambda: None)
    assert sum(counted) == 2 * (12 + 6)
    assert (place / f"prepared-{SIDE}/train.u8").stat().st_mtime_ns == before
    assert isinstance(open_prepared(place, SIDE, listed(place))["val"], Prepared)


def test_without_a_copy_of_that_size_there_is_none(place):
    prepared(place)
    assert open_prepared(place, SIDE + 1, listed(place)) is None


def test_a_damaged_copy_is_found_when_it_is_checked(place):
    prepared(place)
    path = place / f"prepared-{SIDE}/val.u8"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"val\.u8` is damaged"):
        prepare(place, SIDE, listed(place), lambda n: None, lambda: None)


def test_a_copy_that_lost_bytes_or_is_of_other_files_is_refused_before_it_is_used(place):
    prepared(place)
    names = listed(place)
    with pytest.raises(ConfigError, match="is not of the files"):
        open_prepared(place, SIDE, names | {"val": names["val"][::-1]})
    header = place / f"prepared-{SIDE}/prepared.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 2}))
    with pytest.raises(ConfigError, match="is in another form"):
        open_prepared(place, SIDE, names)
    header.write_text("")
    with pytest.raises(ConfigError, match=r"no readable prepared\.json"):
        open_prepared(place, SIDE, names)


def test_a_copy_that_was_cut_is_refused(place):
    prepared(place)
    path = place / f"prepared-{SIDE}/train.u8"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"train\.u8` is not as long as it was") as caught:
        open_prepared(place, SIDE, listed(place))
    assert f"remove `{place / f'prepared-{SIDE}'}`" in caught.value.hint


def test_a_copy_that_fails_leaves_nothing(place):
    path = place / "val" / listed(place)["val"][3].decode()
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be decoded"):
        prepared(place)
    assert sorted(found.name for found in place.iterdir()) == [
        f".prepared-{SIDE}.lock",
        "train",
        "val",
    ]


def test_a_disk_without_room_is_refused_before_anything_is_written(place, monkeypatch):
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(prepared_copies.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match="GB free"):
        prepared(place)
    assert not (place / f"prepared-{SIDE}").exists()


def test_of_two_processes_one_makes_the_copy_and_the_other_waits(place):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def make():
        answers.put(prepare(place, SIDE, listed(place), lambda n: None, lambda: None))

    processes = [context.Process(target=make) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in processes) == [False, True]
    for process in processes:
        process.join()
