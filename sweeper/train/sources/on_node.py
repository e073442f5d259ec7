"""What the processes of a node share of a data set: verified and decoded once, mapped by each."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from sweeper.train.sources.place import made, only_one

# Where a node's processes have one temporary folder, though a slot's $TMPDIR is its own.
NODE_TMP_VARIABLE = "SWEEPER_NODE_TMP"

Arrays = dict[str, np.ndarray]

_HEADER = "header.json"
_READ_AT_ONCE = 1 << 20


def own_folder() -> Path:
    """The folder of this user on this node, made if need be; nobody else can write to it.

    It is below `$SWEEPER_NODE_TMP`, else below the folder of temporary files.

    Raises
    ------
    OSError : it cannot be made, or is somebody else's.
    """
    folder = Path(os.environ.get(NODE_TMP_VARIABLE) or tempfile.gettempdir())
    folder /= f"sweeper-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not `stat`: a link may be anybody's
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "not a folder of this user alone", str(folder))
    return folder


def once_per_node(
    name: str,
    version: str,
    folder: Path,
    files: Callable[[], Iterable[str]],
    read: Callable[[], Arrays],
) -> Arrays:
    """What `read` returns: one process of this node computes it, the others map a copy of it.

    The copy is in `own_folder`. At every use it is compared with its checksums and its files with
    what they were; if either differ it is made anew. Of several processes one makes it and the
    others wait. Memory is shared until somebody writes to it, which nobody else sees. Where there
    can be no copy each process reads for itself; that is said once.

    Parameters
    ----------
    name : of the copy; there is one, whichever folder the files are in.
    version : of the code that decides what becomes of the files.
    files : what `read` reads, below `folder`; asked only where there is no copy.
    read : arrays without Python objects in them.

    Raises
    ------
    whatever `files` and `read` raise.
    """
    of: dict[str, Any] = {"version": version, "folder": os.path.realpath(folder)}
    arrays = None
    try:
        place = own_folder() / "data" / name
        if (found := _opened(place, of)) is not None:
            return found
        of["files"] = _stamps(folder, files())
        _check_room(place, of["files"])
        with only_one(place.parent, name, lambda: None):
            if (found := _opened(place, of)) is not None:
                return found
            arrays = read()
            _keep(place, of, arrays)
            return _opened(place, of) or arrays
    except OSError as error:
        if arrays is None:  # if it was `read` that failed, it does so again
            arrays = read()
        _warn(f"{name}: each process of this node reads it for itself: {error}")
        return arrays


def _opened(place: Path, of: dict[str, Any]) -> Arrays | None:
    """The copy, None where there is none, or one that is damaged or of something else."""
    try:
        header = json.loads((place / _HEADER).read_text(encoding="utf-8"))
        expected = {"files": _stamps(Path(of["folder"]), header["of"]["files"])} | of
        if header["of"] != expected:
            return None
        sums = dict(header["crc32c"])
        if any(_crc(_path(place, name)) != crc for name, crc in sums.items()):
            return None
        return {name: np.load(_path(place, name), mmap_mode="c") for name in sums}
    except (OSError, ValueError, LookupError, TypeError):  # absent, or not what was written
        return None


def _keep(place: Path, of: dict[str, Any], arrays: Arrays) -> None:
    """Write the copy in the place of the one before, which may still be mapped by others."""
    shutil.rmtree(place, ignore_errors=True)
    with made(place) as partial:
        for name, array in arrays.items():
            np.save(_path(partial, name), array, allow_pickle=False)
        sums = {name: _crc(_path(partial, name)) for name in arrays}
        (partial / _HEADER).write_text(json.dumps({"of": of, "crc32c": sums}), encoding="utf-8")


def _path(place: Path, name: str) -> Path:
    return place / f"{name}.npy"


def _stamps(folder: Path, files: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of each file: what is verified is so until either changes."""
    found = {name: (folder / name).stat() for name in files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def _check_room(place: Path, stamps: dict[str, list[int]]) -> None:
    """Find out before the lock that it is full: else processes would read one after another."""
    needed = sum(size for size, _ in stamps.values())
    if shutil.disk_usage(place.parents[1]).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _crc(path: Path) -> int:
    """The CRC-32C of a file's bytes."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_READ_AT_ONCE):
            crc = google_crc32c.extend(crc, piece)
    return crc


@functools.cache
def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
