"""When a driver drains: at a signal, at its time, or because it is asked to in the directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 1.0  # between two looks for a request


class Stop:
    """Set by the first signal, by a request, or after so many seconds; and then for good.

    Parameters
    ----------
    request : a file whose being there asks to stop; it works from another machine, too.
    after : seconds from now.
    """

    def __init__(self, request: Path, after: float | None = None) -> None:
        self._request = request
        self._deadline = time.monotonic() + after if after is not None else float("inf")
        self._looked = float("-inf")
        self._set = self._interrupted = False

    def is_set(self) -> bool:
        """Whether to drain; asked often."""
        now = time.monotonic()
        if not self._set and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._set = self.is_asked
        self._set = self._set or now >= self._deadline
        return self._set

    @property
    def is_asked(self) -> bool:
        """Whether a person asks for it, also where it drains already for another reason."""
        return os.path.exists(self._request)  # and not an error of a network disk

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; the second SIGINT ends the process."""
        if number == signal.SIGINT:
            if self._interrupted:
                os._exit(130)
            self._interrupted = True
        self._set = True


@contextlib.contextmanager
def stopping(request: Path, after: float | None) -> Iterator[Stop]:
    """Drain at the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP; a second SIGINT kills.

    No request is left behind. One that names another process is of a driver before this one.
    """
    if not _is_for_us(request):
        request.unlink(missing_ok=True)
    stop = Stop(request, after)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` would have it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop.signalled) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.unlink(missing_ok=True)


def _is_for_us(request: Path) -> bool:
    try:
        found = json.loads(request.read_bytes())
    except (OSError, ValueError):
        return False
    ours = {"host": socket.gethostname(), "pid": os.getpid()}
    return isinstance(found, dict) and ours.items() <= found.items()
