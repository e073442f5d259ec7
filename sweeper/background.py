"""A driver that goes on when the terminal is closed: the same command, in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from sweeper.errors import SweeperError
from sweeper.say import say
from sweeper.sweep_dir import SweepDir

LOOK_SECONDS = 0.2
LOG_LINES = 10  # of a driver that did not come up


_ENDED = (0, 3, 4)  # exit codes of a launch that has run
_MARK = "SWEEPER_DETACHED"  # set for the process that goes on


def is_detached() -> bool:
    """Whether this is the process that goes on in the background."""
    return _MARK in os.environ


def detach(folder: SweepDir) -> None:
    """Start this process's command again in the background, and see that it drives the sweep.

    Raises
    ------
    SweepDirError : another driver holds the directory.
    SweeperError : the new one ended before it held it, and what it said.
    """
    if (driver := folder.driver()) is not None:
        raise folder.held_by(driver)
    folder.path.mkdir(parents=True, exist_ok=True)
    # As the script is started: without -P a file here would hide one of Python's own modules.
    command = [sys.executable, "-P", "-m", "sweeper", *sys.argv[1:]]
    with folder.driver_log.open("ab") as log:
        child = subprocess.Popen(
            command,
            env=os.environ | {_MARK: "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    if not _is_driving(folder, child):
        say(f"it has ended already; {folder.driver_log} tells how")
        return
    say(f"process {child.pid} drives it and writes {folder.driver_log}")
    say(f"`sweeper status {folder.path} --watch` shows it")
    say(f"`sweeper stop {folder.path}` lets it checkpoint and end")


def _is_driving(folder: SweepDir, child: subprocess.Popen[bytes]) -> bool:
    """Wait until the child holds the directory; false when it has done so and ended since."""
    while True:
        driver = folder.driver()
        if driver is not None and driver.get("pid") == child.pid:
            return True
        code = child.poll()
        if code in _ENDED:
            return False
        if code is not None:
            said = folder.driver_log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
            raise SweeperError(
                str(folder.path),
                f"the driver ended with exit code {code} before it began",
                hint="\n".join([f"{folder.driver_log} ends with:", *said]),
            )
        time.sleep(LOOK_SECONDS)
