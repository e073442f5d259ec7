import json
import os
import re
import time

import pytest

from sweeper.errors import SweepDirError
from sweeper.journal import Tally
from sweeper.status.failures import FailureGroup
from sweeper.status.states import STATES, Sight, states_of
from sweeper.status.summary import Watch, read_status
from sweeper.status.text import status_line, status_lines
from sweeper.store.seal import seal
from sweeper.sweep_dir import PREDICTIONS, SweepDir
from tests.six_trials import IDS, LAUNCHED, counts, failed, finished, journal, retried, started


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


def test_failures_are_those_of_the_trials_that_are_failed_now(folder):
    journal(folder, LAUNCHED, failed(0, "x"), failed(1), failed(2, "x"), failed(3), failed(4))
    journal(folder, finished(4))
    assert read_status(folder).failures == (
        FailureGroup("RuntimeError", "x", (IDS[0], IDS[2]), kind="bug"),
        FailureGroup("RuntimeError", "a bug", (IDS[1], IDS[3]), kind="bug"),
    )


def test_the_rate_counts_what_ended_since_the_last_launch(folder):
    with folder.locked():
        journal(folder, LAUNCHED, finished(0))
        time.sleep(0.002)  # the journal's clock ticks in milliseconds
        journal(folder, LAUNCHED)
        assert read_status(folder).trials_per_minute is None
        time.sleep(0.02)
        journal(folder, finished(1), finished(2))
        assert 0 < read_status(folder).trials_per_minute < 60 * 2 / 0.02
    assert read_status(folder).trials_per_minute is None


# --- looking again, and at some ---------------------------------------------------------------


def test_a_second_look_is_that_of_somebody_who_looks_for_the_first_time(folder, tiny):
    watch = Watch(folder)
    rounds = [
        (LAUNCHED, started(0), started(1)),
        (finished(0), failed(2, "x")),
        (retried(1), started(1), ("packed", {"shape": "s", "per_gpu": 2, "reason": "r"})),
    ]
    for events in rounds:
        journal(folder, *events)
        assert watch.status() == read_status(folder)
    tiny.sealed(1, trial_id=IDS[1])
    assert read_status(folder).counts["complete"] == 2


def test_what_ends_between_two_listings_of_the_store_is_complete(folder, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9 + 0.0004)  # no clock tells what came first
    sight = Sight(folder)
    journal(folder, LAUNCHED, started(0))
    assert sight.look().states[IDS[0]] == "interrupted"
    journal(folder, finished(0))
    assert sight.look().states[IDS[0]] == "complete"


def test_what_had_ended_when_a_listing_lacked_it_waits_until_it_ends_again(folder, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    journal(folder, LAUNCHED, finished(0))
    (folder.path / PREDICTIONS / "trials" / IDS[0]).rmdir()
    sight = Sight(folder)
    assert [sight.look().states[IDS[0]] for _ in range(2)] == ["waiting"] * 2
    journal(folder, started(0), finished(0))
    assert sight.look().states[IDS[0]] == "complete"


def test_only_the_trials_that_are_asked_for_are_added_up(folder):
    journal(folder, LAUNCHED, finished(0), failed(1), failed(2), started(3))
    status = read_status(folder, only=[IDS[3], IDS[1]])
    assert status.n_planned == 2
    assert {state: n for state, n in status.counts.items() if n} == {"failed": 1, "interrupted": 1}
    assert [group.trials for group in status.failures] == [(IDS[1],)]


def test_states_of_trials_that_are_not_planned_yet(folder, tmp_path_factory):
    journal(folder, failed(0))
    assert states_of(folder, [IDS[0], "tnew"]) == {IDS[0]: "failed", "tnew": "waiting"}
    assert states_of(SweepDir(tmp_path_factory.mktemp("none")), ["t1"]) == {"t1": "waiting"}


# --- in words ---------------------------------------------------------------------------------


def test_the_three_largest_failure_groups_are_shown_and_where_to_find_the_rest(folder):
    journal(folder, LAUNCHED, failed(0, "x\nmore"), retried(1), failed(2, "y"), failed(3, "z"))
    journal(folder, failed(4, "x\nmore"))
    lines = list(status_lines("DIR", read_status(folder)))
    assert lines[lines.index("  2 failed with RuntimeError: x") + 1] == f"    {IDS[0]}, {IDS[4]}"
    assert "  1 were to be run again after RuntimeError: full" in lines
    assert "  1 failed with RuntimeError: y" in lines
    assert not [line for line in lines if "RuntimeError: z" in line]
    assert lines[-1] == "  1 more kinds of failure; `sweeper failures DIR` tells more"


def test_one_line_tells_how_far_it_is(folder):
    journal(folder, LAUNCHED, finished(0), finished(1, "diverged"), failed(2), started(3))
    text = status_line(read_status(folder))
    assert re.fullmatch(
        r"2/6 trials complete, 1 diverged, 1 failed, 1 interrupted, 3 s of slot time left", text
    )


# --- what may be wrong ------------------------------------------------------------------------


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
