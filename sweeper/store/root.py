"""What a sweep's workers write, below one root: predictions, checkpoints, logs.

The root is the sweep directory, or with `--store` another folder or a URL.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from sweeper.durable import PARTIAL
from sweeper.room import is_full
from sweeper.store.local import LocalObjects
from sweeper.store.objects import Objects, open_objects
from sweeper.sweep_dir import PREDICTIONS

LOG_SECONDS = 30.0  # between two versions of a log in a bucket, which cannot be appended to

Log = Callable[[str], None]


class Root:
    """The parts of one root, by their names."""

    def __init__(self, location: str | Path) -> None:
        self._objects = open_objects(location)
        self.predictions = self._objects.below(PREDICTIONS)
        self._checkpoints = self._objects.below("checkpoints")

    @property
    def location(self) -> str:
        """A path or a URL."""
        return self._objects.location

    def checkpoints(self, trial_id: str) -> Objects:
        """A trial's checkpoints; there are none once it is complete."""
        return self._checkpoints.below(trial_id)

    def checkpointed(self) -> list[str]:
        """The ids of the trials that have checkpoints."""
        return self._checkpoints.names("")

    def remove_checkpoints(self, trial_id: str) -> None:
        """Remove a complete trial's checkpoints."""
        self._checkpoints.delete(trial_id)

    def remove_partials(self, older_than: float = 0.0) -> None:
        """Remove the temporary files that killed workers left.

        Those of a seal that was killed go with the next seal of that trial: what is sealed, nearly
        all of a store, is not searched.
        """
        parts = (self.predictions.below(key) for key in ("staging", "samples"))
        for objects in (*parts, self._checkpoints):
            objects.remove_partials(older_than)
        for name in self.predictions.names(""):
            if name.endswith(PARTIAL) and not older_than:
                self.predictions.delete(name)

    def log(self, trial_id: str) -> Log:
        """What adds a line to a trial's log."""
        if isinstance(self._objects, LocalObjects):
            return _FileLog(self._objects.root / "logs" / f"{trial_id}.log").add
        name = f"logs/{trial_id}/{time.strftime('%Y%m%dT%H%M%S')}-{socket.gethostname()}"
        name = f"{name}-{os.getpid()}-{uuid.uuid4().hex[:6]}"  # one process may make two a second
        return _ObjectLog(self._objects, f"{name}.log").add

    def log_parts(self, trial_id: str) -> dict[str, bytes]:
        """What a trial's attempts have logged: the one file's bytes, or each object's by its name.

        Oldest first; each part only ever grows. Empty when nothing was logged.
        """
        if isinstance(self._objects, LocalObjects):
            names = [f"{trial_id}.log"]
        else:
            names = [f"{trial_id}/{name}" for name in self._objects.names(f"logs/{trial_id}")]
        found = {}
        for name in names:
            data = self._objects.find(f"logs/{name}")
            if data is not None:
                found[name] = data
        return found

    def read_log(self, trial_id: str) -> str:
        """All that a trial's attempts have logged, oldest first; empty when that is nothing."""
        return b"".join(self.log_parts(trial_id).values()).decode(errors="replace")


def _stamped(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {text}\n"


class _FileLog:
    """One file a trial, all attempts one after another."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, text: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(_stamped(text))
        except OSError as error:  # what matters waits for room by itself
            if not is_full(error):
                raise


class _ObjectLog:
    """One object a process and trial, written anew now and then, and whenever it may be the end."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._text, self._written = "", 0.0

    def add(self, text: str) -> None:
        self._text += _stamped(text)
        if text.startswith("snapshot") and time.monotonic() - self._written < LOG_SECONDS:
            return
        self._written = time.monotonic()
        with contextlib.suppress(UnicodeEncodeError):
            self._objects.write(self._key, self._text.encode(errors="backslashreplace"))
