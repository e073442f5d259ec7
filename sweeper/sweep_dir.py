"""The sweep directory: where everything is, who is driving it, and what it was made with."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sweeper.durable import PARTIAL, write_atomically
from sweeper.errors import SweepDirError

PREDICTIONS = "predictions.zarr"  # a sweep directory's store

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # a heartbeat older than this, from another host, is a dead driver's

_RECORDED_PACKAGES = (
    *("sweeper", "torch", "torchvision", "ray", "numpy", "scikit-learn"),
    *("zarr", "numcodecs", "obstore"),
)


class SweepDir:
    """The paths of one sweep, and the lock that makes its driver the only one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.grid = self.path / "grid.yaml"
        self.plan = self.path / "plan.parquet"
        self.manifest = self.path / "manifest.json"
        self.journal = self.path / "journal.jsonl"
        self.status = self.path / "status.json"
        self.live = self.path / "live.json"
        self.stop_request = self.path / "stop.request"
        self.driver_log = self.path / "driver.log"
        self.analysis = self.path / "analysis"
        self._lock = self.path / "driver.lock"

    def root(self, asked: str | None = None) -> str:
        """Where the store, the checkpoints and the logs are: here, or a folder or URL elsewhere.

        Parameters
        ----------
        asked : where they are to be; None for where they are, or for here.

        Raises
        ------
        SweepDirError : this directory's are elsewhere already.
        """
        manifest = self.read_manifest()
        known = str(manifest.get("store", self.path))
        if manifest and asked not in (None, known):
            raise SweepDirError(
                str(self.path),
                f"its store is at `{known}`, not at `{asked}`",
                "one store a sweep",
                "leave out --store, or use another --sweep-dir",
            )
        return asked or known

    def remove_partials(self) -> None:
        """Remove the temporary files that killed drivers left.

        Those of an analysis are left alone: it may be at work, and removes its own.
        """
        for path in self.path.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    def require(self) -> SweepDir:
        """Itself, if a sweep was ever launched in it.

        Raises
        ------
        SweepDirError : it does not exist or holds no sweep.
        """
        if not self.manifest.is_file():
            found = "not a sweep directory" if self.path.exists() else "no such directory"
            hint = "`sweeper launch GRID` makes one, by default `runs/<grid name>`"
            raise SweepDirError(str(self.path), found, "a directory with a manifest.json", hint)
        return self

    # --- the driver's lock ----------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory as its only driver.

        The kernel's file lock decides, so that a killed driver never blocks the next one. On
        file systems that do not carry locks from host to host the heartbeat decides.

        Raises
        ------
        SweepDirError : another live driver holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a+", encoding="utf-8") as file:
            if not _take(file):
                raise self.held_by(_read_holder(file))
            holder = _read_holder(file)
            if _is_alive_elsewhere(holder, self._lock):
                raise self.held_by(holder)
            _write_holder(file, {"host": socket.gethostname(), "pid": os.getpid()})
            stop = threading.Event()
            beat = threading.Thread(target=_beat, args=(self._lock, stop), daemon=True)
            beat.start()
            try:
                yield
            finally:
                stop.set()
                beat.join()
                _write_holder(file, {})

    def held_by(self, holder: Mapping[str, Any]) -> SweepDirError:
        """The error that another driver holds the directory."""
        return SweepDirError(
            str(self.path),
            f"held by another driver, {name_of(holder)}",
            "one driver at a time",
            f"wait for it, or `sweeper stop {self.path}` lets it checkpoint and end",
        )

    def driver(self) -> dict[str, Any] | None:
        """Host and pid of the live driver, None when there is none. Changes nothing."""
        try:
            with self._lock.open("r", encoding="utf-8") as file:
                holder = _read_holder(file)
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return holder
        except FileNotFoundError:
            return None
        return holder if _is_alive_elsewhere(holder, self._lock) else None

    # --- the manifest ---------------------------------------------------------------------

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, empty when the sweep was never launched.

        Raises
        ------
        SweepDirError : it is there and unreadable.
        """
        try:
            return manifest_of(str(self.manifest), self.manifest.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        write_atomically(self.manifest, json.dumps(dict(manifest), indent=1).encode())


def name_of(driver: Mapping[str, Any]) -> str:
    """A driver, for people, by what its lock or its claim says of it."""
    return f"process {driver.get('pid', '?')} on {driver.get('host', '?')}"


def manifest_of(where: str, data: bytes) -> dict[str, Any]:
    """The manifest in these bytes, which are at `where`.

    Raises
    ------
    SweepDirError : they are none.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise SweepDirError(where, f"unreadable ({error})", "JSON") from error
    if not isinstance(found, dict):
        raise SweepDirError(where, "not a mapping", "a JSON object")
    return found


def _take(file: IO[str]) -> bool:
    """Lock the file; whether it was possible within half a second.

    Who asks for the status holds the lock for an instant, and a driver has it for an instant
    before its name is in the file.
    """
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _read_holder(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read() or "{}")
    except ValueError:  # a driver died while it wrote its name
        return {}
    return found if isinstance(found, dict) else {}


def _write_holder(file: IO[str], holder: Mapping[str, Any]) -> None:
    file.truncate(0)
    file.write(json.dumps(dict(holder)) if holder else "")
    file.flush()


def _is_alive_elsewhere(holder: Mapping[str, Any], lock: Path) -> bool:
    """Whether a driver on another host still beats, as far as the file's time can tell."""
    if not holder or holder.get("host") == socket.gethostname():
        return False
    return time.time() - lock.stat().st_mtime < STALE_SECONDS


def _beat(lock: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(lock)


@functools.cache
def environment() -> Mapping[str, Any]:
    """Versions, commit and hardware of this process, for manifests and provenance."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "commit": _commit(),
        "versions": {name: _version(name) for name in _RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the user's working directory, None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
