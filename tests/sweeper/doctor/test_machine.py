"""Limits of a machine that are enough, and not."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
from pathlib import Path

import pytest

from sweeper import processors
from sweeper.doctor import clashes, machine
from sweeper.doctor.clashes import check_clusters, check_ray_folder, clusters, heads
from sweeper.doctor.machine import (
    check_memory,
    check_open_files,
    check_shared_memory,
    check_temporary,
    size,
)
from sweeper.processors import free_memory
from sweeper.room import Room

GiB = 1 << 30


def only(findings):
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(1024, "warn"), (4095, "warn"), (4096, "pass"), (resource.RLIM_INFINITY, "pass")],
)
def test_open_files(monkeypatch, limit, verdict):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, 8192))
    found = only(check_open_files())
    assert found.verdict == verdict
    assert ("ulimit -n" in found.cure) == (verdict == "warn")


@pytest.mark.parametrize(("free", "verdict"), [(64 << 20, "warn"), (GiB, "pass")])
def test_shared_memory(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    monkeypatch.setattr(machine, "free_room", lambda _: Room(free, None))
    found = only(check_shared_memory())
    assert found.verdict == verdict
    assert ("--shm-size" in found.cure) == (verdict == "warn")


def test_shared_memory_that_a_system_does_not_have(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "absent")
    assert only(check_shared_memory()).verdict == "pass"


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        (Room(GiB, None), "pass"),
        (Room(GiB, 10_000), "pass"),
        (Room(GiB - 1, None), "warn"),
        (Room(GiB, 9_999), "warn"),
    ],
)
def test_temporary_files(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "free_room", lambda _: free)
    found = only(check_temporary())
    assert found.verdict == verdict
    assert str(tmp_path) in found.text


@pytest.mark.parametrize(("free", "verdict"), [(4 * GiB, "pass"), (4 * GiB - 1, "warn")])
def test_memory_is_counted_by_slot(monkeypatch, free, verdict):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    found = only(check_memory(threads=2))
    assert found.verdict == verdict
    assert "8 processors: 1" in found.text
    assert only(check_memory(threads=1)).verdict == "warn"


@pytest.mark.parametrize(
    ("limit", "left"), [("max\n", None), (str(3 * GiB), 3 * GiB - 2 * GiB + GiB // 2)]
)
def test_the_limit_of_a_container_counts(monkeypatch, tmp_path, limit, left):
    """What it has cached is given back when it is needed."""
    monkeypatch.setattr(processors, "_GROUPS", tmp_path)
    before = free_memory()
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(str(2 * GiB))
    (tmp_path / "memory.stat").write_text(f"anon {GiB}\ninactive_file {GiB // 2}\n")
    if left is None:
        assert (free_memory() is None) == (before is None)
    else:
        assert free_memory() == min(left, before or left)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.0 MiB"), (5 << 20, "5.0 MiB"), (64 << 20, "64 MiB"), (3 * GiB // 2, "1.5 GiB")],
)
def test_sizes(n_bytes, text):
    assert size(n_bytes) == text


# --- what gets into one another's way --------------------------------------------------------


@pytest.fixture
def short():
    """A folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_rays_folder_of_another_user(monkeypatch, short):
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert only(check_ray_folder()).verdict == "pass"
    (short / "ray").mkdir()
    assert only(check_ray_folder()).verdict == "pass"
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = only(check_ray_folder())
    assert found.verdict == "warn"
    assert f"user {os.getuid()}" in found.text
    assert "--temp-dir" in found.cure


def test_a_folder_too_long_for_rays_sockets(monkeypatch):
    for length, verdict in ((clashes._LONGEST, "pass"), (clashes._LONGEST + 1, "warn")):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        assert only(check_ray_folder()).verdict == verdict
    socket_path = Path("x" * clashes._LONGEST, "ray", "session_2026-01-01_00-00-00_000000_1234567")
    assert len(str(socket_path / "sockets" / "plasma_store_1")) == 107


@pytest.mark.parametrize(
    ("ours", "is_taken", "verdict", "text"),
    [
        (set(), False, "pass", "none of yours"),
        (set(), True, "warn", "something else listens at port 6379"),
        ({"10.0.0.1:6379"}, True, "pass", "10.0.0.1:6379"),
        ({"10.0.0.1:6379", "10.0.0.1:7000"}, True, "warn", "2 of yours: 10.0.0.1:6379, 10.0.0.1"),
    ],
)
def test_several_clusters(ours, is_taken, verdict, text):
    found = only(clusters(ours, is_taken))
    assert found.verdict == verdict
    assert text in found.text


def test_the_nodes_of_clusters_are_told_from_what_only_names_them():
    commands = [
        "/lib/raylet/raylet\0--x=1\0--gcs-address=10.0.0.1:6379\0--temp-dir=/tmp/ray",
        "/lib/raylet/raylet\0--gcs-address=10.0.0.1:6379",
        "python agent.py --gcs-address=10.0.0.2:1 --log=/lib/raylet/raylet",
        "grep\0raylet\0--gcs-address=10.0.0.3:1",
        "",
    ]
    assert heads(commands) == {"10.0.0.1:6379"}


def test_this_users_processes_are_looked_at(monkeypatch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setattr(clashes, "PORT", listening.getsockname()[1])
        monkeypatch.setattr(clashes, "heads", lambda commands: set(list(commands)[:0]))
        assert only(check_clusters()).verdict == "warn"
    assert any("pytest" in command for command in clashes._commands())
