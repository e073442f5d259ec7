"""One contract for every executor, held by real trials."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.errors import ClusterError
from sweeper.grid import Trial
from sweeper.schedule.executor import Event, Executor, Packed, Retry, Tick
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.tune import TuneExecutor
from sweeper.shape import shape_of
from sweeper.store import open_store

MakeTrial = Callable[..., Trial]


EXECUTORS = [
    pytest.param(LocalExecutor, id="local"),
    pytest.param(
        lambda: TuneExecutor(n_cpus=2), id="tune", marks=[pytest.mark.ray, pytest.mark.slow]
    ),
]


def run(
    executor: Executor,
    folder: Path,
    trials: Sequence[Trial],
    stop_after: int = 10**9,
    rules: Rules = Rules(),  # noqa: B008  # frozen
):
    """All events of a run that is asked to stop once so many trials have started."""
    orders = [
        Order(t.trial_id, t.config.identity, str(folder), shape=shape_of(t.config)) for t in trials
    ]
    events: list[Event] = []
    executor.run(orders, events.append, lambda: len(named(events, Progress)) >= stop_after, rules)
    return [event for event in events if not isinstance(event, Tick)]


def digests(folder: Path) -> dict[str, str]:
    return open_store(folder).trials()["digest"].dropna().to_dict()


def named(events: Sequence[Event], kind: type) -> list[str]:
    return [event.trial_id for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("make_executor", EXECUTORS)
class TestExecutor:
    def test_each_order_ends_once_and_one_that_fails_stops_no_other(
        self, make_executor, tmp_path: Path, plug_in: str, make_trial: MakeTrial
    ):
        flaky = make_trial(f"{plug_in}:flaky", mark=str(tmp_path / "failed"))
        good = [*(make_trial(seed=seed) for seed in range(3)), make_trial(f"{plug_in}:linear")]
        good.append(flaky)
        bad = make_trial(f"{plug_in}:failing")
        trials = [good[0], bad, *good[1:]]

        events = run(make_executor(), tmp_path / "sweep", trials)

        assert sorted(named(events, Outcome)) == sorted(trial.trial_id for trial in good)
        failures = [event for event in events if isinstance(event, Failure)]
        assert [(f.trial_id, f.kind, f.error) for f in failures] == [
            (bad.trial_id, "bug", "RuntimeError")
        ]
        again = [event.failure for event in events if isinstance(event, Retry)]
        assert [f for f in again if f.trial_id == bad.trial_id] == failures, "once, then for good"
        of_flaky = [event for event in events if event.trial_id == flaky.trial_id]
        assert [type(e) for e in of_flaky if not isinstance(e, Progress)] == [Retry, Outcome]
        assert len(again) == 2
        assert "in their_models.py:fail: this architecture has a bug" in failures[0].signature
        assert "this architecture has a bug" in failures[0].message
        log = (tmp_path / "sweep" / "logs" / f"{bad.trial_id}.log").read_text()
        assert "Traceback" in log
        assert "their_models.py" in log
        assert f"attempt 2 on {socket.gethostname()} (cpu) failed" in log
        assert set(open_store(tmp_path / "sweep").complete_ids()) == {t.trial_id for t in good}
        run(LocalExecutor(), tmp_path / "undisturbed", good)
        assert digests(tmp_path / "sweep") == digests(tmp_path / "undisturbed")

    def test_drained_attempts_checkpoint_and_go_on_later_to_the_same_digest(
        self, make_executor, tmp_path: Path, make_trial: MakeTrial
    ):
        long = [make_trial("cnn", seed=seed, epochs=12) for seed in range(3)]
        run(LocalExecutor(), tmp_path / "whole", long)

        events = run(make_executor(), tmp_path / "sweep", long, stop_after=1)

        stopped = [e for e in events if isinstance(e, Outcome) and e.state == "stopped"]
        assert stopped
        assert len(named(events, Outcome)) < 3, "drained before all had started"
        for outcome in stopped:
            assert list((tmp_path / "sweep" / "checkpoints" / outcome.trial_id).glob("*.pt"))
        run(LocalExecutor(), tmp_path / "sweep", long)
        drained, whole = (open_store(tmp_path / name).trials() for name in ("sweep", "whole"))
        assert drained["digest"].tolist() == whole["digest"].tolist()
        assert not (tmp_path / "sweep" / "checkpoints" / long[0].trial_id).exists()


def test_events_from_several_threads_of_an_attempt_reach_the_driver_one_at_a_time(
    tmp_path: Path, make_trial: MakeTrial
):
    trial, alone, heard = make_trial(), threading.Lock(), []

    def talk(order: Order, should_stop: object, on_progress: Callable[[Waiting], None]) -> Outcome:
        said = Waiting(order.trial_id, "no room")
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: on_progress(said), range(20)))
        return Outcome(order.trial_id, 1, "complete", 0.1)

    def hear(event: Event) -> None:
        assert alone.acquire(blocking=False)
        time.sleep(0.001)
        heard.append(event)
        alone.release()

    order = Order(trial.trial_id, trial.config.to_flat(), str(tmp_path))
    LocalExecutor(talk).run([order], hear, lambda: False, Rules())
    assert len(named(heard, Waiting)) == 20


class Unknown:
    """A runner that workers cannot load, as if they had another version installed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, ("no_such_module",)


