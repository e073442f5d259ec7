"""What one launch does to a sweep directory, with trials that only pretend."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper import trial as trial_module
from sweeper.attempt import Order, Outcome, Progress
from sweeper.errors import ConfigError
from sweeper.grid import Trial
from sweeper.plan import make_plan
from sweeper.schedule.driver import Launch, complete_trials, drive
from sweeper.schedule.executor import Packed
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.retry import Failure
from sweeper.schedule.rules import Rules
from sweeper.schedule.scribe import Counts
from sweeper.store.root import Root
from sweeper.sweep_dir import SweepDir
from sweeper.trial import run_attempt, size_of


def go(
    folder: SweepDir,
    trials: list[Trial],
    runner: Callable[..., Outcome],
    only: Collection[str] | None = None,
    **asked: Any,
) -> Counts:
    plan = make_plan(trials, complete_trials(folder.root()), size_of)
    if only is not None:  # as the selectors narrow a plan down
        plan = replace(plan, todo=tuple(t for t in plan.todo if t.trial_id in only))
    launch = Launch("x", "name: x\n", **asked)
    return drive(folder, plan, launch, LocalExecutor(runner), lambda *_: None)


def lines(folder: SweepDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.journal.read_text().splitlines()]


def events(folder: SweepDir) -> list[tuple[str, str | None]]:
    return [(event["event"], event.get("trial")) for event in lines(folder)]


def pretend(order: Order, should_stop: object, on_progress: Callable[[Progress], None]) -> Outcome:
    on_progress(Progress(order.trial_id, 1, 0, 10, "here", "cpu"))
    return Outcome(order.trial_id, 1, "complete", 0.1, "0" * 64)


def test_a_launch_writes_down_what_was_asked_and_what_happened(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trial = SweepDir(tmp_path / "sweep"), make_trial()
    counts = go(folder, [trial], pretend)
    assert (counts.n_todo, counts.n_complete, counts.n_ended) == (1, 1, 1)
    assert (counts.fraction, counts.halt) == (1.0, None)
    assert [event for event, _ in events(folder)] == ["launched", "started", "finished", "ended"]
    manifest = folder.read_manifest()
    assert manifest["threads_per_trial"] == 1
    assert manifest["launches"][0]["versions"]["torch"]
    assert folder.grid.read_text() == "name: x\n"


def test_a_result_that_the_journal_missed_is_written_down_by_the_next_launch(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=0), make_trial(seed=1)]
    go(folder, trials[:1], run_attempt)
    folder.journal.unlink()
    folder.status.unlink()

    go(folder, trials, run_attempt)

    done, new = (trial.trial_id for trial in trials)
    assert events(folder)[:2] == [("finished", done), ("launched", None)]
    assert [trial for event, trial in events(folder) if event == "started"] == [new]
    go(folder, trials, run_attempt)
    assert [trial for event, trial in events(folder) if event == "finished"] == [done, new]


def test_a_driver_that_raises_leaves_the_directory_free(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    def interrupted(*_: object) -> Outcome:
        raise KeyboardInterrupt

    folder = SweepDir(tmp_path / "sweep")
    with pytest.raises(KeyboardInterrupt):
        go(folder, [make_trial()], interrupted)
    assert folder.driver() is None
    assert go(folder, [make_trial()], pretend).n_complete == 1


def test_a_crash_while_the_store_was_made_does_not_block_the_next_launch(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder = SweepDir(tmp_path / "sweep")
    half = folder.path / "predictions.zarr" / f"zarr.json.{'0' * 32}.partial"
    half.parent.mkdir(parents=True)
    half.write_text('{"zarr_')
    assert go(folder, [make_trial()], run_attempt).n_complete == 1
    assert not half.exists()


def test_temporary_files_are_swept_but_not_those_of_an_analysis(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder = SweepDir(tmp_path / "sweep")
    go(folder, [make_trial()], run_attempt)
    store = folder.path / "predictions.zarr"
    left = [folder.path / "plan.parquet.1.partial", store / "staging/t/1/c.0.partial"]
    theirs = folder.analysis / "report.html.1.partial"
    for path in (*left, theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    go(folder, [make_trial()], run_attempt)
    assert not any(path.exists() for path in left)
    assert theirs.exists()


def test_a_trial_that_asks_to_exit_fails_like_any_other(
    tmp_path: Path, make_trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
):
    def leave(*_: object, **__: object) -> None:
        sys.exit(3)

    monkeypatch.setattr(trial_module, "train", leave)
    folder = SweepDir(tmp_path / "sweep")
    counts = go(folder, [make_trial(seed=0), make_trial(seed=1)], run_attempt)
    assert counts.n_failed == 2
    assert "asked to exit with 3" in folder.journal.read_text()


def test_only_what_was_asked_for_is_run(tmp_path: Path, make_trial: Callable[..., Trial]):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=seed) for seed in range(4)]
    asked = {trials[2].trial_id, trials[3].trial_id, "t0123456789ab"}

    counts = go(folder, trials, pretend, only=asked)
    assert (counts.n_todo, counts.n_complete) == (2, 2)
    ran = [trial for event, trial in events(folder) if event == "finished"]
    assert set(ran) == asked - {"t0123456789ab"}

    assert go(folder, trials, pretend, only=asked, limit=1).n_todo == 1
    assert go(folder, trials, pretend, only=()).n_todo == 0


def test_what_failed_before_is_run_last_so_that_it_does_not_bar_the_others(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder = SweepDir(tmp_path / "sweep")
    bad = [make_trial("cnn", seed=seed) for seed in range(12)]
    good = [make_trial("fc", seed=seed) for seed in range(3)]
    broken = {trial.trial_id for trial in bad}

    def run(order: Order, should_stop: object, on_progress: Callable[..., None]) -> Outcome:
        if order.trial_id in broken:
            raise ConfigError("model", "cannot be built")
        return pretend(order, should_stop, on_progress)

    first = go(folder, bad + good, run)  # the longest first, and these are
    assert (first.n_failed, first.n_complete) == (10, 0)
    assert first.halt is not None
    second = go(folder, bad + good, run)
    assert second.n_complete == 3


def test_a_launch_says_how_it_began_and_how_it_ended(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=seed) for seed in range(2)]
    go(folder, trials, pretend)
    launched, *_, over = lines(folder)
    assert (launched["n_planned"], launched["n_todo"]) == (2, 2)
    assert (launched["n_slots"], launched["n_gpus"]) == (1, 0)
    assert launched["host"]
    assert launched["pid"]
    assert over["reason"] == "complete"
    assert not folder.live.exists()


def fails(order: Order, *_: object) -> Outcome:
    raise ValueError("this trial has a bug")


def test_an_attempt_that_fails_is_run_again_and_then_given_up(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trial = SweepDir(tmp_path / "sweep"), make_trial()
    counts = go(folder, [trial], fails)
    assert (counts.n_retried, counts.n_failed, counts.n_complete) == (1, 1, 0)
    named = [event for event, _ in events(folder)]
    assert named == ["launched", "retried", "failed", "ended"]
    assert lines(folder)[-1]["reason"] == "failures"
    failed = lines(folder)[2]
    assert (failed["kind"], failed["error"]) == ("bug", "ValueError")
    assert failed["message"] == "this trial has a bug"
    assert failed["signature"] == "ValueError in test_driver.py:fails: this trial has a bug"
    assert go(folder, [trial], pretend).n_complete == 1  # with fresh budgets


def test_ten_failures_alike_halt_the_launch(tmp_path: Path, make_trial: Callable[..., Trial]):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=seed) for seed in range(12)]
    counts = go(folder, trials, fails)
    assert counts.halt is not None
    assert (counts.n_failed, counts.halt.n_failed) == (10, 10)
    over = lines(folder)[-1]
    assert (over["reason"], over["signature"]) == ("halted", counts.halt.failure.signature)


def stops(order: Order, should_stop: Callable[[], bool], on_progress: object) -> Outcome:
    while not should_stop():
        time.sleep(0.01)
    return Outcome(order.trial_id, 1, "stopped", 0.1)


def test_a_launch_that_is_over_its_time_drains(tmp_path: Path, make_trial: Callable[..., Trial]):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=seed) for seed in range(2)]
    counts = go(folder, trials, stops, stop_after=3.0)  # past the start on a busy machine
    assert (counts.n_stopped, counts.n_ended) == (1, 0)
    assert [event for event, _ in events(folder)] == ["launched", "stopped", "ended"]
    assert lines(folder)[-1]["reason"] == "stopped"
    assert "asked" not in lines(folder)[-1]  # by nobody: a cluster's job goes on with it


def test_a_launch_is_stopped_by_a_file_in_its_directory(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial(seed=seed) for seed in range(2)]

    def asked(order: Order, should_stop: Callable[[], bool], on_progress: object) -> Outcome:
        folder.stop_request.touch()
        return stops(order, should_stop, on_progress)

    assert go(folder, trials, asked).n_stopped == 1
    assert not folder.stop_request.exists()
    assert (lines(folder)[-1]["reason"], lines(folder)[-1]["asked"]) == ("stopped", True)


class Packs:
    """An executor that runs nothing, and says how trials of a shape share a GPU."""

    n_slots, n_gpus = 1, 1

    def __init__(self, per_gpu: int) -> None:
        self.per_gpu = per_gpu

    def run(self, orders: list[Order], on_event: Callable, should_stop: object, rules: Rules):
        self.rules, self.orders, self.packed = rules, orders, copy.deepcopy(rules.packed)
        on_event(Packed(orders[0].shape, self.per_gpu, "measured", 5, 80))


def test_what_a_launch_finds_out_about_sharing_serves_the_next(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trials = SweepDir(tmp_path / "sweep"), [make_trial()]
    asked = Rules(time_limit=60.0, stalled_after=5.0)
    for before, per_gpu in ((None, 4), (4, 2), (2, 2)):
        executor = Packs(per_gpu)
        plan = make_plan(trials, (), size_of)
        drive(folder, plan, Launch("x", rules=asked), executor, lambda *_: None)
        shape = executor.orders[0].shape
        assert shape == plan.shapes[0]
        assert executor.packed == ({} if before is None else {shape: {"": before}})
        assert (executor.rules.time_limit, executor.rules.stalled_after) == (60.0, 5.0)


def test_an_order_has_all_that_a_worker_is_to_know(
    tmp_path: Path, plug_in: str, make_trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder, executor = SweepDir(Path("sweep")), Packs(1)
    trial = make_trial(f"{plug_in}:linear")
    launch = Launch("x", log_to=("tensorboard",), checkpoint_seconds=7.0)
    drive(folder, make_plan([trial], (), size_of), launch, executor, lambda *_: None)
    [order] = executor.orders
    assert (order.trial_id, order.config) == (trial.trial_id, trial.config.identity)
    assert order.root == str(tmp_path / "sweep")
    assert (order.sweep, order.log_to) == ("x", ("tensorboard",))
    assert (order.threads, order.checkpoint_seconds) == (1, 7.0)
    assert list(order.plug_ins) == [f"{plug_in}:linear"]


def test_a_lost_trial_s_log_is_where_its_store_is(tmp_path: Path, make_trial: Callable[..., Trial]):
    class Loses(Packs):
        def run(self, orders: list[Order], on_event: Callable, should_stop: object, rules: Rules):
            on_event(Failure.lost(orders[0].trial_id, "its node is gone"))

    folder, trial, elsewhere = SweepDir(tmp_path / "sweep"), make_trial(), tmp_path / "elsewhere"
    plan = make_plan([trial], (), size_of)
    counts = drive(folder, plan, Launch("x", root=str(elsewhere)), Loses(1), lambda *_: None)
    assert counts.n_failed == 1
    assert "its node is gone" in Root(elsewhere).read_log(trial.trial_id)
    assert lines(folder)[-1]["reason"] == "failures"
