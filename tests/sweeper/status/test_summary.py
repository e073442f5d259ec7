import json
import os
import time

import pytest

from sweeper.config import TrialConfig
from sweeper.errors import SweepDirError
from sweeper.grid import Trial
from sweeper.journal import Journal, Tally
from sweeper.plan import Size, make_plan, write_plan
from sweeper.status import STATES, FailureGroup, read_status
from sweeper.store.seal import seal
from sweeper.sweep_dir import PREDICTIONS, SweepDir


def trial_of(seed):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    config = TrialConfig.from_flat({**flat, "epochs": 1, "seed": seed})
    return Trial(config.trial_id, config)


TRIALS = [trial_of(seed) for seed in range(6)]
IDS = [trial.trial_id for trial in TRIALS]


@pytest.fixture
def folder(tmp_path):
    """A sweep of six trials of which nothing has been run."""
    found = SweepDir(tmp_path)
    found.write_manifest({"name": "six"})
    write_plan(found.plan, make_plan(TRIALS, (), lambda config: Size(1, 1, 4)))
    return found


def journal(folder, *events):
    with Journal(folder.journal) as writer:
        for event, fields in events:
            writer.append(event, **fields)
            if event == "finished":
                (folder.path / PREDICTIONS / "trials" / fields["trial"]).mkdir(parents=True)


def started(index):
    return "started", {"trial": IDS[index], "attempt": 1, "step": 0, "n_steps": 9}


def finished(index, state="complete"):
    return "finished", {"trial": IDS[index], "attempt": 1, "state": state, "seconds": 1.0}


def failed(index, message="a bug"):
    fields = {"trial": IDS[index], "kind": "bug", "error": "RuntimeError", "message": message}
    return "failed", fields


def counts(folder):
    """Those states that any trial is in."""
    found = read_status(folder).counts
    assert list(found) == list(STATES)
    assert sum(found.values()) == 6
    return {state: n for state, n in found.items() if n}


LAUNCHED = ("launched", {"n_planned": 6, "n_todo": 6})


def test_before_anything_ran_all_trials_wait(folder):
    status = read_status(folder)
    assert status.counts == dict.fromkeys(STATES, 0) | {"waiting": 6}
    assert (status.n_planned, status.driver, status.seconds_left) == (6, None, None)
    assert not status.is_complete


def test_a_trial_runs_only_while_its_driver_lives(folder):
    with folder.locked():
        journal(folder, LAUNCHED, finished(0), started(1), started(2), finished(2, "diverged"))
        assert counts(folder) == {"complete": 1, "diverged": 1, "running": 1, "waiting": 3}
        assert read_status(folder).driver["pid"] == os.getpid()
    assert counts(folder) == {"complete": 1, "diverged": 1, "interrupted": 1, "waiting": 3}


@pytest.mark.parametrize("state", ["complete", "diverged"])
def test_what_a_killed_driver_left_running_is_what_the_store_says(folder, tiny, state):
    journal(folder, LAUNCHED, started(0), started(1))
    tiny.record(1, trial_id=IDS[0])
    seal(tiny.objects, IDS[0], state, 1)
    tiny.record(2, trial_id=IDS[1])
    assert tiny.path == folder.path / PREDICTIONS
    assert counts(folder) == {state: 1, "interrupted": 1, "waiting": 4}


def test_what_an_earlier_driver_left_running_does_not_run_under_the_next(folder, tiny):
    journal(folder, LAUNCHED, started(0), started(1))
    tiny.sealed(1, trial_id=IDS[0])
    with folder.locked():
        time.sleep(0.002)  # the journal's clock ticks in milliseconds
        journal(folder, LAUNCHED, started(2))
        assert counts(folder) == {"complete": 1, "interrupted": 1, "running": 1, "waiting": 3}


def test_stopped_and_lost_trials_are_interrupted(folder):
    journal(folder, LAUNCHED, ("stopped", {"trial": IDS[0]}), ("lost", {"trial": IDS[1]}))
    assert counts(folder) == {"interrupted": 2, "waiting": 4}


def test_a_sweep_is_complete_when_every_planned_trial_has_ended(folder):
    journal(folder, LAUNCHED, *(finished(i) for i in range(5)), finished(5, "diverged"))
    assert read_status(folder).is_complete