def _load(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.ray
@pytest.mark.slow
def test_slots_that_cannot_start_end_the_launch_and_say_why(tmp_path: Path, make_trial: MakeTrial):
    with pytest.raises(ClusterError, match=r"no node is left.*no_such_module") as caught:
        run(TuneExecutor(n_cpus=1, runner=Unknown()), tmp_path / "sweep", [make_trial()])
    assert caught.value.exit_code == 4


@pytest.mark.ray
@pytest.mark.slow
def test_a_slot_that_is_killed_or_told_to_leave_comes_back_and_its_trial_goes_on(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    def signalled(*numbers: signal.Signals) -> list[Trial]:
        return [
            make_trial(f"{plug_in}:deadly", mark=str(tmp_path / number.name), number=int(number))
            for number in numbers
        ]

    deadly = signalled(signal.SIGKILL, signal.SIGSEGV)
    leaving = signalled(signal.SIGTERM, signal.SIGUSR1)
    trials = [*deadly, *leaving, *(make_trial(seed=seed) for seed in range(4))]

    events = run(TuneExecutor(n_cpus=2), tmp_path / "sweep", trials)

    lost = [event.failure for event in events if isinstance(event, Retry)]
    assert {f.trial_id for f in lost} == {trial.trial_id for trial in deadly}
    assert {(f.kind, f.error) for f in lost} == {("lost", "WorkerDied")}
    assert all("its worker died" in f.message for f in lost)
    ended = [e.trial_id for e in events if isinstance(e, Outcome) and e.state == "complete"]
    assert sorted(ended) == sorted(trial.trial_id for trial in trials)
    for trial in trials:
        of_it = [event for event in events if event.trial_id == trial.trial_id]
        outcomes = [(e.attempt, e.state) for e in of_it if isinstance(e, Outcome)]
        if trial not in leaving:
            assert len(outcomes) == 1
            continue
        assert outcomes == [(1, "stopped"), (2, "complete")]
        starts = [e.step for e in of_it if isinstance(e, Progress) and e.attempt == 2]
        assert starts[0] == 1, "from the checkpoint after the step in which it was told"
    run(LocalExecutor(), tmp_path / "undisturbed", trials)
    assert digests(tmp_path / "sweep") == digests(tmp_path / "undisturbed")


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_and_its_trial_goes_on(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    hanging = make_trial(f"{plug_in}:hanging", mark=str(tmp_path / "hung"))
    rules = Rules(stalled_after=10)

    events = run(TuneExecutor(n_cpus=1), tmp_path / "sweep", [hanging], rules=rules)

    [failure, *_] = [event.failure for event in events if isinstance(event, Retry)]
    assert (failure.trial_id, failure.kind) == (hanging.trial_id, "lost")
    assert "taken to hang" in failure.message
    assert named(events, Outcome) == [hanging.trial_id]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_is_too_slow_is_given_up_and_its_slot_serves_the_next(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    endless = make_trial(f"{plug_in}:hanging", mark=str(tmp_path / "endless"), always=True)
    next_one = make_trial()
    rules = Rules(time_limit=20)

    events = run(TuneExecutor(n_cpus=1), tmp_path / "sweep", [endless, next_one], rules=rules)

    assert not [event for event in events if isinstance(event, Retry)]
    given_up = [event for event in events if isinstance(event, Failure)]
    assert [(f.trial_id, f.kind, f.error) for f in given_up] == [
        (endless.trial_id, "lost", "TimeLimit")
    ]
    assert named(events, Outcome) == [next_one.trial_id]


@pytest.mark.ray
@pytest.mark.slow
def test_trials_that_share_a_gpu_are_as_if_alone_and_are_demoted_when_memory_is_short(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    """A pretended GPU: Ray places slots by its shares, and the trials train on the CPU."""
    memory = str(tmp_path / "memory")
    hungry = [make_trial(f"{plug_in}:hungry", memory=memory, seed=seed) for seed in range(3)]
    modest = [make_trial("cnn", seed=seed) for seed in range(3)]

    events = run(
        TuneExecutor(n_cpus=4, n_gpus=1), tmp_path / "packed", hungry + modest, rules=Rules(2)
    )

    packed = [event for event in events if isinstance(event, Packed)]
    assert [(p.shape, p.per_gpu) for p in packed] == [(shape_of(hungry[0].config), 1)]
    again = [event.failure for event in events if isinstance(event, Retry)]
    assert {f.kind for f in again} == {"oom"}
    assert sorted(named(events, Outcome)) == sorted(t.trial_id for t in hungry + modest)
    shared = {e.trial_id: e.per_gpu for e in events if isinstance(e, Progress)}
    assert {shared[trial.trial_id] for trial in modest} <= {1, 2}
    assert 1 in {shared[trial.trial_id] for trial in hungry}
    run(LocalExecutor(), tmp_path / "alone", hungry + modest)
    assert digests(tmp_path / "packed") == digests(tmp_path / "alone")


FRESH = """
import json, sys
from sweeper.attempt import Order
from sweeper.trial import run_attempt
run_attempt(Order(**json.loads(sys.argv[1])), lambda: False, lambda said: None)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_predictions_after_other_trials_in_a_slot_are_those_of_a_fresh_process(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    trials = [
        make_trial("cnn", seed=3),
        make_trial(f"{plug_in}:failing"),
        make_trial("vit", seed=1),
        make_trial("fc", seed=2),
    ]
    run(TuneExecutor(n_cpus=1), tmp_path / "slot", trials)
    healthy = [trial for trial in trials if "failing" not in trial.config.model.name]
    for trial in healthy:
        order = {"trial_id": trial.trial_id, "config": trial.config.identity}
        order["root"] = str(tmp_path / "fresh")
        subprocess.run([sys.executable, "-c", FRESH, json.dumps(order)], check=True)

    assert len(healthy) == 3
    assert digests(tmp_path / "slot") == digests(tmp_path / "fresh")


@pytest.mark.ray
@pytest.mark.slow
def test_ray_leaves_nothing_behind_and_says_nothing(
    tmp_path: Path, make_trial: MakeTrial, capfd: pytest.CaptureFixture[str]
):
    folder, order = tmp_path / "sweep", make_trial()
    handlers = set()

    def should_stop() -> bool:
        handlers.add(signal.getsignal(signal.SIGTERM))
        return False

    orders = [Order(order.trial_id, order.config.identity, str(folder))]
    TuneExecutor(n_cpus=1).run(orders, lambda _: None, should_stop, Rules())

    assert handlers == {signal.getsignal(signal.SIGTERM)}, "a driver drains at SIGTERM"
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in folder.iterdir()} == {"predictions.zarr", "logs"}
    deadline = time.monotonic() + 20
    while _our_raylets() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _our_raylets()


def _our_raylets() -> list[str]:
    """Raylets that this process started and that still live."""
    shown = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    )
    return [
        line for line in shown.stdout.splitlines() if "raylet" in line and "defunct" not in line
    ]
