"""What a check finds: that all is well, or what is not and how it is cured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sweeper.errors import SweeperError

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found in one place.

    Parameters
    ----------
    check : a word or two that name it.
    verdict : `fail` for what would stop the sweep, or spoil it.
    text : what was found; a number with a unit behind it is a measurement (see `report.fold`).
    cure : what to do about it; empty where all is well.
    """

    check: str
    verdict: Verdict
    text: str
    cure: str = ""


Check = Callable[[], Iterable[Finding]]


def passed(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "pass", text)


def warned(check: str, text: str, cure: str) -> Finding:
    """Something may go wrong, or is slow."""
    return Finding(check, "warn", text, cure)


def failed(check: str, text: str, cure: str) -> Finding:
    """Something will go wrong."""
    return Finding(check, "fail", text, cure)


def refused(check: str, error: SweeperError) -> Finding:
    """An error of ours, as a finding."""
    return Finding(check, "fail", str(error), error.hint)


def attempt(name: str, check: Check) -> list[Finding]:
    """What a check finds; an exception of it is a finding, too, beside those before it."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except SweeperError as error:
        found.append(refused(name, error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        cure = "check that the path is right, may be used, and has room"
        found.append(failed(name, f"{where}{error.strerror or error}", cure))
    except (Exception, SystemExit) as error:  # of whatever kind: the other checks go on
        said = " ".join(str(error).split())
        cure = _INSTALL if isinstance(error, ImportError) else ""
        found.append(failed(name, f"the check ended with {type(error).__name__}: {said}", cure))
    return found


def run_checks(checks: Mapping[str, Check], seconds: float) -> list[Finding]:
    """What all checks find, one after another, each whatever became of those before it.

    Parameters
    ----------
    seconds : after which a check that has not ended fails, and those after it are not begun.
    """
    found: list[Finding] = []
    left = list(checks)
    in_time = threading.Event()
    in_time.set()

    def run() -> None:
        for name, check in checks.items():
            if in_time.is_set():
                found.extend(attempt(name, check))
                left.remove(name)

    # A thread that hangs in the system, as on a network disk that is gone, cannot be ended.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    in_time.clear()
    late = failed(left[0], f"no answer within {seconds:.0f} s", _SLOW) if left else None
    return [*found, *([late] if late else []), *(warned(n, _NOT_BEGUN, _SLOW) for n in left[1:])]


_INSTALL = "`pip install sweeper` brings what it needs"
_NOT_BEGUN = "not looked at: the checks before took too long"
_SLOW = "find out what it waits for: a disk, a network, or a machine that is busy"
