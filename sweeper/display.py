"""What a launch shows while it runs: a bar on a terminal, a line per half-minute elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sweeper.attempt import Outcome, Waiting
from sweeper.schedule.driver import Counts
from sweeper.schedule.executor import Event, Failure, Lost

LINE_SECONDS = 30.0
PAUSED_SECONDS = 60.0


@contextmanager
def display() -> Iterator[Display]:
    """A display on standard error that keeps working while Ray's talk is redirected."""
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1) as stream:
        console = Console(file=stream, highlight=False, soft_wrap=True)
        shown = _Bar(console) if console.is_terminal else _Lines(stream)
        try:
            yield shown
        finally:
            shown.close()


class Display:
    """Shows a launch; `__call__` takes every event."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._paused = float("-inf")

    def __call__(self, event: Event, counts: Counts) -> None:
        """Show one event."""
        if isinstance(event, Failure):
            self.say(
                f"trial {event.trial_id} failed ({event.kind}): {event.error}: "
                f"{event.message.splitlines()[0] if event.message else ''}"
            )
        elif isinstance(event, Lost):
            self.say(f"trial {event.trial_id} lost its worker; it is run again")
        elif isinstance(event, Waiting):
            if time.monotonic() - self._paused >= PAUSED_SECONDS:  # every slot says so, often
                self._paused = time.monotonic()
                self.say(f"{event.reason}; paused, goes on as soon as there is room")
        elif isinstance(event, Outcome) and event.state == "diverged":
            self.say(f"trial {event.trial_id} diverged; recorded up to there")
        self.show(counts)

    def say(self, text: str) -> None:
        """Print a line."""
        raise NotImplementedError

    def show(self, counts: Counts) -> None:
        """Update how far it is."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the terminal as it was."""

    def left(self, counts: Counts) -> str:
        """The time that is left, from the rate so far."""
        if not counts.n_ended:
            return "time left unknown"
        elapsed = time.monotonic() - self._started
        seconds = elapsed / counts.n_ended * (counts.n_todo - counts.n_ended)
        return f"{duration(seconds)} left"


class _Bar(Display):
    """A bar that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._progress.add_task("trials", total=None, left="starting slots")
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text)

    def show(self, counts: Counts) -> None:
        failed = f", {counts.n_failed} failed" if counts.n_failed else ""
        self._progress.update(
            self._task,
            total=counts.n_todo,
            completed=counts.n_ended,
            left=self.left(counts) + failed,
        )

    def close(self) -> None:
        self._progress.stop()


class _Lines(Display):
    """A line per half-minute."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._shown = stream, self._started

    def say(self, text: str) -> None:
        print(text, file=self._stream)

    def show(self, counts: Counts) -> None:
        if time.monotonic() - self._shown < LINE_SECONDS:
            return
        self._shown = time.monotonic()
        failed = f", {counts.n_failed} failed" if counts.n_failed else ""
        self.say(f"{counts.n_ended}/{counts.n_todo} trials{failed}, {self.left(counts)}")


def counter(what: str) -> Callable[[int, int], None]:
    """Shows on standard error how many of how many are done, a line per half-minute."""
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            print(f"{done:,}/{total:,} {what}", file=sys.stderr)

    return show


def duration(seconds: float) -> str:
    """Seconds in words of two units at most: `48 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    whole = round(seconds)
    for size, name, next_size, next_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // next_size} {next_name}"
    return f"{whole} s"
