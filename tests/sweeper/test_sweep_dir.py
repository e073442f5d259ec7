import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from sweeper import sweep_dir
from sweeper.errors import SweepDirError
from sweeper.sweep_dir import STALE_SECONDS, SweepDir, environment

DRIVE = """
import sys
from sweeper.sweep_dir import SweepDir

with SweepDir(sys.argv[1]).locked():
    print("driving", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def driver(path):
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "driving\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def leave_holder(path, host, seconds_ago):
    """A lock file as another host's driver leaves it."""
    lock = path / "driver.lock"
    lock.write_text(json.dumps({"host": host, "pid": 4321}))
    then = time.time() - seconds_ago
    os.utime(lock, (then, then))


# --- one driver ------------------------------------------------------------------------------


def test_a_second_driver_is_refused_with_pid_and_host_of_the_first(tmp_path):
    with driver(tmp_path) as process:
        with pytest.raises(SweepDirError) as caught, SweepDir(tmp_path).locked():
            pytest.fail("two drivers hold one directory")
        text = f"held by another driver, process {process.pid} on {socket.gethostname()}"
        assert caught.value.found == text
        assert f"`sweeper stop {tmp_path}`" in caught.value.hint
        assert SweepDir(tmp_path).driver() == {"host": socket.gethostname(), "pid": process.pid}


def test_a_driver_that_left_or_was_killed_does_not_block_the_next(tmp_path):
    for farewell in ("quit", "kill"):
        with driver(tmp_path) as process:
            if farewell == "quit":
                process.communicate("\n")
        assert SweepDir(tmp_path).driver() is None
        with SweepDir(tmp_path).locked():
            assert SweepDir(tmp_path).driver() == {"host": socket.gethostname(), "pid": os.getpid()}
    assert SweepDir(tmp_path).driver() is None


def test_a_driver_that_fails_lets_go(tmp_path):
    with pytest.raises(RuntimeError), SweepDir(tmp_path).locked():
        raise RuntimeError
    assert SweepDir(tmp_path).driver() is None


def test_a_fresh_heartbeat_of_another_host_is_respected(tmp_path):
    leave_holder(tmp_path, "elsewhere", STALE_SECONDS - 20)
    before = (tmp_path / "driver.lock").read_bytes()
    with pytest.raises(SweepDirError, match="process 4321 on elsewhere"):
        SweepDir(tmp_path).locked().__enter__()
    assert SweepDir(tmp_path).driver() == {"host": "elsewhere", "pid": 4321}
    assert (tmp_path / "driver.lock").read_bytes() == before


def test_a_stale_heartbeat_of_another_host_is_a_dead_drivers(tmp_path):
    leave_holder(tmp_path, "elsewhere", STALE_SECONDS + 20)
    assert SweepDir(tmp_path).driver() is None
    with SweepDir(tmp_path).locked():
        assert SweepDir(tmp_path).driver()["pid"] == os.getpid()


def test_a_fresh_file_of_a_dead_driver_of_this_host_does_not_block(tmp_path):
    leave_holder(tmp_path, socket.gethostname(), 0)
    assert SweepDir(tmp_path).driver() is None
    with SweepDir(tmp_path).locked():
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_lock_file_that_cannot_be_read_names_nobody(tmp_path, content):
    (tmp_path / "driver.lock").write_bytes(content)
    assert SweepDir(tmp_path).driver() is None
    with SweepDir(tmp_path).locked():
        assert SweepDir(tmp_path).driver()["pid"] == os.getpid()


def test_the_holder_keeps_beating(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_dir, "HEARTBEAT_SECONDS", 0.01)
    lock = tmp_path / "driver.lock"
    with SweepDir(tmp_path).locked():
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 60
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - lock.stat().st_mtime < STALE_SECONDS


def test_asking_who_drives_does_not_keep_a_driver_out(tmp_path):
    (tmp_path / "driver.lock").write_text("")
    asking = (tmp_path / "driver.lock").open()
    fcntl.flock(asking, fcntl.LOCK_SH)  # as `driver` does, for an instant
    timer = threading.Timer(0.1, asking.close)
    timer.start()
    with SweepDir(tmp_path).locked():
        assert SweepDir(tmp_path).driver()["pid"] == os.getpid()
    timer.join()


def test_asking_who_drives_changes_nothing(tmp_path):
    assert SweepDir(tmp_path).driver() is None
    assert list(tmp_path.iterdir()) == []
    leave_holder(tmp_path, "elsewhere", 5)
    before = (tmp_path / "driver.lock").stat()
    SweepDir(tmp_path).driver()
    after = (tmp_path / "driver.lock").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


# --- the manifest and the paths --------------------------------------------------------------


def test_the_manifest_is_read_as_written(tmp_path):
    folder = SweepDir(tmp_path)
    assert folder.read_manifest() == {}
    folder.write_manifest({"name": "digits", "launches": [{"t": 1.5}]})
    assert folder.read_manifest() == {"name": "digits", "launches": [{"t": 1.5}]}
    assert folder.require() is folder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path, content):
    folder = SweepDir(tmp_path)
    folder.manifest.write_bytes(content)
    with pytest.raises(SweepDirError) as caught:
        folder.read_manifest()
    assert caught.value.where == str(folder.manifest)


def test_what_was_never_launched_is_no_sweep_directory(tmp_path):
    with pytest.raises(SweepDirError, match="not a sweep directory") as caught:
        SweepDir(tmp_path).require()
    assert "launch" in caught.value.hint
    with pytest.raises(SweepDirError, match="no such directory"):
        SweepDir(tmp_path / "absent").require()


def test_the_environment_names_versions_and_hardware():
    found = environment()
    assert found["host"] == socket.gethostname()
    assert found["versions"]["numpy"].split(".")[0].isdigit()
    assert found["processor"]
    json.dumps(dict(found))
