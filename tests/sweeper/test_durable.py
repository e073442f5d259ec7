import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from sweeper import durable
from sweeper.durable import remove_partials, write_atomically, write_exclusively

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from sweeper.durable import write_atomically

path, round = Path(sys.argv[1]), 0
while True:
    write_atomically(path, bytes([round % 256]) * 300_000)
    round += 1
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The durability calls made, in order, with what each was about.

    What is in `tmp_path` already is durable, and so is its own name.
    """
    write_atomically(tmp_path / "before", b"")
    made = []

    def watch(name, describe):
        original = getattr(os, name)

        def watched(*arguments, **options):
            made.append((name, describe(*arguments)))
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    def kind(descriptor):
        return "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    watch("fsync", kind)
    watch("replace", lambda source, target: os.path.basename(target))
    watch("rename", lambda source, target: os.path.basename(target))
    watch("link", lambda source, target: os.path.basename(target))
    return made


def test_a_file_is_synced_before_it_has_its_name_and_the_name_afterwards(tmp_path, calls):
    write_atomically(tmp_path / "x", b"1")
    assert calls == [("fsync", "file"), ("replace", "x"), ("fsync", "folder")]


def test_an_exclusive_file_is_synced_before_it_has_its_name_and_the_name_afterwards(
    tmp_path, calls
):
    write_exclusively(tmp_path / "x", b"1")
    assert calls == [("fsync", "file"), ("link", "x"), ("fsync", "folder")]


def test_the_names_of_new_folders_are_synced_too(tmp_path, calls):
    write_atomically(tmp_path / "a/b/x", b"1")
    assert calls[:3] == [("fsync", "folder")] * 2 + [("fsync", "file")]
    assert (tmp_path / "a/b/x").read_bytes() == b"1"


def test_the_names_of_folders_that_others_made_are_synced_once(tmp_path, calls):
    (tmp_path / "a/b").mkdir(parents=True)  # by a process that was killed before it synced them
    write_atomically(tmp_path / "a/b/x", b"1")
    assert calls[:3] == [("fsync", "folder")] * 2 + [("fsync", "file")]
    calls.clear()
    write_atomically(tmp_path / "a/b/y", b"1")
    assert calls == [("fsync", "file"), ("replace", "y"), ("fsync", "folder")]


def test_a_folder_that_was_removed_is_made_and_synced_again(tmp_path, calls):
    write_atomically(tmp_path / "a/x", b"1")
    shutil.rmtree(tmp_path / "a")
    calls.clear()
    write_atomically(tmp_path / "a/x", b"2")
    assert calls[:2] == [("fsync", "folder"), ("fsync", "file")]
    assert (tmp_path / "a/x").read_bytes() == b"2"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.EROFS])
def test_folders_above_that_cannot_be_synced_are_none_of_ours(tmp_path, monkeypatch, code):
    (tmp_path / "theirs/ours").mkdir(parents=True)
    sync_folder = durable.sync_folder

    def refusing(folder):
        if folder == tmp_path / "theirs":
            raise OSError(code, os.strerror(code))
        sync_folder(folder)

    monkeypatch.setattr(durable, "sync_folder", refusing)
    write_atomically(tmp_path / "theirs/ours/x", b"1")
    with pytest.raises(OSError, match=os.strerror(code)):  # we made it, so it must be durable
        write_atomically(tmp_path / "theirs/new/x", b"1")


def test_an_atomic_write_replaces_and_an_exclusive_one_does_not(tmp_path):
    path = tmp_path / "x"
    assert write_exclusively(path, b"first")
    assert not write_exclusively(path, b"second")
    assert path.read_bytes() == b"first"
    write_atomically(path, memoryview(b"third"))
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_exclusive_writers_one_wins(tmp_path):
    barrier, won = threading.Barrier(8), []

    def write(number):
        barrier.wait()
        if write_exclusively(tmp_path / "x", bytes([number])):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "x").read_bytes() == bytes(won)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    for write in (write_atomically, write_exclusively):
        with pytest.raises(OSError, match="No space left") as error:
            write(path, b"new")
        assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_a_whole_file_and_partials_that_are_swept(tmp_path):
    path = tmp_path / "folder" / "x"
    for milliseconds in (3, 11, 29):
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        left = [other for other in path.parent.iterdir() if other != path]
        assert sorted(left) == remove_partials(tmp_path)
        assert list(path.parent.iterdir()) == [path]
        path.unlink()


def test_only_partials_are_swept(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("x", "x.partially", "a/y.0.partial"):
        (tmp_path / name).write_text("")
    assert remove_partials(tmp_path) == [tmp_path / "a/y.0.partial"]
    assert remove_partials(tmp_path / "absent") == []
    assert {path.name for path in tmp_path.iterdir()} == {"a", "x", "x.partially"}


def test_only_partials_of_that_age_are_swept(tmp_path):
    old, young = tmp_path / "x.0.partial", tmp_path / "y.0.partial"
    for path in (old, young):
        path.write_text("")
    os.utime(old, (time.time() - 100,) * 2)
    assert remove_partials(tmp_path, older_than=60) == [old]
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.parametrize(("wanted", "n_passed"), [("step", 0), ("step:3", 2), ("other", 5)])
def test_a_crash_point_kills_at_the_wanted_passage(wanted, n_passed):
    code = """
from sweeper.durable import crash_point
for i in range(5):
    crash_point("step")
    print(i, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "SWEEPER_CRASH_AT": wanted},
        check=False,
    )
    assert len(done.stdout.split()) == n_passed
    assert done.returncode == (0 if n_passed == 5 else -signal.SIGKILL)
