"""Slots on a Ray cluster, placed and restarted by Ray Tune; the only file that imports Ray.

One Tune trial is one slot. A slot is a process that leases our trials from a queue actor and
runs them one after another, so that workers stay warm and Tune's state stays as small as the
number of slots. Tune is never asked what was done: the store knows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeper.attempt import Order
from sweeper.errors import SweeperError
from sweeper.schedule.executor import Event, Failure, Runner
from sweeper.schedule.leases import Leases
from sweeper.train.memory import MALLOC_SETTINGS
from sweeper.train.sources.place import ROOT_VARIABLE, data_root
from sweeper.trial import run_attempt

POLL_SECONDS = 0.2  # how often the driver asks for events
BEAT_SECONDS = 1.0  # how often a slot asks whether to drain
OBJECT_STORE_BYTES = 128 << 20  # nothing large passes through Ray

# Read by Tune when it is imported or run: no files of its own, no talk, no signal handlers.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **MALLOC_SETTINGS,  # slots inherit them
}


class TuneExecutor:
    """Runs orders in slots on a Ray cluster that lives as long as `run` (see `Executor`)."""

    def __init__(self, n_slots: int, threads: int = 1, runner: Runner = run_attempt) -> None:
        self.n_slots, self._threads, self._runner = n_slots, threads, runner

    def run(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Run all orders; returns when each has ended, or when drained."""
        if not orders:
            return
        os.environ.update(_TUNE_SETTINGS)
        with tempfile.TemporaryDirectory(prefix="sweeper-") as scratch, _quiet(Path(scratch)):
            import ray

            ray.init(
                address="local",
                num_cpus=self.n_slots * self._threads,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=OBJECT_STORE_BYTES,
            )
            try:
                self._run_slots(orders, on_event, should_stop, Path(scratch))
            finally:
                ray.shutdown()

    def _run_slots(
        self,
        orders: Sequence[Order],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        scratch: Path,
    ) -> None:
        import ray

        queue = ray.remote(num_cpus=0, max_concurrency=1)(Leases).remote(list(orders))
        finished = threading.Event()
        failures: list[BaseException] = []

        def place() -> None:
            try:
                self._place(queue, scratch)
            except BaseException as error:
                failures.append(error)
            finally:
                finished.set()

        # Tune blocks for as long as slots live; this thread keeps the signals and the journal.
        placing = threading.Thread(target=place, daemon=True)
        placing.start()
        draining = False
        while not finished.wait(POLL_SECONDS):
            _forward(queue, on_event)
            if should_stop() and not draining:
                draining = True
                ray.get(queue.drain.remote())
        placing.join()
        _forward(queue, on_event)
        if failures:
            raise failures[0]

    def _place(self, queue: Any, scratch: Path) -> None:
        """Have Tune start the slots and bring back each one that dies, until all leave."""
        from ray import tune

        slot = tune.with_parameters(
            _slot,
            queue=queue,
            runner=self._runner,
            import_path=list(sys.path),
            data_root=str(data_root()),
        )
        tune.Tuner(
            tune.with_resources(slot, {"cpu": self._threads, "gpu": self._gpus_per_slot()}),
            param_space={"slot": tune.grid_search(list(range(self.n_slots)))},
            tune_config=tune.TuneConfig(reuse_actors=False),
            run_config=tune.RunConfig(
                name="slots",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),
            ),
        ).fit()

    def _gpus_per_slot(self) -> float:
        """A whole GPU a slot, or none where there are none."""
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        return 1 if gpus else 0


def _forward(queue: Any, on_event: Callable[[Event], None]) -> None:
    import ray

    for event in ray.get(queue.take_events.remote()):
        on_event(event)


# --- in the slot's process ------------------------------------------------------------------


def _slot(
    config: dict[str, Any], queue: Any, runner: Runner, import_path: list[str], data_root: str
) -> None:
    """Lease and run orders until none is left, or until one raises.

    After an exception the process ends and Tune starts another, so that no trial runs in what a
    failed one left behind.
    """
    import ray

    sys.path[:] = list(dict.fromkeys([*import_path, *sys.path]))
    os.environ[ROOT_VARIABLE] = data_root
    slot, stop = config["slot"], threading.Event()
    threading.Thread(target=_watch, args=(queue, stop), daemon=True).start()
    while True:
        order = ray.get(queue.lease.remote(slot))
        if order == "leave":
            return
        if order == "wait":
            time.sleep(POLL_SECONDS)
            continue
        try:
            event: Event = runner(
                order, stop.is_set, lambda progress: queue.report.remote(slot, progress)
            )
        except Exception as error:
            ray.get(queue.report.remote(slot, Failure.of(order.trial_id, error)))
            raise
        ray.get(queue.report.remote(slot, event))


def _watch(queue: Any, stop: threading.Event) -> None:
    """Set `stop` when the driver drains, or when it is gone."""
    import ray

    while not stop.wait(BEAT_SECONDS):
        try:
            if ray.get(queue.is_draining.remote(), timeout=60):
                stop.set()
        except Exception:  # of whatever kind: without its driver the slot checkpoints and leaves
            stop.set()


# --- in the driver's process ----------------------------------------------------------------


@contextmanager
def _quiet(scratch: Path) -> Iterator[None]:
    """Send what Ray and Tune print to a file, and show its end if they fail.

    Tune prints the traceback of every slot that is restarted, which is our normal life. Its C++
    parts write to the file descriptors, so these are redirected too; what shows progress must
    write to a descriptor of its own, made before.
    """
    talk = scratch / "ray.log"
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with talk.open("w", buffering=1) as sink:
        for number in kept:
            os.dup2(sink.fileno(), number)
        sys.stdout = sys.stderr = sink
        try:
            yield
        except (SweeperError, OSError):  # of the driver, not of Ray
            raise
        except Exception as error:
            tail = talk.read_text(errors="replace").strip().splitlines()[-15:]
            hint = "\n".join(["Ray's last words:", *tail]) if tail else ""
            raise SweeperError("ray", f"{type(error).__name__}: {error}", hint=hint) from error
        finally:
            sys.stdout, sys.stderr = streams
            for number, original in kept.items():
                os.dup2(original, number)
                os.close(original)
