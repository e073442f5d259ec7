"""Who drives a sweep whose store is elsewhere: one driver at a time, on whichever machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from sweeper.errors import StoreError, SweepDirError
from sweeper.store.objects import Objects
from sweeper.sweep_dir import STALE_SECONDS

DRIVER = "driver.json"
RENEW_SECONDS = 20.0


class Claim:
    """A driver's claim to a sweep: an object that it renews for as long as it drives.

    No hard lock. It is as good as the machines' clocks agree, and a driver that was cut off for
    `STALE_SECONDS` may come back beside the one that took over. What both do then is harmless,
    for attempts are fenced in the store; the one that finds another's claim in the place of its
    own learns so, from `rival`, and has to drain.
    """

    def __init__(self, objects: Objects) -> None:
        self.rival: Mapping[str, Any] | None = None
        self._objects = objects
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}

    def take(self) -> None:
        """Take it, in the place of a dead driver's if need be.

        Raises
        ------
        SweepDirError : another driver holds it and lives.
        """
        while True:
            found = _read(self._objects)
            if _lives(found):
                raise held(self._objects.location, found)
            if found:
                self._objects.delete(DRIVER)
            if self._objects.create(DRIVER, self._said()):
                return

    def renew(self) -> None:
        """Say that the driver lives, or learn that another has taken its place."""
        found = _read(self._objects)
        if not found:
            self._objects.create(DRIVER, self._said())
        elif self._is_own(found) or _is_damaged(found):
            self._objects.write(DRIVER, self._said())
        else:
            self.rival = found

    def release(self) -> None:
        """Leave the sweep to others."""
        if self._is_own(_read(self._objects)):
            self._objects.delete(DRIVER)

    def _said(self) -> bytes:
        return json.dumps({**self._own, "t": round(time.time(), 3)}).encode()

    def _is_own(self, found: Mapping[str, Any]) -> bool:
        return found.get("token") == self._own["token"]


@contextlib.contextmanager
def claimed(objects: Objects) -> Iterator[Claim]:
    """Hold the claim to a sweep, whose notes these objects are, and renew it meanwhile.

    Raises
    ------
    SweepDirError : another driver holds it and lives.
    """
    claim, ended = Claim(objects), threading.Event()
    claim.take()
    renewing = threading.Thread(target=_renew, args=(claim, ended), daemon=True)
    renewing.start()
    try:
        yield claim
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(StoreError, OSError):
            claim.release()


def _renew(claim: Claim, ended: threading.Event) -> None:
    while claim.rival is None and not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(StoreError, OSError):  # out of reach, perhaps not for long
            claim.renew()


def driver_of(objects: Objects) -> dict[str, Any] | None:
    """Host and pid of the live driver of a sweep whose notes these are; None without one."""
    found = _read(objects)
    return found if _lives(found) else None


def held(where: str, holder: Mapping[str, Any]) -> SweepDirError:
    """The error that another driver holds a sweep."""
    left = max(1, round(STALE_SECONDS - min(_age(holder), STALE_SECONDS)))
    return SweepDirError(
        where,
        f"held by another driver, process {holder.get('pid', '?')} on {holder.get('host', '?')}",
        "one driver at a time",
        f"wait for it, or stop it there; if it is dead, another can take over in {left} s",
    )


_DAMAGED: Mapping[str, Any] = {"damaged": True}  # in the way, and nobody's


def _read(objects: Objects) -> dict[str, Any]:
    """The claim that there is, empty without one."""
    try:
        found = json.loads(bytes(objects.read(DRIVER)))
    except FileNotFoundError:
        return {}
    except ValueError:
        return dict(_DAMAGED)
    return found if isinstance(found, dict) and "token" in found else dict(_DAMAGED)


def _is_damaged(found: Mapping[str, Any]) -> bool:
    return found == _DAMAGED


def _lives(found: Mapping[str, Any]) -> bool:
    """Whether a claim is a live driver's, as far as can be told from here."""
    return _age(found) < STALE_SECONDS and not _is_dead_here(found)


def _age(found: Mapping[str, Any]) -> float:
    """Seconds since it was renewed; a clock may be before ours as well as behind it."""
    then = found.get("t")
    return abs(time.time() - then) if isinstance(then, int | float) else float("inf")


def _is_dead_here(found: Mapping[str, Any]) -> bool:
    """Whether it is of a process of this host that is no more, or whose number we have now."""
    pid = found.get("pid")
    if found.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