def test_trials_that_are_no_longer_planned_are_not_counted(folder):
    journal(folder, ("finished", {"trial": "t0", "state": "complete"}))
    assert counts(folder) == {"waiting": 6}


def test_failures_are_grouped_by_error_and_message_the_largest_first(folder):
    journal(folder, LAUNCHED, failed(0, "x"), failed(1), failed(2, "x"), failed(3), failed(4))
    journal(folder, finished(4))
    assert read_status(folder).failures == (
        FailureGroup("RuntimeError", "x", (IDS[0], IDS[2])),
        FailureGroup("RuntimeError", "a bug", (IDS[1], IDS[3])),
    )


def test_failures_that_differ_in_numbers_alone_are_one_group(folder):
    messages = [f"{share} reached after 3 epochs" for share in (0.11, 0.0969, 1e-05)]
    journal(folder, LAUNCHED, *(failed(i, text) for i, text in enumerate([*messages, "full"])))
    first, second = read_status(folder).failures
    assert first == FailureGroup("RuntimeError", messages[0], tuple(IDS[:3]))
    assert second.message == "full"


def test_the_rate_counts_what_ended_since_the_last_launch(folder):
    with folder.locked():
        journal(folder, LAUNCHED, finished(0))
        time.sleep(0.002)  # the journal's clock ticks in milliseconds
        journal(folder, LAUNCHED)
        assert read_status(folder).trials_per_minute is None
        time.sleep(0.02)
        journal(folder, finished(1), finished(2))
        status = read_status(folder)
        assert 0 < status.trials_per_minute < 60 * 2 / 0.02
        assert status.seconds_left == pytest.approx(3 * 60 / status.trials_per_minute, abs=0.1)
    assert read_status(folder).seconds_left is None


def test_a_torn_last_line_is_reported(folder):
    journal(folder, LAUNCHED, finished(0))
    with folder.journal.open("ab") as file:
        file.write(b'{"t":1')
    assert read_status(folder).n_torn_bytes == 6
    assert counts(folder) == {"complete": 1, "waiting": 5}


def test_a_saved_digest_tells_the_same(folder):
    journal(folder, LAUNCHED, finished(0), failed(1), started(2))
    before = read_status(folder)
    Tally.read(folder.status, folder.journal).save(folder.status)
    assert read_status(folder) == before
    journal(folder, finished(2))
    assert counts(folder) == {"complete": 2, "failed": 1, "waiting": 3}


def test_asking_changes_nothing(folder, tiny):
    journal(folder, LAUNCHED, started(0), finished(1), failed(2))
    tiny.sealed(1, trial_id=IDS[0])
    (folder.path / "driver.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))

    def tree():
        paths = [folder.path, *folder.path.rglob("*")]
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in paths
        }

    before = tree()
    read_status(folder)
    assert tree() == before


@pytest.mark.parametrize("damage", ["journal", "plan", "no plan", "no sweep"])
def test_a_damaged_sweep_is_an_error_that_names_the_file(folder, damage):
    journal(folder, LAUNCHED)
    if damage == "journal":
        folder.journal.write_text("{\n" + folder.journal.read_text())
    elif damage == "plan":
        folder.plan.write_bytes(b"PAR1")
    else:
        (folder.plan if damage == "no plan" else folder.manifest).unlink()
    with pytest.raises(SweepDirError) as caught:
        read_status(folder)
    assert caught.value.where.startswith(str(folder.path))


def test_a_trial_that_was_removed_from_the_store_waits_again(folder):
    journal(folder, LAUNCHED, finished(0), finished(1))
    (folder.path / PREDICTIONS / "trials" / IDS[1]).rmdir()
    assert counts(folder) == {"complete": 1, "waiting": 5}


def test_a_failed_event_without_its_error_is_no_event(folder):
    journal(folder, LAUNCHED, ("failed", {"trial": IDS[0]}))
    with pytest.raises(SweepDirError, match="line 2 is not an event"):
        read_status(folder)


def test_a_digest_with_anything_else_in_the_place_of_a_trial_is_ignored(folder):
    journal(folder, LAUNCHED, finished(0))
    tally = Tally.read(folder.status, folder.journal)
    tally.trials[IDS[1]] = 3
    tally.save(folder.status)
    assert counts(folder) == {"complete": 1, "waiting": 5}
