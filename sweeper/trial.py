"""One attempt at one trial: restore, train, record, seal. Knows no scheduler."""

from __future__ import annotations

import contextlib
import math
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.config import SCHEMA_VERSION, TrialConfig
from sweeper.durable import crash_point
from sweeper.errors import CheckpointError, ConfigError, MissingStoreError, StoreError
from sweeper.plan import Size
from sweeper.room import is_full, when_there_is_room
from sweeper.store.objects import Objects
from sweeper.store.opening import create_store
from sweeper.store.root import Root
from sweeper.store.schema import SampleSet, sealed_layout
from sweeper.store.seal import State, is_sealed, remove_leftovers, seal
from sweeper.store.staging import StagedTrial, owner_of
from sweeper.store.writer import AttemptWriter, TrialHeader
from sweeper.sweep_dir import environment
from sweeper.train import checkpoint, data, labels_fitted, metric_names, planned_steps, train
from sweeper.train.corner import relabelled
from sweeper.train.loop import Moment
from sweeper.train.memory import keep_freed_memory

T = TypeVar("T")

Lineage = list[tuple[int, int, str]]  # attempt, its first snapshot, the token of its claim


def size_of(config: TrialConfig) -> Size:
    """What the trial will store; nothing is read for it."""
    described = data.describe(config.data)
    n_samples = [described.n_test]
    if config.record.train == "predictions":
        n_samples.append(described.n_train)
    n_snapshots = len(planned_steps(config))
    shapes = [(n_snapshots, n, len(described.class_names)) for n in n_samples]
    n_shards = sum(math.ceil(shape[1] / sealed_layout(shape)[1]) for shape in shapes)
    # The log and the trial's metadata; those of each array, and its shards.
    n_files = 2 + len(shapes) + n_shards + 2 * len(relabelled(config))
    return Size(n_snapshots, 2 * sum(map(math.prod, shapes)), n_files)


def run_attempt(
    order: Order,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Progress | Waiting], None],
) -> Outcome:
    """Run a trial from its last checkpoint to its end, recording every snapshot on the way.

    A complete trial is left alone. Killed at any instant, the next attempt repeats at most the
    work since the last checkpoint; on a CPU it ends with the same digest. While a disk is full
    the attempt waits for room. Errors are written to the trial's log with their traceback, then
    raised.

    Parameters
    ----------
    should_stop : asked after every step; when true the attempt checkpoints and returns.
    on_progress : called after the attempt is claimed, then at most once a second, and each time
        that the attempt has to wait for room.
    """
    attempt = _Attempt(order, should_stop, on_progress)
    try:
        return attempt.run()
    except SystemExit as error:  # of a plug-in; it must not end the slot and its other trials
        attempt.log_failure()
        raise RuntimeError(f"the trial's code asked to exit with {error.code!r}") from error
    except Exception as error:
        if is_full(error) and should_stop():
            return attempt.outcome("stopped", None)
        attempt.log_failure()
        raise


