"""One attempt at one trial: restore, train, record, seal. Knows no scheduler."""

from __future__ import annotations

import contextlib
import math
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.config import SCHEMA_VERSION, TrialConfig, content_id
from sweeper.durable import crash_point
from sweeper.errors import ConfigError, StoreError
from sweeper.plan import Size
from sweeper.resuming import Checkpoints, Lineage, Restored, name_of
from sweeper.room import is_full, when_there_is_room
from sweeper.store.objects import Objects
from sweeper.store.opening import create_store
from sweeper.store.root import Root
from sweeper.store.schema import SampleSet, sealed_layout
from sweeper.store.seal import State, is_sealed, remove_leftovers, seal
from sweeper.store.writer import AttemptWriter, TrialHeader
from sweeper.sweep_dir import environment
from sweeper.trackers import Trackers
from sweeper.train import data, labels_fitted, metric_names, planned_steps, train
from sweeper.train.corner import relabelled
from sweeper.train.cost import cost_of
from sweeper.train.loop import Moment
from sweeper.train.memory import begin_share, device_name, keep_freed_memory, peak_memory

T = TypeVar("T")


def size_of(config: TrialConfig) -> Size:
    """What the trial will store and cost; nothing is read for it."""
    described = data.describe(config.data)
    n_samples = [described.n_test]
    if config.record.train == "predictions":
        n_samples.append(described.n_train)
    cost = cost_of(config)
    shapes = [(cost.n_snapshots, n, len(described.class_names)) for n in n_samples]
    n_shards = sum(math.ceil(shape[1] / sealed_layout(shape)[1]) for shape in shapes)
    # The log and the trial's metadata; those of each array, and its shards.
    n_files = 2 + len(shapes) + n_shards + 2 * len(relabelled(config))
    n_bytes = 2 * sum(map(math.prod, shapes))
    return Size(cost.n_snapshots, n_bytes, n_files, cost.n_steps, cost.work)


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
        self.checkpoints = Checkpoints(self.root.checkpoints(order.trial_id), self.log)
        self.trackers = Trackers(order, self.log)
        self.number, self.device = 0, "no device"  # until one is claimed
        self.started = time.monotonic()

    def run(self) -> Outcome:
        torch.set_num_threads(self.order.threads)
        keep_freed_memory()
        config = _config_of(self.order)
        objects = self._patiently(lambda: create_store(self.root.predictions))
        if is_sealed(objects, self.order.trial_id):
            found = self._patiently(lambda: remove_leftovers(objects, self.order.trial_id))
            self._patiently(lambda: self.root.remove_checkpoints(self.order.trial_id))
            self.number = int(found["attempts"][-1]["attempt"])
            return self.outcome(found["state"], found["digest"])
        on_gpu = torch.cuda.is_available()
        device = torch.device(f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")
        self.device = device_name(device)
        begin_share(device, self.order.per_gpu)
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
        restored = self.checkpoints.restore(objects, header)
        first = restored.next_snapshot
        writer = self._patiently(lambda: AttemptWriter(objects, header, first))
        self.number = writer.attempt
        lineage = [*restored.lineage, (writer.attempt, restored.next_snapshot, writer.claim)]
        n_steps = header.steps[-1]
        self.log(
            f"attempt {writer.attempt} on {socket.gethostname()} ({device}), "
            f"step {restored.step} of {n_steps}"
        )
        self._report(restored.step, n_steps, 0.0, device)
        self.trackers.start(config.to_flat(), objects)
        state: State = "diverged" if restored.diverged else "complete"
        with _Recorder(self._append(writer)) as recorder:
            next_snapshot, saved = restored.next_snapshot, time.monotonic()
            reported, last = saved, None
            for moment in self._moments(config, device, restored):
                last = moment
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
                    self._report(moment.step, n_steps, moment.epoch, device)
                    self.log(f"stopped at step {moment.step}")
                    return self.outcome("stopped", None)
                if now - reported >= 1:
                    self._report(moment.step, n_steps, moment.epoch, device)
                    reported = now
        if last is not None:  # a short trial says here alone how much memory it took
            self._report(last.step, n_steps, last.epoch, device)
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
            self.trackers.snapshot(moment.step, moment.epoch, moment.metrics)

        return append

    def _moments(
        self, config: TrialConfig, device: torch.device, restored: Restored
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

    def _save(self, lineage: Lineage, next_snapshot: int, moment: Moment) -> None:
        """Write a checkpoint, then remove those before it."""
        name = name_of(self.number, moment.step)
        state = moment.state()
        self._patiently(lambda: self.checkpoints.write(name, lineage, next_snapshot, state))
        crash_point("checkpoint")
        self._patiently(lambda: self.checkpoints.remove_older(name))
        crash_point("checkpoint-removed")

    # --- reports --------------------------------------------------------------------------

    def _report(self, step: int, n_steps: int, epoch: float, device: torch.device) -> None:
        host, trial_id, per_gpu = socket.gethostname(), self.order.trial_id, self.order.per_gpu
        said = (trial_id, self.number, step, n_steps, host, self.device, epoch, per_gpu)
        self.on_progress(Progress(*said, *peak_memory(device)))

    def outcome(self, state: str, digest: str | None) -> Outcome:
        """How this attempt ended."""
        seconds = round(time.monotonic() - self.started, 3)
        self.trackers.end(state)
        return Outcome(self.order.trial_id, self.number, state, seconds, digest)

    def log_failure(self) -> None:
        """Add the traceback of the error that is being handled to the trial's log."""
        with contextlib.suppress(StoreError, OSError):  # it must not hide that error
            where = f"attempt {self.number} on {socket.gethostname()} ({self.device})"
            self.log(f"{where} failed\n{traceback.format_exc()}")
        self.trackers.end("failed")


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


def _config_of(order: Order) -> TrialConfig:
    """The trial's configuration, if it still is the one that was planned.

    Raises
    ------
    ConfigError : a default of a plug-in is another one than when the sweep was launched.
    """
    config = TrialConfig.from_flat(order.config)
    if order.config_id and content_id(config.to_flat()) != order.config_id:
        raise ConfigError(
            f"trial {order.trial_id}",
            "a default of its plug-ins has changed since the launch",
            "the code that it was planned with",
            "stop the sweep and launch it again",
        )
    return config


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
