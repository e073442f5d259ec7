"""Disks that are full: a real one, small, in memory, and one whose steps only fail like that."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper import durable, journal

BLOCK = 4096  # a page: what the smallest file takes on a disk in memory
DISK_BYTES, DISK_FILES = 4 << 20, 400


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """Whether a small disk in memory is mounted there, which not everybody may."""
    options = f"size={DISK_BYTES},nr_inodes={DISK_FILES}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(disk: Path, n_bytes: int) -> Path:
    """Fill a disk up to so many bytes; the file that does it."""
    filler, found = disk / "filler", os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - n_bytes)
    return filler


class FullDisk:
    """A disk on which a step fails, as on a full one, from the `at`-th on until it `has_room`.

    A write that fails has written a part; an fsync that fails finds out late that there is no room.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
        self.step, self.code, self.at, self.n_steps, self.has_room = step, code, -1, 0, True
        self._write_all = durable.write_all
        for module in (durable, journal):
            monkeypatch.setattr(module, "write_all", self._write)
        monkeypatch.setattr(os, "fsync", lambda descriptor: self._take("fsync"))

    def fill(self) -> None:
        self.has_room = False

    def make_room(self) -> None:
        self.has_room = True

    def _take(self, step: str) -> None:
        if step == self.step:
            self.n_steps += 1
            self.has_room = self.has_room and self.n_steps != self.at
            if not self.has_room:
                raise OSError(self.code, os.strerror(self.code))

    def _write(self, file: Any, data: Any) -> None:
        try:
            self._take("write")
        except OSError:
            file.write(memoryview(data).cast("B")[: len(data) // 2])
            raise
        self._write_all(file, data)


def use_up(folder: Path) -> None:
    """Make files until the disk can have no more of them."""
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / str(number)).touch()
    assert os.statvfs(folder).f_favail == 0
