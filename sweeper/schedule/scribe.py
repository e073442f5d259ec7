"""Turns an executor's events into journal lines, counts, `live.json` and calls of the display."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.attempt import Outcome, Progress, Waiting
from sweeper.durable import write_atomically
from sweeper.errors import StoreError
from sweeper.journal import Journal, Tally
from sweeper.room import is_full, when_there_is_room
from sweeper.schedule.executor import (
    Avoided,
    Event,
    Executor,
    Halt,
    Packed,
    Retry,
    Stranded,
    Tick,
)
from sweeper.schedule.retry import Failure
from sweeper.store.root import Root
from sweeper.sweep_dir import SweepDir

DIGEST_SECONDS = 30.0  # between two digests of the journal, or a hundred times what one takes
LIVE_SECONDS = 5.0  # between two versions of live.json


@dataclass
class Running:
    """An attempt in progress: what it said last, where it started, and when (Unix seconds)."""

    said: Progress
    first_step: int
    since: float
    beat: float


@dataclass
class Counts:
    """What a launch did, and what it is at.

    Parameters
    ----------
    works : the work of each trial that it is to run, in any one unit.
    running : the attempts in progress, by trial.
    avoided : the nodes that got no more trials.
    halt : why it stopped by itself.
    """

    works: Mapping[str, float]
    n_complete: int = 0
    n_diverged: int = 0
    n_failed: int = 0
    n_stopped: int = 0
    n_retried: int = 0
    work_done: float = 0.0  # of the trials that have ended
    work_before: float = 0.0  # that earlier launches did of the trials that this one went on with
    running: dict[str, Running] = field(default_factory=dict)
    avoided: list[Avoided] = field(default_factory=list)
    halt: Halt | None = None

    def __post_init__(self) -> None:
        self._work = sum(self.works.values())

    @property
    def n_todo(self) -> int:
        """Trials that this launch is to run."""
        return len(self.works)

    @property
    def n_ended(self) -> int:
        """Trials that need no more work in this launch."""
        return self.n_complete + self.n_diverged + self.n_failed

    @property
    def fraction(self) -> float:
        """How much of the launch's work is done, trials in progress included: 0 to 1."""
        if not self._work:
            return self.n_ended / self.n_todo if self.n_todo else 1.0
        return min(self._done / self._work, 1.0)

    @property
    def fraction_here(self) -> float:
        """How much of what this launch found to do is done: 0 to 1."""
        left = self._work - self.work_before
        return min((self._done - self.work_before) / left, 1.0) if left > 0 else self.fraction

    @property
    def _done(self) -> float:
        steps = ((trial, now.said.step, now.said.n_steps) for trial, now in self.running.items())
        return self.work_done + sum(self.part(*each) for each in steps)

    def part(self, trial_id: str, step: int, n_steps: int) -> float:
        """The work of a trial up to a step."""
        return self.works.get(trial_id, 0.0) * step / max(n_steps, 1)