class _Attempt:
    """The state of one attempt; `run` is the whole story."""

    def __init__(
        self,
        order: Order,
        should_stop: Callable[[], bool],
        on_progress: Callable[[Progress | Waiting], None],
    ) -> None:
        self.order, self.should_stop, self.on_progress = order, should_stop, on_progress
        self.root = Root(order.root)
        self.log = self.root.log(order.trial_id)
        self.checkpoints = self.root.checkpoints(order.trial_id)
        self.number = 0  # until one is claimed
        self.started = time.monotonic()

    def run(self) -> Outcome:
        torch.set_num_threads(self.order.threads)
        keep_freed_memory()
        config = TrialConfig.from_flat(self.order.config)
        objects = self._patiently(lambda: create_store(self.root.predictions))
        if is_sealed(objects, self.order.trial_id):
            found = self._patiently(lambda: remove_leftovers(objects, self.order.trial_id))
            self._patiently(lambda: self.root.remove_checkpoints(self.order.trial_id))
            self.number = int(found["attempts"][-1]["attempt"])
            return self.outcome(found["state"], found["digest"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        header = _header(self.order, config, device)
        return self._record(objects, config, header, device)

    def _patiently(self, write: Callable[[], T]) -> T:
        """Write, as soon as there is room for it."""

        def on_full(error: OSError) -> None:
            reason = f"{self.root.location}: {error.strerror}"
            self.on_progress(Waiting(self.order.trial_id, reason))

        return when_there_is_room(write, on_full, self.should_stop)

    def _record(
        self, objects: Objects, config: TrialConfig, header: TrialHeader, device: torch.device
    ) -> Outcome:
        restored = self._restore(objects, header)
        first = restored.next_snapshot
        writer = self._patiently(lambda: AttemptWriter(objects, header, first))
        self.number = writer.attempt
        lineage = [*restored.lineage, (writer.attempt, restored.next_snapshot, writer.claim)]
        n_steps = header.steps[-1]
        self.log(
            f"attempt {writer.attempt} on {socket.gethostname()} ({device}), "
            f"step {restored.step} of {n_steps}"
        )
        self._report(writer.attempt, restored.step, n_steps, device)
        state: State = "diverged" if restored.diverged else "complete"
        with _Recorder(self._append(writer)) as recorder:
            next_snapshot, saved = restored.next_snapshot, time.monotonic()
            reported = saved
            for moment in self._moments(config, device, restored):
                if moment.diverged:
                    if next_snapshot == 0:
                        where = f"trial {self.order.trial_id}"
                        raise ConfigError(where, "predictions before training are not finite")
                    state = "diverged"
                    break
                if moment.snapshot is not None:
                    recorder.record(moment)
                    next_snapshot = moment.snapshot + 1
                now, stop = time.monotonic(), self.should_stop()
                if stop or now - saved >= self.order.checkpoint_seconds:
                    recorder.wait()  # a checkpoint claims only what is durable
                    self._save(lineage, next_snapshot, moment)
                    saved = now
                if stop:
                    self.log(f"stopped at step {moment.step}")
                    return self.outcome("stopped", None)
                if now - reported >= 1:
                    self._report(writer.attempt, moment.step, n_steps, device)
                    reported = now
        return self._finish(objects, writer, state)

    def _append(self, writer: AttemptWriter) -> Callable[[Moment], None]:
        """What records a moment, and says so in the log once it is durable."""

        def append(moment: Moment) -> None:
            assert moment.snapshot is not None
            snapshot = moment.snapshot
            self._patiently(
                lambda: writer.append(snapshot, moment.epoch, moment.metrics, moment.log_probs)
            )
            self.log(_line(moment))

        return append

    def _moments(
        self, config: TrialConfig, device: torch.device, restored: _Restored
    ) -> Iterator[Moment]:
        """The moments left to record; none when the last snapshot is already staged."""
        if not restored.all_staged:
            yield from train(config, device=device, state=restored.state)

    def _finish(self, objects: Objects, writer: AttemptWriter, state: State) -> Outcome:
        trial_id = self.order.trial_id
        digest = self._patiently(lambda: seal(objects, trial_id, state, writer.attempt))
        self._patiently(lambda: self.root.remove_checkpoints(trial_id))
        self.log(f"{state}, digest {digest[:12]}")
        return self.outcome(state, digest)

    # --- checkpoints ----------------------------------------------------------------------

    def _restore(self, objects: Objects, header: TrialHeader) -> _Restored:
        """Where this attempt starts: after all snapshots, at a checkpoint, or at the beginning."""
        try:
            staged = StagedTrial(objects, self.order.trial_id)
        except MissingStoreError:  # nothing, or a crash before the first attempt was claimed
            return _Restored()
        n_planned = len(header.steps)
        sets = {split: samples.hash for split, samples in header.sample_sets.items()}
        if staged.n_recorded == n_planned and all(
            _is_of(staged, i, sets) for i in range(n_planned)
        ):
            step = int(staged.header["steps"][-1])
            return _Restored(next_snapshot=n_planned, step=step, all_staged=True)
        self.checkpoints.remove_partials()
        for name in sorted(self._checkpoints(), key=_checkpoint_step, reverse=True):
            where = f"{self.checkpoints.location}/{name}"
            try:
                found = checkpoint.from_bytes(self.checkpoints.read(name), where)
            except CheckpointError as error:
                self.log(f"{error}; ignored")
                continue
            lineage = [(int(n), int(first), str(claim)) for n, first, claim in found["lineage"]]
            if _descends(lineage, found["next_snapshot"], staged, sets):
                return _Restored(
                    lineage=lineage,
                    next_snapshot=found["next_snapshot"],
                    step=found["state"]["step"],
                    diverged=found["state"]["diverged"],
                    state=found["state"],
                )
        return _Restored()

    def _checkpoints(self) -> list[str]:
        return [name for name in self.checkpoints.names("") if name.endswith(".pt")]

    def _save(self, lineage: Lineage, next_snapshot: int, moment: Moment) -> None:
        """Write a checkpoint; the snapshots it claims are durable already.

        The files of a newer attempt are left alone: this process may be a late one.
        """
        claims = [list(claim) for claim in lineage]
        data = checkpoint.to_bytes(
            {"lineage": claims, "next_snapshot": next_snapshot, "state": moment.state()}
        )
        written = f"{self.number}-{moment.step}.pt"
        self._patiently(lambda: self.checkpoints.write(written, data))
        crash_point("checkpoint")
        self._patiently(lambda: self._remove_older(written))
        crash_point("checkpoint-removed")

    def _remove_older(self, written: str) -> None:
        for name in self._checkpoints():
            if name != written and _checkpoint_attempt(name) <= self.number:
                self.checkpoints.delete(name)

    # --- reports --------------------------------------------------------------------------

    def _report(self, attempt: int, step: int, n_steps: int, device: torch.device) -> None:
        host = socket.gethostname()
        self.on_progress(Progress(self.order.trial_id, attempt, step, n_steps, host, str(device)))

    def outcome(self, state: str, digest: str | None) -> Outcome:
        """How this attempt ended."""
        seconds = round(time.monotonic() - self.started, 3)
        return Outcome(self.order.trial_id, self.number, state, seconds, digest)

    def log_failure(self) -> None:
        """Add the traceback of the error that is being handled to the trial's log."""
        with contextlib.suppress(StoreError, OSError):  # it must not hide that error
            self.log("failed\n" + traceback.format_exc())


class _Recorder:
    """Records one moment at a time in a thread of its own, while training goes on.

    An error of a recording is raised at the next one, at `wait`, or at the end.
    """

    def __init__(self, append: Callable[[Moment], None]) -> None:
        self._append = append
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._pending: Future[None] | None = None

    def record(self, moment: Moment) -> None:
        """Start to record a moment, once the one before it is durable."""
        self.wait()
        self._pending = self._thread.submit(self._append, moment)

    def wait(self) -> None:
        """Return when all that was recorded is durable."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


@dataclass(frozen=True)
class _Restored:
    """Where an attempt starts; the default is the beginning."""

    lineage: Lineage = field(default_factory=list)
    next_snapshot: int = 0
    step: int = 0
    diverged: bool = False
    all_staged: bool = False
    state: dict[str, Any] | None = None


def _descends(
    lineage: Lineage, next_snapshot: int, staged: StagedTrial, sets: Mapping[str, str]
) -> bool:
    """Whether the staged snapshots before a checkpoint are the ones it was trained through.

    A late older attempt can write a checkpoint after a newer one took over its tail, and after a
    repair numbers begin again; going on from it would leave a hole, or join two attempts' paths.
    """
    firsts = [(number, first) for number, first, _ in lineage]
    tokens = {number: claim for number, _, claim in lineage}

    def is_the_one(snapshot: int) -> bool:
        owner = owner_of(snapshot, staged.claims)
        if owner is None or owner != owner_of(snapshot, firsts):
            return False
        same = staged.headers[owner]["claim"] == tokens[owner]
        return same and _is_of(staged, snapshot, sets)

    return all(is_the_one(snapshot) for snapshot in range(next_snapshot))


def _is_of(staged: StagedTrial, snapshot: int, sets: Mapping[str, str]) -> bool:
    """Whether a snapshot is staged, of these sets of samples: the data may have changed since."""
    owner = owner_of(snapshot, staged.claims)
    return staged.is_present(snapshot) and staged.headers[owner or 0]["sample_sets"] == sets


def _checkpoint_step(name: str) -> int:
    return int(name.removesuffix(".pt").partition("-")[2])


def _checkpoint_attempt(name: str) -> int:
    return int(name.partition("-")[0])


def _header(order: Order, config: TrialConfig, device: torch.device) -> TrialHeader:
    splits = data.load(config.data)
    targets = {phase: labels.numpy() for phase, labels in labels_fitted(config, splits).items()}
    recorded = ("test", "train") if config.record.train == "predictions" else ("test",)
    return TrialHeader(
        trial_id=order.trial_id,
        schema=SCHEMA_VERSION,
        config=config.to_flat(),
        identity=config.identity,
        steps=planned_steps(config),
        metrics=metric_names(config),
        sample_sets={split: _sample_set(splits, split) for split in recorded},
        targets=targets,
        target_set=_sample_set(splits, "train") if targets else None,
        provenance=_provenance(order, device),
    )


def sample_sets(config: Mapping[str, Any]) -> list[SampleSet]:
    """The sets of samples of a flat configuration's data, test and train.

    Raises
    ------
    ConfigError : the data is not here, or the configuration cannot be read.
    """
    splits = data.load(TrialConfig.from_flat(config).data)
    return [_sample_set(splits, split) for split in ("test", "train")]


def _sample_set(splits: data.Splits, split: str) -> SampleSet:
    labels, ids = (getattr(splits, f"{split}_{what}").numpy() for what in ("y", "ids"))
    return SampleSet(split, labels, ids, splits.class_names)


def _provenance(order: Order, device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        **environment(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": order.threads,
        "plug_ins": dict(order.plug_ins),
        # On a CPU equal threads, instruction set and versions give equal bits; elsewhere rounding.
        "reproducible": "to rounding" if on_gpu else "bit for bit",
    }


def _line(moment: Moment) -> str:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in moment.metrics.items())
    return f"snapshot {moment.snapshot} at step {moment.step}, epoch {moment.epoch:.2f}: {metrics}"
