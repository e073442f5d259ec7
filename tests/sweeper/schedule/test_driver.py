"""What one launch does to a sweep directory, with trials that only pretend."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper import trial as trial_module
from sweeper.attempt import Order, Outcome, Progress
from sweeper.grid import Trial
from sweeper.plan import make_plan
from sweeper.schedule.driver import Counts, Launch, complete_trials, drive
from sweeper.schedule.executor import MESSAGE_LENGTH, Failure
from sweeper.schedule.local import LocalExecutor
from sweeper.schedule.retry import classify
from sweeper.sweep_dir import SweepDir
from sweeper.trial import run_attempt, size_of


def go(folder: SweepDir, trials: list[Trial], runner: Callable[..., Outcome]) -> Counts:
    plan = make_plan(trials, complete_trials(folder), size_of)
    return drive(folder, plan, Launch("x", "name: x\n"), LocalExecutor(runner), lambda *_: None)


def events(folder: SweepDir) -> list[tuple[str, str | None]]:
    lines = folder.journal.read_text().splitlines()
    return [(event["event"], event.get("trial")) for event in map(json.loads, lines)]


def pretend(order: Order, should_stop: object, on_progress: Callable[[Progress], None]) -> Outcome:
    on_progress(Progress(order.trial_id, 1, 0, 10, "here", "cpu"))
    return Outcome(order.trial_id, 1, "complete", 0.1, "0" * 64)


def test_a_launch_writes_down_what_was_asked_and_what_happened(
    tmp_path: Path, make_trial: Callable[..., Trial]
):
    folder, trial = SweepDir(tmp_path / "sweep"), make_trial()
    counts = go(folder, [trial], pretend)
    assert counts == Counts(n_todo=1, n_complete=1)
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


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(28, "no space"), "storage"), (ValueError("x"), "bug")]
)
def test_errors_fall_into_their_failure_class(error: Exception, kind: str):
    assert classify(error) == kind


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("x" * 10_000), "the rest is in the trial's log"),
        (ValueError("a lone \udc80 surrogate"), "a lone \\udc80 surrogate"),
        (_MuteError(), "its message cannot be shown"),
    ],
)
def test_any_message_can_be_carried(error: Exception, said: str):
    message = Failure.of("t1", error).message
    assert said in message
    assert len(message.encode()) < 2 * MESSAGE_LENGTH


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