class Scribe:
    """Writes down what happens.

    Parameters
    ----------
    tally : what the journal has so far; kept up to date.
    should_stop : whether not to wait for room on a full disk.
    """

    def __init__(
        self,
        folder: SweepDir,
        root: Root,
        journal: Journal,
        tally: Tally,
        counts: Counts,
        executor: Executor,
        on_event: Callable[[Event, Counts], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.tally = tally
        self._folder, self._root, self._journal = folder, root, journal
        self._counts, self._executor = counts, executor
        self._on_event, self._should_stop = on_event, should_stop
        self._begun: set[str] = set()  # trials that this launch has worked on
        self._saved, self._save_seconds, self._shown = time.monotonic(), 0.0, float("-inf")

    def write(self, event: str, **fields: Any) -> None:
        """Write an event into the journal, as soon as there is room for it."""
        try:
            line = when_there_is_room(
                lambda: self._journal.append(event, **fields), self._wait, self._should_stop
            )
        except OSError as error:
            if not is_full(error):
                raise
            return  # asked to stop meanwhile: the store tells the next launch what this would have
        self.tally.add(line)
        self.tally.offset = self._journal.offset

    def _wait(self, error: OSError) -> None:
        said = Waiting("", f"{self._folder.path}: {error.strerror}")
        self._on_event(said, self._counts)

    def take(self, event: Event) -> None:
        """Take an executor's event."""
        if isinstance(event, Tick):
            pass
        elif isinstance(event, Progress):
            self._take_progress(event)
        elif isinstance(event, Waiting):
            self._lives(event.trial_id)
        elif isinstance(event, Outcome):
            self._take_outcome(event)
        elif isinstance(event, Retry):
            self._counts.n_retried += 1
            self._take_failure("retried", event.failure, delay=event.delay)
        elif isinstance(event, Failure):
            self._counts.n_failed += 1
            self._counts.work_done += self._counts.works.get(event.trial_id, 0.0)
            self._take_failure("failed", event)
        elif isinstance(event, Packed):
            self._take_packed(event)
        elif isinstance(event, Avoided):
            self._take_avoided(event)
        elif isinstance(event, Stranded):
            self.write("stranded", kinds=event.kinds, shapes=event.shapes, n_trials=event.n_trials)
        else:
            self._counts.halt = event
        self._on_event(event, self._counts)
        self._keep_up()

    def _take_progress(self, said: Progress) -> None:
        now, known = time.time(), self._counts.running.get(said.trial_id)
        if known is not None and known.said.attempt == said.attempt:
            known.said, known.beat = said, now
            return
        if said.trial_id not in self._begun:
            self._begun.add(said.trial_id)
            self._counts.work_before += self._counts.part(said.trial_id, said.step, said.n_steps)
        self._counts.running[said.trial_id] = Running(said, said.step, now, now)
        self.write(
            "started",
            trial=said.trial_id,
            attempt=said.attempt,
            host=said.host,
            device=said.device,
            step=said.step,
            n_steps=said.n_steps,
            per_gpu=said.per_gpu,
        )

    def _lives(self, trial_id: str) -> None:
        if trial_id in self._counts.running:
            self._counts.running[trial_id].beat = time.time()

    def _take_outcome(self, outcome: Outcome) -> None:
        counts, ran = self._counts, self._counts.running.pop(outcome.trial_id, None)
        fields = {"trial": outcome.trial_id, "attempt": outcome.attempt, "seconds": outcome.seconds}
        if outcome.state == "stopped":
            counts.n_stopped += 1
            self.write("stopped", **fields, steps=_steps_made(ran))
            return
        counts.n_complete += outcome.state == "complete"
        counts.n_diverged += outcome.state == "diverged"
        counts.work_done += counts.works.get(outcome.trial_id, 0.0)
        # A complete trial may have made its last steps after its last report.
        is_whole = ran is not None and outcome.state == "complete"
        steps = ran.said.n_steps - ran.first_step if ran and is_whole else _steps_made(ran)
        self.write("finished", **fields, state=outcome.state, steps=steps, digest=outcome.digest)

    def _take_failure(self, event: str, failure: Failure, **fields: Any) -> None:
        ran = self._counts.running.pop(failure.trial_id, None)
        said = ran.said if ran is not None else None
        self.write(
            event,
            trial=failure.trial_id,
            attempt=said.attempt if said else None,
            kind=failure.kind,
            error=failure.error,
            message=failure.message,
            signature=failure.signature,
            host=failure.host or (said.host if said else ""),
            device=said.device if said else "",
            **fields,
        )
        if failure.kind == "lost" and not failure.host:  # of which the worker could say nothing
            where = f"attempt {said.attempt} on {said.host} ({said.device})" if said else "attempt"
            with contextlib.suppress(StoreError, OSError):
                self._root.log(failure.trial_id)(f"{where} lost: {failure.message}")

    def _take_packed(self, packed: Packed) -> None:
        self.write(
            "packed",
            shape=packed.shape,
            kind=packed.kind,
            per_gpu=packed.per_gpu,
            reason=packed.reason,
            peak_bytes=packed.peak_bytes,
            device_bytes=packed.device_bytes,
        )

    def _take_avoided(self, avoided: Avoided) -> None:
        self._counts.avoided.append(avoided)
        self.write(
            "avoided",
            node=avoided.node,
            host=avoided.host,
            reason=avoided.reason,
            trials=avoided.trial_ids,
            signature=avoided.signature,
        )

    # --- what can always be made again ----------------------------------------------------

    def _keep_up(self) -> None:
        now = time.monotonic()
        if now - self._shown >= LIVE_SECONDS:
            self._shown = now
            self._write_live()
        if now - self._saved > max(DIGEST_SECONDS, 100 * self._save_seconds):
            self.save()

    def save(self) -> None:
        """Replace the digest of the journal."""
        started = time.monotonic()
        with room_or_not():
            self.tally.save(self._folder.status)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - started

    def _write_live(self) -> None:
        found = {
            "t": round(time.time(), 3),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "n_slots": self._executor.n_slots,
            "n_gpus": self._executor.n_gpus,
            "is_draining": self._should_stop() or self._counts.halt is not None,
            "running": {trial: _seen(now) for trial, now in self._counts.running.items()},
        }
        with room_or_not():
            write_atomically(self._folder.live, json.dumps(found).encode())

    def close(self) -> None:
        """Leave the digest, and nothing that says that a driver is at work."""
        self.save()
        self._folder.live.unlink(missing_ok=True)


def _steps_made(ran: Running | None) -> int:
    """The optimizer steps of an attempt, as far as it has said."""
    return ran.said.step - ran.first_step if ran is not None else 0


def _seen(now: Running) -> dict[str, Any]:
    said = now.said
    return {
        "attempt": said.attempt,
        "step": said.step,
        "n_steps": said.n_steps,
        "epoch": round(said.epoch, 3),
        "host": said.host,
        "device": said.device,
        "per_gpu": said.per_gpu,
        "since": round(now.since, 3),
        "beat": round(now.beat, 3),
    }


@contextlib.contextmanager
def room_or_not() -> Iterator[None]:
    """What can always be made again is not written to a full disk."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
