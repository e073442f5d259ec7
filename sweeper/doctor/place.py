"""The place of a sweep's store: that all nodes see one and the same, and can write there.

The driver leaves a mark in it. A node that does not see the mark has another folder of that name,
and leaves it alone; one that sees it adds a mark of its own, which the driver has to see.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeper.doctor.finding import Finding, failed, passed, warned
from sweeper.errors import SweeperError
from sweeper.room import check_path, existing
from sweeper.store.objects import Objects, open_objects

SEE_SECONDS = 5.0  # in which what one node wrote is to be seen by another: NFS caches
SLOW_MS = 1000.0  # of one small write, from which on recording may hold up training
BYTES = 1024

_DRIVERS = "driver"
_ELSEWHERE = "use a folder that all nodes share, or `--store s3://bucket/prefix`"
_CONDITIONAL = "a service with conditional writes (`If-None-Match`), in a version that has them"
UNREACHED = (
    "of a folder, see that its disk is mounted and answers; of a bucket, that the network, the "
    "region and AWS_ENDPOINT_URL are right"
)
_READ_ONLY = "mount it so that it can be written, mind owner and quota, or choose another place"


@dataclass(frozen=True)
class Mark:
    """A folder in the place, with what the driver wrote into it.

    Parameters
    ----------
    place : the root that was asked for, or the nearest folder above it that is there.
    folder : the mark's, in the place; gone when all have looked.
    token : random, as the driver wrote it.
    """

    place: str
    folder: str
    token: str

    @property
    def objects(self) -> Objects:
        """What is in the mark's folder."""
        return open_objects(self.place).below(self.folder)


@contextmanager
def marked(root: str) -> Iterator[Mark]:
    """A mark of the driver's in the place of a root, for as long as this lasts.

    Raises
    ------
    SweeperError : it cannot be written there, or no folder can be there.
    """
    mark = Mark(_nearest(root), f"doctor-{secrets.token_hex(6)}", secrets.token_hex(16))
    try:
        try:
            mark.objects.write(_DRIVERS, mark.token.encode())
        except OSError as error:
            raise SweeperError(mark.place, _cannot(error), hint=_READ_ONLY) from error
        yield mark
    finally:
        with contextlib.suppress(Exception):  # it must not hide what was found
            open_objects(mark.place).delete(mark.folder)


def _nearest(root: str) -> str:
    """The root, or for a folder that is still to be made the nearest above it."""
    if "://" in root:
        return root
    check_path(Path(root))
    return str(existing(Path(root)))


def check_place(mark: Mark, name: str) -> Iterator[Finding]:
    """That the mark is seen here, and what writing beside it takes; leaves a mark of this name."""
    if not _waited(lambda: _reads(mark, _DRIVERS)):
        text = f"{mark.place}: another place here, without what was written where sweeper runs"
        yield failed("store", text, _ELSEWHERE)
        return
    try:
        took = _measure(mark.objects, name, mark.token.encode())
        is_exclusive = [mark.objects.create(f"{name}.two", b"%d" % n) for n in (1, 2)]
    except OSError as error:
        yield failed("store", f"{mark.place}: {_cannot(error)}", _READ_ONLY)
        return
    if is_exclusive != [True, False]:
        text = f"{mark.place}: an object can be created twice, so that two workers may seal one"
        yield failed("store", f"{text} trial", _CONDITIONAL)
        return
    text = f"{mark.place}: {', '.join(f'{what} {ms:.1f} ms' for what, ms in took.items())}"
    if took["write"] > SLOW_MS:
        yield warned("store", text, "a faster disk or network: recording waits for every write")
    else:
        yield passed("store", text)


def _cannot(error: OSError) -> str:
    needed = " (renaming, hard links and fsync are needed)"
    is_unable = error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
    return f"cannot be written: {error.strerror or error}{needed if is_unable else ''}"


def _measure(objects: Objects, name: str, token: bytes) -> dict[str, float]:
    """What each operation takes, in ms.

    Raises
    ------
    OSError, UnavailableStoreError : one of them fails.
    """
    once, took = f"{name}.once", {}
    for what, act in (
        ("write", lambda: objects.write(name, token.ljust(BYTES))),
        ("read", lambda: objects.read(name)),
        ("create", lambda: objects.create(once, b"1")),
        ("delete", lambda: objects.delete(once)),
    ):
        started = time.perf_counter()
        act()
        took[what] = 1e3 * (time.perf_counter() - started)
    return took


def unseen(mark: Mark, names: Collection[str]) -> list[str]:
    """Of the marks that nodes say they left, those that the driver does not see."""
    left = list(names)

    def all_seen() -> bool:
        left[:] = [name for name in left if not _reads(mark, name)]
        return not left

    _waited(all_seen)
    return left


def unseen_finding(mark: Mark) -> Finding:
    """Of a node whose mark the driver does not see."""
    text = f"{mark.place}: what is written here is not seen where sweeper runs"
    return failed("store", text, _ELSEWHERE)


def _reads(mark: Mark, name: str) -> bool:
    try:
        return bytes(mark.objects.read(name)).strip() == mark.token.encode()
    except FileNotFoundError:
        return False


def _waited(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so before caches must have expired."""
    deadline = time.monotonic() + SEE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
