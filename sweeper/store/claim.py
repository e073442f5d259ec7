"""Who drives a sweep whose store is elsewhere: one driver at a time, on whichever machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper.duration import duration
from sweeper.errors import StoreError, SweepDirError
from sweeper.say import say
from sweeper.store.objects import Objects
from sweeper.sweep_dir import STALE_SECONDS, name_of

DRIVER = "driver.json"
RENEW_SECONDS = 20.0
LOOK_SECONDS = 2.0  # between two looks at another's claim
SETTLE_SECONDS = 3.0  # longer than it takes to delete a claim

_ONE = "one driver at a time"


class Claim:
    """A driver's claim to a sweep: an object that it renews for as long as it drives.

    No hard lock: a driver that was cut off for `STALE_SECONDS` may come back beside the one that
    took over. What both do then is harmless, for attempts are fenced in the store; the one that
    finds another's claim in the place of its own learns so, from `rival`, and has to drain.

    Parameters
    ----------
    directory : the driver's sweep directory, for people; empty if it is nobody's business.
    """

    def __init__(self, objects: Objects, directory: str = "") -> None:
        self.rival: Mapping[str, Any] | None = None
        self._objects = objects
        self._n_said = 0
        self._own = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            **_whereabouts(),
            "directory": directory,
            "token": uuid.uuid4().hex,
        }

    def take(self) -> None:
        """Take it, in the place of a dead driver's if need be.

        Raises
        ------
        SweepDirError : another driver holds it and lives.
        """
        while True:
            was_held = clear(self._objects)
            if not self._objects.create(DRIVER, self._said()):
                continue
            if was_held:  # who found it dead, too, may delete ours for it, a moment late
                _pause(SETTLE_SECONDS)
            if self._is_own(_read(self._objects)):
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
        """Other bytes each time: what tells others, whatever their clocks say, that we live."""
        self._n_said += 1
        return json.dumps({**self._own, "n": self._n_said, "t": round(time.time(), 3)}).encode()

    def _is_own(self, found: Mapping[str, Any]) -> bool:
        return found.get("token") == self._own["token"]


@contextlib.contextmanager
def claimed(objects: Objects, directory: str = "") -> Iterator[Claim]:
    """Hold the claim to a sweep, whose notes these objects are, and renew it meanwhile.

    Raises
    ------
    SweepDirError : another driver holds it and lives.
    """
    claim, ended = Claim(objects, directory), threading.Event()
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


def clear(objects: Objects, allowed: str = _ONE) -> bool:
    """Remove a dead driver's claim to a sweep whose notes these are; whether there was a claim.

    Dead is whose process is seen to be gone, and who says nothing for `STALE_SECONDS`, which are
    waited for: clocks of two machines are not compared.

    Parameters
    ----------
    allowed : what the error says may be.

    Raises
    ------
    SweepDirError : a driver holds it and lives.
    """
    was_held = False
    while (data := objects.find(DRIVER)) is not None:
        was_held = True
        if not _is_dead(_claim_of(data)):
            _listen(objects, data, allowed)
        if objects.find(DRIVER) == data:
            objects.delete(DRIVER)
    return was_held


def _listen(objects: Objects, data: bytes, allowed: str) -> None:
    """Wait until whose claim this is would have said something, or its claim is gone.

    Looks are counted: a machine that was suspended meanwhile does not take the others for dead.
    """
    where, said = objects.location, f"its driver, {name_of(_claim_of(data))}, is alive"
    say(f"{where}: waiting up to {STALE_SECONDS:g} s to see whether {said}")
    for _ in range(math.ceil(STALE_SECONDS / LOOK_SECONDS)):
        _pause(LOOK_SECONDS)
        now = objects.find(DRIVER)
        if now is None:
            return
        if now != data:
            raise held(where, _claim_of(now), allowed)


def _pause(seconds: float) -> None:
    time.sleep(seconds)


# --- what a claim says -----------------------------------------------------------------------


def driver_of(objects: Objects) -> dict[str, Any] | None:
    """The driver of a sweep whose notes these are, as its claim has it, which may be a dead one's.

    Returns
    -------
    Its `host` and `pid`, its sweep `directory`, and `t`, when it was heard of, by its clock. None
    without a claim, or if the process is seen to be gone.
    """
    found = _read(objects)
    if not found or _is_dead(found):
        return None
    return {key: found[key] for key in ("host", "pid", "directory", "t") if key in found}


def held(where: str, holder: Mapping[str, Any], allowed: str = _ONE) -> SweepDirError:
    """The error that another driver holds a sweep."""
    found = f"held by another driver, {name_of(holder)}"
    return SweepDirError(where, found, allowed, f"wait for it, or {stop_line(holder)}")


def perhaps_held(where: str, holder: Mapping[str, Any]) -> SweepDirError:
    """The error that another driver holds a sweep, unless it is dead, which only time can tell."""
    hint = f"{stop_line(holder)}; if it is dead, `sweeper resume` takes its place"
    found = f"held by another driver, {name_of(holder)}, {heard(holder)}"
    return SweepDirError(where, found, _ONE, hint)


def heard(holder: Mapping[str, Any]) -> str:
    """When it was heard of, as far as two clocks agree."""
    then = holder.get("t")
    if not isinstance(then, int | float):
        return "heard of nobody knows when"
    return f"heard of {duration(max(0.0, time.time() - then))} ago"


def stop_line(holder: Mapping[str, Any]) -> str:
    """How to stop it, where it is."""
    directory, host = holder.get("directory"), holder.get("host", "?")
    return f"`sweeper stop {directory}` on {host}" if directory else f"stop it on {host}"


_DAMAGED: Mapping[str, Any] = {"damaged": True}  # in the way, and nobody's


def _read(objects: Objects) -> dict[str, Any]:
    """The claim that there is, empty without one."""
    data = objects.find(DRIVER)
    return {} if data is None else _claim_of(data)


def _claim_of(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return dict(_DAMAGED)
    return found if isinstance(found, dict) and "token" in found else dict(_DAMAGED)


def _is_damaged(found: Mapping[str, Any]) -> bool:
    return found == _DAMAGED


def _is_dead(found: Mapping[str, Any]) -> bool:
    """Whether it is nobody's, or of a process that is seen to be gone.

    A number means a process only within one boot of a machine and one namespace: containers may
    share a host's name.
    """
    if _is_damaged(found):
        return True
    here, pid = _whereabouts(), found.get("pid")
    if any(value is None or found.get(key) != value for key, value in here.items()):
        return False
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    now, then = _started(pid), found.get("started")
    return None not in (now, then) and now != then


def _whereabouts() -> dict[str, str | None]:
    """What process numbers are of: the machine's boot, and the namespace; None if unknown."""
    boot = namespace = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"boot": boot, "namespace": namespace}


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot: a number may be another's by now."""
    try:
        found = Path(f"/proc/{pid}/stat").read_bytes()
        return found.rpartition(b")")[2].split()[19].decode()  # the 22nd of all, by proc(5)
    except (OSError, IndexError):
        return None
