"""Waiting for a sweep's driver: watching what it does, or asking it to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text

from sweeper.durable import write_atomically
from sweeper.errors import SweepDirError, few
from sweeper.room import is_full
from sweeper.status.live import read_live
from sweeper.status.summary import Status
from sweeper.status.text import status_line, status_lines
from sweeper.sweep_dir import SweepDir, name_of

SCREEN_SECONDS = 2.0
LINE_SECONDS = 30.0
STOP_SECONDS = 1.0

Pause = Callable[[float], None]


def watch(
    place: str, status: Callable[[], Status], stream: TextIO, pause: Pause = time.sleep
) -> None:
    """Show a status until its sweep is not driven any more.

    On a terminal it is redrawn in place; elsewhere it is a line now and then, and at the end.
    """
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        while (found := status()).driver is not None:
            print(status_line(found), file=stream, flush=True)
            pause(LINE_SECONDS)
        print(*status_lines(place, found), sep="\n", file=stream)
        return
    with Screen(console=console, auto_refresh=False, vertical_overflow="visible") as screen:
        while True:
            found = status()
            screen.update(Text("\n".join(status_lines(place, found))), refresh=True)
            if found.driver is None:
                return
            pause(SCREEN_SECONDS)


def stop(folder: SweepDir, say: Callable[[str], None], pause: Pause = time.sleep) -> bool:
    """Ask the driver to drain, and wait until it has gone; whether there was one.

    The request is a file, which the driver looks for, so that it reaches any host; it says whom
    it is for, and is removed when that driver has gone. On a full disk it is empty, or a signal.

    Raises
    ------
    SweepDirError : the disk has no room for an empty file either, and the driver is elsewhere.
    """
    driver = folder.driver()
    if driver is None:
        folder.stop_request.unlink(missing_ok=True)
        return False
    _ask(folder, driver)
    say(f"asked {name_of(driver)} to stop: its trials checkpoint, then it ends")
    said = ""
    while _is_there(folder, driver):
        if (text := _awaited(folder, driver)) != said:
            say(text)
            said = text
        pause(STOP_SECONDS)
    folder.stop_request.unlink(missing_ok=True)
    return True


def _ask(folder: SweepDir, driver: Mapping[str, Any]) -> None:
    """Leave the request, or what there is room for: the driver asks only whether it is there."""
    request = {"t": time.time(), "host": driver.get("host"), "pid": driver.get("pid")}
    try:
        write_atomically(folder.stop_request, json.dumps(request).encode())
    except OSError as error:
        if not is_full(error):
            raise
        try:
            folder.stop_request.touch()
        except OSError:
            _signal(folder, driver)


def _signal(folder: SweepDir, driver: Mapping[str, Any]) -> None:
    pid, host = driver.get("pid"), driver.get("host")
    if host != socket.gethostname() or not isinstance(pid, int) or pid <= 1:
        raise SweepDirError(
            str(folder.stop_request),
            f"no room on the disk to ask process {pid or '?'} on {host or '?'}",
            "a file of no bytes",
            f"make room, or send it SIGTERM on its host: `kill {pid or 'PID'}`",
        )
    with contextlib.suppress(ProcessLookupError):  # it has ended by now
        os.kill(pid, signal.SIGTERM)


def _is_there(folder: SweepDir, driver: Mapping[str, Any]) -> bool:
    """Whether it is still this driver that holds the directory."""
    found = folder.driver()
    return found is not None and (not found or found.get("pid") == driver.get("pid"))


def _awaited(folder: SweepDir, driver: Mapping[str, Any]) -> str:
    """What the driver is waiting for."""
    live = read_live(folder.live, driver)
    if live is None or not live.running:
        return "waiting for the driver to end"
    running = [f"{trial} on {found.get('host', '?')}" for trial, found in live.running.items()]
    return f"waiting for {few(running)}"
