"""Drive one launch of a sweep: hold the directory, run what is missing, write down what happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sweeper.attempt import CHECKPOINT_SECONDS, Order, Outcome, Progress, Waiting
from sweeper.config import SCHEMA_VERSION, Flat, TrialConfig, upgrade
from sweeper.durable import PARTIAL, write_atomically
from sweeper.errors import SweepDirError, UnavailableStoreError
from sweeper.grid import Trial
from sweeper.journal import Journal, Tally
from sweeper.plan import Plan, plug_in_hashes, write_plan
from sweeper.room import is_full, when_there_is_room
from sweeper.schedule.executor import Event, Executor, Failure, Lost
from sweeper.store import Store
from sweeper.store.index import write_index
from sweeper.store.opening import check_format, create_store
from sweeper.store.root import Root
from sweeper.store.seal import remove_leftovers
from sweeper.sweep_dir import SweepDir, environment

THREADS_PER_TRIAL = 1  # fixed when a sweep is made: another number gives other bits
DIGEST_SECONDS = 30.0
SHARED_SECONDS = 3600.0  # after which a temporary file in a shared store is taken for a leftover


@dataclass(frozen=True)
class Launch:
    """What a launch is asked to do beyond its plan."""

    name: str
    grid_text: str | None = None  # None when resuming without the grid file
    limit: int | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    allow_code_change: bool = False
    root: str | None = None  # of the store, where it is not the sweep's own


@dataclass
class Counts:
    """What a launch did."""

    n_todo: int
    n_complete: int = 0
    n_diverged: int = 0
    n_failed: int = 0
    n_stopped: int = 0

    @property
    def n_ended(self) -> int:
        """Trials that need no more work in this launch."""
        return self.n_complete + self.n_diverged + self.n_failed


def complete_trials(root: str) -> dict[str, Flat]:
    """The trials that a store holds complete: configurations by id, both in today's schema."""
    predictions = Root(root).predictions
    if all(name.endswith(PARTIAL) for name in predictions.names("")):
        return {}  # not there, or a crash while it was made
    return _complete(Store(predictions))


def _complete(store: Store) -> dict[str, Flat]:
    check_format(store.objects)
    found = {}
    for label, summary in store.summaries().items():
        config = upgrade(summary.config, summary.schema)
        if summary.schema != SCHEMA_VERSION:
            label = TrialConfig.from_flat(config).trial_id
        found[label] = config
    return found


def threads_per_trial(folder: SweepDir) -> int:
    """The number that this sweep was made with."""
    return int(folder.read_manifest().get("threads_per_trial", THREADS_PER_TRIAL))


