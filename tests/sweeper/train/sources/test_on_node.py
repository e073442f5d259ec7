"""What the processes of a node share: one makes it, all map it, and none trusts what is damaged."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sweeper.sections import DataConfig
from sweeper.train.data import load
from sweeper.train.sources import folder as image_folder
from sweeper.train.sources import on_node, small
from sweeper.train.sources.on_node import NODE_TMP_VARIABLE, once_per_node, own_folder
from tests.data_files import SMALL, forget, tiny_data
from tests.full_disk import mounted

FORK = multiprocessing.get_context("fork")


class Source:
    """A folder with one file, which `read` reads; each reading leaves a line in `readings`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.readings = folder / "source", folder / "readings"
        self.folder.mkdir()
        self.readings.touch()
        self.write(b"abcdefgh")

    def write(self, content: bytes) -> None:
        (self.folder / "file").write_bytes(content)

    def read(self):
        with self.readings.open("a") as file:
            file.write("x")
        content = np.frombuffer((self.folder / "file").read_bytes(), np.uint8)
        return {"x": content.reshape(2, -1), "names": np.array(["ant", "bee"])}

    @property
    def n_readings(self) -> int:
        return len(self.readings.read_text())

    def get(self, version="1"):
        return once_per_node("letters", version, self.folder, lambda: ["file"], self.read)


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The node's folder of temporary files."""
    monkeypatch.setenv(NODE_TMP_VARIABLE, str(tmp_path))
    on_node._warn.cache_clear()
    return tmp_path


@pytest.fixture
def source(node):
    return Source(node)


def text(found) -> bytes:
    return found["x"].tobytes()


def copies() -> list[str]:
    return sorted(path.name for path in (own_folder() / "data").iterdir())


def test_it_is_read_once_and_is_what_was_read(source, capfd):
    for found in (source.get(), source.get()):
        assert text(found) == b"abcdefgh"
        assert found["x"].shape == (2, 4)
        assert found["names"].tolist() == ["ant", "bee"]
    assert source.n_readings == 1
    assert capfd.readouterr().err == ""


def test_what_is_written_to_an_array_nobody_else_sees(source):
    first = source.get()["x"]
    torch.from_numpy(first).fill_(0)
    assert not first.any()
    assert text(source.get()) == b"abcdefgh"
    assert source.n_readings == 1


def test_a_file_that_changed_is_read_anew_and_leaves_nothing_of_the_old(source):
    before = source.get()
    source.write(b"ABCDEFGHIJ")
    assert text(source.get()) == b"ABCDEFGHIJ"
    os.utime(source.folder / "file", ns=(0, 0))
    source.get()
    assert source.n_readings == 3
    assert copies() == [".letters.lock", "letters"]
    assert text(before) == b"abcdefgh"  # whoever has the old one keeps it


