"""One contract for every executor, held by real trials."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeper.attempt import Order, Outcome, Progress, Waiting
from sweeper.grid import Trial
from sweeper.schedule.executor import Event, Executor, Failure, Lost
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.tune import TuneExecutor
from sweeper.store import open_store

MakeTrial = Callable[..., Trial]

EXECUTORS = [
    pytest.param(LocalExecutor, id="local"),
    pytest.param(lambda: TuneExecutor(2), id="tune", marks=[pytest.mark.ray, pytest.mark.slow]),
]


def run(executor: Executor, folder: Path, trials: Sequence[Trial], stop_after: int = 10**9):
    """All events of a run that is asked to stop once so many trials have started."""
    orders = [Order(trial.trial_id, trial.config.to_flat(), str(folder)) for trial in trials]
    events: list[Event] = []
    executor.run(orders, events.append, lambda: len(named(events, Progress)) >= stop_after)
    return events


def named(events: Sequence[Event], kind: type) -> list[str]:
    return [event.trial_id for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("make_executor", EXECUTORS)
class TestExecutor:
    def test_each_order_ends_once_and_one_that_fails_stops_no_other(
        self, make_executor, tmp_path: Path, plug_in: str, make_trial: MakeTrial
    ):
        good = [make_trial(seed=seed) for seed in range(3)] + [make_trial(f"{plug_in}:linear")]
        bad = make_trial(f"{plug_in}:failing")
        trials = [good[0], bad, *good[1:]]

        events = run(make_executor(), tmp_path / "sweep", trials)

        assert sorted(named(events, Outcome)) == sorted(trial.trial_id for trial in good)
        failures = [event for event in events if isinstance(event, Failure)]
        assert [(f.trial_id, f.kind, f.error) for f in failures] == [
            (bad.trial_id, "bug", "RuntimeError")
        ]
        assert "this architecture has a bug" in failures[0].message
        log = (tmp_path / "sweep" / "logs" / f"{bad.trial_id}.log").read_text()
        assert "Traceback" in log
        assert "their_models.py" in log
        assert set(open_store(tmp_path / "sweep").complete_ids()) == {t.trial_id for t in good}

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
    LocalExecutor(talk).run([order], hear, lambda: False)
    assert len(named(heard, Waiting)) == 20


@pytest.mark.ray
@pytest.mark.slow
def test_a_slot_that_is_killed_comes_back_and_its_trial_is_run_again(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    deadly = make_trial(f"{plug_in}:deadly", mark=str(tmp_path / "died"))
    trials = [deadly, *(make_trial(seed=seed) for seed in range(4))]

    events = run(TuneExecutor(2), tmp_path / "sweep", trials)

    assert named(events, Lost) == [deadly.trial_id]
    assert sorted(named(events, Outcome)) == sorted(trial.trial_id for trial in trials)


@pytest.mark.ray
@pytest.mark.slow
def test_predictions_do_not_depend_on_the_executor_or_on_what_ran_before(
    tmp_path: Path, plug_in: str, make_trial: MakeTrial
):
    trials = [
        make_trial(f"{plug_in}:failing"),
        make_trial("vit", seed=1),
        make_trial("fc", seed=2),
        make_trial("cnn", seed=3),
    ]
    run(TuneExecutor(1), tmp_path / "tune", trials)
    for trial in reversed(trials[1:]):
        run(LocalExecutor(), tmp_path / "local", [trial])

    one, other = (open_store(tmp_path / name).trials()["digest"] for name in ("tune", "local"))
    assert one.dropna().to_dict() == other.to_dict()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_leaves_nothing_behind_and_says_nothing(
    tmp_path: Path, make_trial: MakeTrial, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "sweep"
    run(TuneExecutor(1), folder, [make_trial()])

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