def drive(
    folder: SweepDir,
    plan: Plan,
    launch: Launch,
    executor: Executor,
    on_event: Callable[[Event, Counts], None],
) -> Counts:
    """Run what the plan has left, in this directory, as its only driver.

    Raises
    ------
    SweepDirError : another driver holds the directory, it holds another sweep, or a plug-in's
        source has changed.
    """
    with folder.locked(), _signals() as stop:
        hashes = plug_in_hashes(plan.trials)
        _check_name(folder, launch)
        _check_code(folder, hashes, launch)
        root = Root(folder.root(launch.root))
        store, complete = _remove_leftovers(folder, root)
        left = [trial for trial in plan.todo if trial.trial_id not in complete]
        todo = left[: launch.limit]
        _write_down(folder, plan, launch, hashes)
        counts = Counts(len(todo))
        with Journal(folder.journal) as journal:
            tally = Tally.read(folder.status, folder.journal)
            scribe = _Scribe(folder, journal, tally, counts, on_event, stop.is_set)
            scribe.reconcile(store, {trial.trial_id for trial in plan.trials} & complete)
            scribe.write(
                "launched",
                n_planned=len(plan.trials),
                n_todo=len(todo),
                n_slots=executor.n_slots,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
            executor.run(_orders(folder, root, todo, launch, hashes), scribe.take, stop.is_set)
            scribe.write("ended", reason=_reason(counts, len(todo)))
            scribe.save()
        with _room_or_not(), contextlib.suppress(UnavailableStoreError):
            write_index(store.objects, Store(store.objects).summary)
    return counts


def _reason(counts: Counts, n_todo: int) -> str:
    if counts.n_ended < n_todo:
        return "stopped"
    return "failures" if counts.n_failed else "complete"


def _orders(
    folder: SweepDir, root: Root, todo: Sequence[Trial], launch: Launch, hashes: Mapping[str, str]
) -> list[Order]:
    threads = threads_per_trial(folder)
    return [
        Order(
            trial_id=trial.trial_id,
            config=trial.config.to_flat(),
            root=root.location if "://" in root.location else os.path.abspath(root.location),
            threads=threads,
            checkpoint_seconds=launch.checkpoint_seconds,
            plug_ins={name: hashes[name] for name in trial.config.plug_ins()},
        )
        for trial in todo
    ]


def _remove_leftovers(folder: SweepDir, root: Root) -> tuple[Store, set[str]]:
    """Remove what crashes left behind; returns the store and the ids that are complete in it."""
    store = Store(create_store(root.predictions))
    folder.remove_partials()
    is_shared = root.location != str(folder.path)  # perhaps with another sweep, at this moment
    root.remove_partials(older_than=SHARED_SECONDS if is_shared else 0)
    complete = set(_complete(store))
    left_over = {*store.objects.names("staging"), *root.checkpointed()}
    for trial_id in left_over & complete:
        remove_leftovers(store.objects, trial_id)
        root.remove_checkpoints(trial_id)
    return store, complete


def _check_name(folder: SweepDir, launch: Launch) -> None:
    """Refuse to put one grid's trials into another's directory."""
    name = folder.read_manifest().get("name", launch.name)
    if name != launch.name:
        raise SweepDirError(
            str(folder.path),
            f"holds the sweep `{name}`, and the grid is named `{launch.name}`",
            "one sweep a directory",
            "use another --sweep-dir; an extended grid keeps its name",
        )


def _check_code(folder: SweepDir, hashes: Mapping[str, str], launch: Launch) -> None:
    """Refuse to mix two versions of a plug-in's source in one sweep."""
    known = folder.read_manifest().get("plug_ins", {})
    changed = [name for name, value in hashes.items() if known.get(name, value) != value]
    if changed and not launch.allow_code_change:
        raise SweepDirError(
            str(folder.path),
            f"the source of `{changed[0]}` has changed since this sweep's first trials",
            "one version of the code in a sweep",
            "use another --sweep-dir, or --allow-code-change to mix them",
        )


def _write_down(folder: SweepDir, plan: Plan, launch: Launch, hashes: Mapping[str, str]) -> None:
    """What was asked, and with what."""
    if launch.grid_text is not None:
        write_atomically(folder.grid, launch.grid_text.encode())
        write_plan(folder.plan, plan)
    manifest = folder.read_manifest()
    made = {"name": launch.name, "created": time.time(), "threads_per_trial": THREADS_PER_TRIAL}
    if launch.root:
        made["store"] = launch.root
    entry = {"t": time.time(), "n_trials": len(plan.trials), **environment()}
    folder.write_manifest(
        {
            **made,
            **manifest,
            "plug_ins": {**manifest.get("plug_ins", {}), **hashes},
            "launches": [*manifest.get("launches", []), entry],
        }
    )


@dataclass
class _Scribe:
    """Turns an executor's events into journal lines, counts and calls of the display."""

    folder: SweepDir
    journal: Journal
    tally: Tally
    counts: Counts
    on_event: Callable[[Event, Counts], None]
    should_stop: Callable[[], bool]
    saved: float = 0.0

    def __post_init__(self) -> None:
        self._attempts: dict[str, int] = {}

    def write(self, event: str, **fields: Any) -> None:
        try:
            line = when_there_is_room(
                lambda: self.journal.append(event, **fields), self._wait, self.should_stop
            )
        except OSError as error:
            if not is_full(error):
                raise
            return  # asked to stop meanwhile: the store tells the next launch what this would have
        self.tally.add(line)
        self.tally.offset = self.journal.offset

    def _wait(self, error: OSError) -> None:
        self.on_event(Waiting("", f"{self.folder.path}: {error.strerror}"), self.counts)

    def reconcile(self, store: Store, complete: set[str]) -> None:
        """Write down what the store holds complete and a killed driver could not."""
        ended = ("complete", "diverged")
        unknown = [
            trial
            for trial in sorted(complete)
            if self.tally.trials.get(trial, {}).get("state") not in ended
        ]
        for trial in unknown:
            found = store.summary(trial)
            self.write(
                "finished",
                trial=trial,
                attempt=found.attempt,
                state=found.state,
                digest=found.digest,
            )

    def take(self, event: Event) -> None:
        trial = event.trial_id
        if isinstance(event, Progress):
            if self._attempts.get(trial) != event.attempt:
                self._attempts[trial] = event.attempt
                self.write(
                    "started",
                    trial=trial,
                    attempt=event.attempt,
                    host=event.host,
                    device=event.device,
                    step=event.step,
                    n_steps=event.n_steps,
                )
        elif isinstance(event, Outcome):
            self._take_outcome(event)
        elif isinstance(event, Failure):
            self.counts.n_failed += 1
            self.write(
                "failed",
                trial=trial,
                attempt=self._attempts.get(trial),
                kind=event.kind,
                error=event.error,
                message=event.message,
            )
        elif isinstance(event, Lost):
            self.write("lost", trial=trial)
        self.on_event(event, self.counts)
        if time.monotonic() - self.saved > DIGEST_SECONDS:
            self.save()

    def _take_outcome(self, outcome: Outcome) -> None:
        fields = {"trial": outcome.trial_id, "attempt": outcome.attempt, "seconds": outcome.seconds}
        if outcome.state == "stopped":
            self.counts.n_stopped += 1
            self.write("stopped", **fields)
            return
        self.counts.n_complete += outcome.state == "complete"
        self.counts.n_diverged += outcome.state == "diverged"
        self.write("finished", **fields, state=outcome.state, digest=outcome.digest)

    def save(self) -> None:
        with _room_or_not():
            self.tally.save(self.folder.status)
        self.saved = time.monotonic()


@contextlib.contextmanager
def _room_or_not() -> Iterator[None]:
    """What can always be made again is not written to a full disk."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


class _Stop:
    """Set by the first signal; the second one ends the process."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._set and number == signal.SIGINT:
            os._exit(130)
        self._set = True


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Drain at the first SIGINT, SIGTERM or SIGUSR1; a second SIGINT kills."""
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
