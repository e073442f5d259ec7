"""Where data sets lie on this machine, and how a folder gets there: whole, once, and to stay."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.durable import PARTIAL, sync_folder
from sweeper.errors import DataError

ROOT_VARIABLE = "SWEEPER_DATA"


def data_root() -> Path:
    """The folder of all data sets: `$SWEEPER_DATA`, else `data` in the working directory."""
    return Path(os.environ.get(ROOT_VARIABLE) or "data").expanduser().absolute()


def require(name: str, place: Path, absent: list[str], remedy: str = "") -> None:
    """Refuse a data set of which files are absent.

    Raises
    ------
    DataError : it says where it looked, and the command that puts the files there.
    """
    if absent:
        is_begun = place.is_dir() and any(place.iterdir())
        raise DataError(
            "name",
            f"`{place}` is without `{absent[0]}`" if is_begun else f"`{name}` is not in `{place}`",
            f"data sets are in ${ROOT_VARIABLE}, else in `data` where sweeper is started",
            remedy or f"`sweeper data get {name} --root {data_root()}`",
        )


@contextmanager
def only_one(root: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the making of `name` in `root`, waiting for another process that does.

    The kernel's file lock decides, so that a killed process blocks no other. What a killed one
    left half made is removed. Where nodes share `root`, the mount must pass locks on, as NFS does
    unless told not to (`nolock`, `local_lock`) and Lustre when told to (`flock`): without, what one
    node makes another may remove half made, and the first fails.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in root.glob(f"{name}.*{PARTIAL}"):
            shutil.rmtree(leftover)
        yield


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` in one step when all went well.

    A crash can leave a folder beside it that ends in `.partial`; the next `only_one` removes it.

    Raises
    ------
    OSError : `folder` exists and is not empty, or the disk is full.
    """
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _sync(folder: Path) -> None:
    """Make all that is below a folder durable."""
    for inner, _, names in os.walk(folder):
        for name in names:
            with (Path(inner) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(inner))
