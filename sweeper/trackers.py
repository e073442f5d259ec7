"""Tell a lab's own tracker of every snapshot, through the tracker's own client.

The store stays the truth: an attempt that goes on with a trial first tells all that was recorded
before, and each client (`tracker_clients`) leaves out, or replaces, what its run has already.

Nothing that a tracker does reaches its trial: each one works in a thread of its own, its first
failure is its last word in that attempt, and nobody waits for it longer than `FINISH_SECONDS`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from sweeper.attempt import Order
from sweeper.errors import SweeperError, nearest
from sweeper.store.objects import Objects
from sweeper.store.staging import StagedTrial
from sweeper.tracker_clients import CLIENTS, Point, Run

FINISH_SECONDS = 10.0  # that the end of an attempt waits for its trackers, all of them together


def check_trackers(names: Iterable[str], root: str | Path) -> tuple[str, ...]:
    """The names, each once, of trackers that can be used here; nothing of theirs is imported.

    Parameters
    ----------
    root : where the workers write: a folder or a URL.

    Raises
    ------
    SweeperError : an unknown tracker, one that is not installed, or one that lacks its place.
    """
    for name in (unique := tuple(dict.fromkeys(names))):
        if name not in CLIENTS:
            allowed = f"one of {', '.join(CLIENTS)}"
            raise SweeperError(
                "--log-to", f"unknown tracker `{name}`", allowed, nearest(name, CLIENTS)
            )
        if not _is_installed(name):
            hint = f"`pip install 'sweeper[{name}]'`, here and wherever the workers run"
            raise SweeperError("--log-to", f"`{name}` is not installed", hint=hint)
    if "tensorboard" in unique and "://" in str(root):
        hint = "leave out `--store`, or log to another tracker"
        found = "`tensorboard` with a store that is a URL"
        raise SweeperError("--log-to", found, "a folder, for its event files", hint)
    if "mlflow" in unique and not os.environ.get("MLFLOW_TRACKING_URI"):
        hint = "set it to your server's address, wherever the workers run too"
        found = "`mlflow` without MLFLOW_TRACKING_URI"
        raise SweeperError("--log-to", found, "where its runs go, in the environment", hint)
    return unique


def _is_installed(package: str) -> bool:
    """Whether there is such a package; a folder of that name, as `wandb` makes one, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


class Trackers:
    """The trackers of one attempt; no method raises what a tracker does.

    `snapshot` may be called from another thread than the others, until `end`.
    """

    def __init__(self, order: Order, log: Callable[[str], None]) -> None:
        self._order, self._log = order, log
        self._followers: list[_Follower] = []

    def start(self, config: Mapping[str, Any], objects: Objects) -> None:
        """Open every tracker that the order names, and tell it what earlier attempts recorded.

        Parameters
        ----------
        config : the trial's, flat and whole.
        objects : the store, in which this attempt is claimed.
        """
        names = dict.fromkeys(self._order.log_to)
        if not names:
            return
        try:
            # At once: it may be sealed, so no longer staged, when a slow tracker is ready for it.
            points = StagedTrial(objects, self._order.trial_id).moments()
            run = Run(self._order.trial_id, self._order.sweep, self._order.root, config)
            self._followers = [_Follower(name, run, points) for name in names]
        except Exception as error:
            self._write(f"{', '.join(names)}: {_said(error)}; this attempt is not tracked")
        self._report()

    def snapshot(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Tell of a snapshot that is durable."""
        if not self._followers:
            return
        point = {"step": step, "epoch": epoch, "time": time.time(), **metrics}
        for follower in self._followers:
            follower.tell(point)
        self._report()

    def end(self, state: str) -> None:
        """Tell how the attempt ended, and wait a little until everything is told."""
        until = time.monotonic() + FINISH_SECONDS
        for follower in self._followers:
            follower.tell(state)
        for follower in self._followers:
            follower.wait(max(0.0, until - time.monotonic()))
        self._report()
        self._followers = []

    def _report(self) -> None:
        """Add the failures that were not seen before to the trial's log."""
        for follower in self._followers:
            if follower.failure and not follower.is_reported:
                follower.is_reported = True
                self._write(f"{follower.name}: {follower.failure}; nothing more is told to it")

    def _write(self, text: str) -> None:
        with suppress(Exception):  # a log that cannot be written is no reason to end a trial
            self._log(text)


class _Follower:
    """One tracker in one attempt. Its thread is a daemon: a client that hangs holds up no exit."""

    _late: dict[str, Thread] = {}  # noqa: RUF012 - by tracker, of all attempts of this process

    def __init__(self, name: str, run: Run, history: Sequence[Point]) -> None:
        self.name, self.failure, self.is_reported = name, "", False
        self._run, self._history = run, history
        self._told: SimpleQueue[Point | str] = SimpleQueue()
        self._thread = Thread(target=self._follow, name=f"track-{name}", daemon=True)
        late = self._late.get(name)
        if late is not None and late.is_alive():  # or every trial would wait for it at its end
            self.failure = "it is still busy with the trial before"
        else:
            self._thread.start()

    def tell(self, what: Point | str) -> None:
        """Have the client told of a snapshot, or of the state at the end."""
        if not self.failure:
            self._told.put(what)

    def wait(self, seconds: float) -> None:
        """Wait until the client has done all that it was told."""
        if self._thread.ident is None:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._late[self.name] = self._thread
            self.failure = self.failure or "not done by the end of the attempt, nobody waits for it"

    def _follow(self) -> None:
        try:
            client = CLIENTS[self.name](self._run)
            for point in self._history:
                client.write(point)
            while not isinstance(told := self._told.get(), str):
                client.write(told)
            client.close(told)
        except BaseException as error:  # a client may exit, or raise KeyboardInterrupt
            self.failure = self.failure or _said(error)


def _said(error: BaseException) -> str:
    """What an error says, on one line, without what may be a secret."""
    text = re.sub(r"://[^\s/]*@", "://", " ".join(str(error).split()))
    text = re.sub(r"(://[^\s?]*)\?\S*", r"\1", text)
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", name.upper()):
            text = text.replace(value, f"({name})")
    return f"{type(error).__name__}: {text[:300]}"
