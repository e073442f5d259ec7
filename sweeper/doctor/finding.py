"""What a check finds: that all is well, or what is not and how it is cured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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


Look = Callable[[], Iterable[Finding]]

SLOW = "find out what it waits for: a disk, a network, or a machine that is busy"


@dataclass(frozen=True)
class Check:
    """What is to be looked at.

    Parameters
    ----------
    look : finds what there is to find.
    place : what it may have to wait for, as it is named when it does.
    late : what it means that it takes too long.
    cure : what to do about that.
    """

    look: Look
    place: str = ""
    late: Verdict = "warn"
    cure: str = SLOW


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


def attempt(name: str, look: Look) -> Iterator[Finding]:
    """What a check finds; an exception of it is a finding, too, beside those before it."""
    try:
        yield from look()
    except SweeperError as error:
        yield refused(name, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        cure = "check that the path is right, may be used, and has room"
        yield failed(name, f"{where}{error.strerror or error}", cure)
    except (Exception, SystemExit) as error:  # of whatever kind: the other checks go on
        said = " ".join(str(error).split())
        cure = _INSTALL if isinstance(error, ImportError) else ""
        yield failed(name, f"the check ended with {type(error).__name__}: {said}", cure)


def run_checks(seconds: float, *lanes: Mapping[str, Check]) -> list[Finding]:
    """What all checks find, each whatever became of the others.

    Parameters
    ----------
    seconds : after which a check that has not ended is late, and those behind it are not begun.
    lanes : run side by side, the checks of one after another: by lane nothing is waited for twice,
        and what is slow holds up its own lane alone.
    """
    deadline = time.monotonic() + seconds
    begun = [_Lane(checks) for checks in lanes]
    return [finding for lane in begun for finding in lane.found_by(deadline, seconds)]


class _Lane:
    """Checks that run one after another, from now on, in a thread of their own."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks, self._left = checks, list(checks)
        self._found: list[Finding] = []
        self._is_over = threading.Event()
        # A thread that hangs in the system, as on a network disk that is gone, cannot be ended.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for name, check in self._checks.items():
            if self._is_over.is_set():
                return
            self._found.extend(attempt(name, check.look))
            self._left.remove(name)

    def found_by(self, deadline: float, seconds: float) -> list[Finding]:
        """What was found by then, and what was not."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_over.set()
        found, left = list(self._found), list(self._left)
        if left:
            late = self._checks[left[0]]
            where = f"{late.place}: " if late.place else ""
            text = f"{where}no answer within {seconds:.0f} s"
            found.append(Finding(left[0], late.late, text, late.cure))
        unseen = "not looked at: `{}` before it took too long"
        return [*found, *(warned(name, unseen.format(left[0]), "") for name in left[1:])]


_INSTALL = "`pip install sweeper` brings what it needs"
