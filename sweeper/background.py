"""A driver that goes on when the terminal is closed: the same command, in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from sweeper.errors import SweeperError
from sweeper.sweep_dir import SweepDir

LOOK_SECONDS = 0.2
LOG_LINES = 10  # of a driver that did not come up


_MARK = "SWEEPER_DETACHED"  # set for the process that goes on


def is_detached() -> bool:
    """Whether this is the process that goes on in the background."""
    return _MARK in os.environ


def detach(folder: SweepDir) -> None:
    """Start this process's command again in the background, and see that it drives the sweep.

    Raises
    ------
    SweeperError : it ended before it held the directory, and what it said.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.driver_log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "sweeper", *sys.argv[1:], "--yes"],
            env=os.environ | {_MARK: "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _wait_for(folder, child)
    print(f"process {child.pid} drives it and writes {folder.driver_log}", file=sys.stderr)
    print(f"`sweeper status {folder.path} --watch` shows it", file=sys.stderr)
    print(f"`sweeper stop {folder.path}` lets it checkpoint and end", file=sys.stderr)


def _wait_for(folder: SweepDir, child: subprocess.Popen[bytes]) -> None:
    """Until the child holds the directory, or has ended well because nothing was left to run."""
    while True:
        driver = folder.driver()
        if driver is not None and driver.get("pid") == child.pid:
            return
        code = child.poll()
        if code == 0:
            return
        if code is not None:
            said = folder.driver_log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
            raise SweeperError(
                str(folder.path),
                f"the driver ended with exit code {code} before it began",
                hint="\n".join([f"{folder.driver_log} ends with:", *said]),
            )
        time.sleep(LOOK_SECONDS)