def test_another_version_or_folder_is_read_anew(source, tmp_path):
    source.get()
    source.get("2")
    assert source.n_readings == 2
    (source.folder).rename(tmp_path / "moved")
    source.folder = tmp_path / "moved"
    source.get("2")
    assert source.n_readings == 3
    (tmp_path / "link").symlink_to(source.folder)
    source.folder = tmp_path / "link"
    source.get("2")
    assert source.n_readings == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda place: flip(place / "x.npy"),
    "a short array": lambda place: os.truncate(place / "x.npy", 100),
    "no array": lambda place: (place / "names.npy").unlink(),
    "no header": lambda place: (place / "header.json").unlink(),
    "half a header": lambda place: os.truncate(place / "header.json", 20),
    "an empty header": lambda place: (place / "header.json").write_text("{}"),
    "a header of something else": lambda place: (place / "header.json").write_text("[1]"),
    "nothing in it": lambda place: (shutil.rmtree(place), place.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_made_anew(source, damage, capfd):
    source.get()
    DAMAGE[damage](own_folder() / "data/letters")
    assert text(source.get()) == b"abcdefgh"
    assert text(source.get()) == b"abcdefgh"
    assert source.n_readings == 2
    assert capfd.readouterr().err == ""


def in_processes(n, do):
    """What `do(index)` returns in each of n processes that start at once."""
    answers, begin = FORK.Queue(), FORK.Barrier(n)

    def work(index):
        begin.wait(60)
        answers.put(do(index))

    processes = [FORK.Process(target=work, args=(index,), daemon=True) for index in range(n)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return found


def test_of_several_processes_one_reads_and_the_others_wait(source):
    assert in_processes(4, lambda _: text(source.get())) == [b"abcdefgh"] * 4
    assert source.n_readings == 1


def test_a_process_that_is_killed_while_it_makes_the_copy_blocks_nobody(source, monkeypatch):
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(on_node, "_crc", die)
        killed = FORK.Process(target=source.get)
        killed.start()
        killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert any(name.endswith(".partial") for name in copies())
    assert text(source.get()) == b"abcdefgh"
    assert source.n_readings == 2
    assert copies() == [".letters.lock", "letters"]


def test_what_cannot_be_read_is_not_kept(source):
    (source.folder / "file").unlink()
    with pytest.raises(FileNotFoundError, match="source/file"):
        source.get()
    source.write(b"abcdefgh")
    assert text(source.get()) == b"abcdefgh"


# --- where there can be no copy ---------------------------------------------------------------


def goes_on_without(source, capfd, found):
    """Every call reads; the reason is said at the first."""
    capfd.readouterr()
    before = source.n_readings
    assert [text(source.get()) for _ in range(2)] == [b"abcdefgh"] * 2
    assert source.n_readings == before + 2
    said = capfd.readouterr().err
    assert said.startswith("warning: letters: each process of this node reads it for itself: ")
    assert found in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(source, capfd, node, mode):
    own_folder().chmod(mode)
    goes_on_without(source, capfd, "not a folder of this user alone")


def test_a_folder_of_somebody_else_is_not_used(source, capfd, node, monkeypatch):
    theirs = node / f"sweeper-{os.getuid() + 1}"
    theirs.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    goes_on_without(source, capfd, "not a folder of this user alone")
    assert not list(theirs.iterdir())


def test_a_link_is_not_followed(source, capfd, node):
    (node / "anywhere").mkdir()
    (node / f"sweeper-{os.getuid()}").symlink_to(node / "anywhere")
    goes_on_without(source, capfd, "not a folder of this user alone")
    assert not list((node / "anywhere").iterdir())


def test_an_absent_folder_of_temporary_files_is_not_made(source, capfd, node, monkeypatch):
    monkeypatch.setenv(NODE_TMP_VARIABLE, str(node / "nowhere"))
    goes_on_without(source, capfd, "No such file")
    assert not (node / "nowhere").exists()


def test_without_room_nothing_is_tried_under_the_lock(source, capfd, monkeypatch):
    monkeypatch.setattr(on_node.shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    goes_on_without(source, capfd, os.strerror(errno.ENOSPC))
    assert not (own_folder() / "data").exists()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(source, capfd, monkeypatch):
    def full(path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(on_node.np, "save", full)
        goes_on_without(source, capfd, os.strerror(errno.ENOSPC))
    assert copies() == [".letters.lock"]
    source.get()
    assert "letters" in copies()


def test_a_disk_that_is_full(source, capfd, node, monkeypatch):
    disk = node / "disk"
    disk.mkdir()
    with mounted(disk) as is_mounted:
        if not is_mounted:
            pytest.skip("disks cannot be mounted here")
        monkeypatch.setenv(NODE_TMP_VARIABLE, str(disk))
        monkeypatch.setattr(on_node, "_check_room", lambda *_: None)
        big = {"x": np.zeros(8 << 20, np.uint8)}
        found = once_per_node("big", "1", source.folder, lambda: ["file"], lambda: big)
        assert found is big
        assert "big: each process of this node reads it for itself" in capfd.readouterr().err
        assert copies() == [".big.lock"]


# --- data sets --------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    with tiny_data(tmp_path / "data") as root:
        yield root


def tensors(splits):
    names = [f"{split}_{what}" for split in ("train", "test") for what in ("x", "y", "ids")]
    return {name: getattr(splits, name) for name in names}


def mapped_file(address: int) -> str:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        first, last = (int(number, 16) for number in span.split("-"))
        if first <= address < last:
            return path
    raise AssertionError("nothing is mapped there")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_even_the_process_that_read_has_the_memory_that_all_share(root):
    x = load(DataConfig(name="mnist")).train_x
    assert mapped_file(x.data_ptr()) == str(own_folder() / "data/mnist/train_x.npy")


@pytest.mark.parametrize("name", SMALL)
def test_later_processes_have_the_same_tensors_without_reading_the_files(root, name, monkeypatch):
    read = small._read(name, root / name)
    first = load(DataConfig(name=name))
    forget()
    for reads in ("damaged", "reader", "_files"):
        monkeypatch.setattr(small, reads, None)
    later = load(DataConfig(name=name))
    for key, tensor in tensors(later).items():
        assert torch.equal(tensor, tensors(first)[key])
        assert key not in read or torch.equal(tensor, torch.from_numpy(read[key]))
        assert tensor.is_contiguous()
    assert later.class_names == first.class_names


def test_images_of_imagenet_are_listed_once(root, monkeypatch):
    file = next((root / "imagenet/train").glob("*/*"))
    os.utime(file.parent, ns=(0, 0))  # so that its time changes however soon it is written to
    with monkeypatch.context() as patch:
        before = {split: image_folder.list_imagenet(split) for split in ("train", "val")}
        patch.setattr(image_folder, "list_images", None)
        for split, listed in before.items():
            again = image_folder.list_imagenet(split)
            assert (again.folder, again.classes) == (listed.folder, listed.classes)
            assert np.array_equal(again.names, listed.names)
            assert np.array_equal(again.labels, listed.labels)
    file.unlink()
    with pytest.raises(image_folder.ConfigError, match="has 11 images"):
        image_folder.list_imagenet("train")
