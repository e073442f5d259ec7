"""What a launch shows while it runs: one view on a terminal, a line per half-minute elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sweeper.attempt import Outcome, Waiting
from sweeper.duration import duration
from sweeper.say import say
from sweeper.schedule.executor import Avoided, Event, Halt, Packed, Retry, Stranded
from sweeper.schedule.retry import Failure
from sweeper.schedule.scribe import Counts

LINE_SECONDS = 30.0
PAUSED_SECONDS = 60.0
RECENT = 5  # events on the view
DEVICES_SHOWN = 8


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """A display on standard error that keeps working while Ray's talk is redirected."""
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="replace") as stream:
        console = Console(file=stream, highlight=False, soft_wrap=True)
        shown = _View(console) if console.is_terminal else _Lines(stream)
        try:
            yield shown
        finally:
            shown.close()


class Display:
    """Shows a launch; `__call__` takes every event.

    What happens alike to many trials is said of the first, and counted.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._paused = float("-inf")
        self._said: set[str] = set()

    def __call__(self, event: Event, counts: Counts) -> None:
        """Show one event; where nothing can be shown any more, the sweep goes on."""
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe or terminal
            for text in self._news(event):
                self.say(text)
            self.show(counts)

    def _news(self, event: Event) -> Iterator[str]:
        """What is worth a line."""
        if isinstance(event, (Failure, Retry)):
            yield from self._failed(event)
        elif isinstance(event, Waiting):
            if time.monotonic() - self._paused >= PAUSED_SECONDS:  # every slot says so, often
                self._paused = time.monotonic()
                yield f"{event.reason}; paused, goes on as soon as there is room"
        elif isinstance(event, Outcome) and event.state == "diverged":
            yield f"trial {event.trial_id} diverged; recorded up to there"
        elif isinstance(event, Packed):
            kind = f" of kind {event.kind}" if event.kind else ""
            yield f"{event.shape}: {event.per_gpu or 'none'} a GPU{kind} ({event.reason})"
        elif isinstance(event, (Avoided, Stranded)):
            yield str(event)
        elif isinstance(event, Halt):
            yield f"{event.n_failed} trials in a row failed alike; stopping"

    def _failed(self, event: Failure | Retry) -> Iterator[str]:
        failure = event if isinstance(event, Failure) else event.failure
        key = f"{type(event).__name__} {failure.signature}"
        if key in self._said:
            return
        self._said.add(key)
        first = failure.message.splitlines()[0] if failure.message else ""
        what = f"{failure.error}: {first}" if failure.error != "WorkerDied" else first
        end = "failed" if event is failure else "is run again"
        yield f"trial {failure.trial_id} {end} ({failure.kind}): {what}"

    def say(self, text: str) -> None:
        """Print a line."""
        raise NotImplementedError

    def show(self, counts: Counts) -> None:
        """Update how far it is."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the terminal as it was."""

    def left(self, counts: Counts) -> str:
        """The time that is left, from what this launch has done of its work so far."""
        done = counts.fraction_here
        if done < 1e-3:
            return "time left unknown"
        elapsed = time.monotonic() - self._started
        return f"{duration(elapsed / done * (1 - done))} left"


def _counted(counts: Counts) -> str:
    """How many trials are done, and what else there is to count."""
    percent = int(100 * counts.fraction)  # not rounded: 100 % is the end
    parts = [f"{counts.n_ended:,}/{counts.n_todo:,} trials", f"{percent} % of the work"]
    named = {
        "running": len(counts.running),
        "diverged": counts.n_diverged,
        "failed": counts.n_failed,
        "run again": counts.n_retried,
    }
    return ", ".join([*parts, *(f"{n:,} {name}" for name, n in named.items() if n)])


class _View(Display):
    """One view that is redrawn in place: a bar by work, what runs where, the last events."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._bar = Progress(
            BarColumn(None), TimeElapsedColumn(), TextColumn("{task.fields[left]}")
        )
        self._task = self._bar.add_task("", total=1.0, left="starting slots")
        self._live = Live(self._bar, console=console, refresh_per_second=2, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        self._recent.append(f"{time.strftime('%H:%M:%S')} {text}")

    def show(self, counts: Counts) -> None:
        self._bar.update(self._task, completed=counts.fraction, left=self.left(counts))
        lines = [_counted(counts), *_running(counts), *self._recent]
        shown = (Text(line, no_wrap=True, overflow="ellipsis") for line in lines)
        self._live.update(Group(self._bar, *shown))

    def close(self) -> None:
        self._live.stop()


def _running(counts: Counts) -> list[str]:
    """A line for each device, the trials that it runs with how far each is."""
    devices: dict[str, list[str]] = {}
    for trial, now in sorted(counts.running.items()):
        done = now.said.step / max(now.said.n_steps, 1)
        where = f"{now.said.host} {now.said.device}"
        devices.setdefault(where, []).append(f"{trial} {done:.0%}")
    lines = [f"  {where}: {', '.join(trials)}" for where, trials in sorted(devices.items())]
    more = len(lines) - DEVICES_SHOWN
    return lines if more <= 0 else [*lines[:DEVICES_SHOWN], f"  and {more} devices more"]


class _Lines(Display):
    """A line per half-minute, and one for each new kind of event."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._shown = stream, self._started

    def say(self, text: str) -> None:
        print(text, file=self._stream)

    def show(self, counts: Counts) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.say(f"{_counted(counts)}, {self.left(counts)}")


def counter(what: str) -> Callable[[int, int], None]:
    """Shows on standard error how many of how many are done, a line per half-minute."""
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            say(f"{done:,}/{total:,} {what}")

    return show
