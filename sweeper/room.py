"""Room on a disk: whether a sweep fits before it starts, and waiting when it is used up."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sweeper.errors import PlanError

T = TypeVar("T")

WARN_AT = 0.8  # of what is free
ROOM_SECONDS = 5.0  # between two looks whether a full disk has room again
_LONGEST_NAME = 150  # of our own files below a sweep directory, in characters


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or somebody's quota of it, is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def when_there_is_room(
    write: Callable[[], T], on_full: Callable[[OSError], None], give_up: Callable[[], bool]
) -> T:
    """Do it, as soon as the disk has room for it; `write` leaves nothing behind when it fails.

    Parameters
    ----------
    on_full : told each time that it has to wait.
    give_up : asked before every wait; when true the error is raised.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error) or give_up():
                raise
            on_full(error)
        time.sleep(ROOM_SECONDS)


@dataclass(frozen=True)
class Room:
    """Bytes and files: needed, or free; None where there is no limit, as in a bucket."""

    n_bytes: int | None
    n_files: int | None


def free_room(folder: Path) -> Room:
    """What is free on the disk of a folder, which need not exist yet, for this user."""
    found = os.statvfs(existing(folder))
    # Some file systems have no fixed number of files and say that there are none.
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    for path in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):  # a name may be too long even to ask
            if path.exists():
                return path
    return Path("/")


def check_room(where: str, needed: Room, free: Room, force: bool) -> list[str]:
    """Warnings about what fits only just.

    Raises
    ------
    PlanError : it does not fit, and `force` is not set.
    """
    warnings = []
    for what, need, there in (
        ("bytes", needed.n_bytes, free.n_bytes),
        ("files", needed.n_files, free.n_files),
    ):
        if need is None or there is None or need <= WARN_AT * there:
            continue
        found = f"about {need:,} {what} to write, {there:,} are free"
        if need > there and not force:
            hint = "choose another --sweep-dir or --store, or --force if the estimate is too high"
            raise PlanError(where, found, "a disk on which the sweep fits", hint)
        warnings.append(f"warning: {where}: {found}")
    return warnings


def check_path(folder: Path) -> None:
    """Refuse a folder that cannot be made, or below which names get too long.

    Raises
    ------
    PlanError
    """
    text, above = str(folder.absolute()), existing(folder)
    if not above.is_dir():
        found, hint = f"`{above}` is a file", "choose another --sweep-dir or --store"
        raise PlanError(str(folder), found, "a folder, there or still to be made", hint)
    longest = os.pathconf(above, "PC_PATH_MAX") - _LONGEST_NAME
    name_max = os.pathconf(above, "PC_NAME_MAX")
    if len(os.fsencode(text)) > longest:
        raise PlanError(
            f"{text[:60]}...", f"a path of {len(text)} characters", f"at most {longest}"
        )
    too_long = [part for part in folder.parts if len(os.fsencode(part)) > name_max]
    if too_long:
        found = f"a name of {len(too_long[0])} characters"
        raise PlanError(f"{too_long[0][:60]}...", found, f"at most {name_max}")
