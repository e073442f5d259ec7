"""What a driver says of itself, and what the status makes of it."""

import json
import time

import pytest

from sweeper.journal import Journal
from sweeper.plan import planned_work
from sweeper.status.states import states_of
from sweeper.status.summary import read_status
from sweeper.status.text import status_lines
from sweeper.sweep_dir import PREDICTIONS
from tests.six_trials import (
    IDS,
    LAUNCHED,
    counts,
    failed,
    finished,
    journal,
    live,
    retried,
    started,
)


def test_a_trial_runs_only_while_its_driver_lists_it(folder):
    with folder.locked():
        journal(folder, LAUNCHED, started(0), started(1), failed(2))
        time.sleep(0.002)
        live(folder, 1, 2, 3)  # one that failed in an earlier launch is leased again
        assert counts(folder) == {"running": 3, "interrupted": 1, "waiting": 2}
        time.sleep(0.002)
        journal(folder, started(4), finished(3), retried(1))  # since it said so
        found = states_of(folder)
        assert [found[trial] for trial in IDS] == [
            *("interrupted", "waiting", "running", "complete", "running", "waiting")
        ]
    assert counts(folder) == {"interrupted": 3, "failed": 1, "complete": 1, "waiting": 1}


@pytest.mark.parametrize("other", [{"pid": 1}, {"host": "elsewhere"}])
def test_what_an_earlier_driver_said_does_not_count(folder, other):
    with folder.locked():
        live(folder, 0, **other)
        assert counts(folder) == {"waiting": 6}
        assert read_status(folder).n_slots == 0


DAMAGED = [
    {"running": []},
    {"running": {IDS[0]: 3}},
    {"running": {IDS[0]: {"beat": None}}},
    {"running": {IDS[0]: {"beat": float("nan")}}},
    {"running": {IDS[0]: {"since": "0"}}},
    {"running": {IDS[0]: {"step": "1"}}},
    {"running": {IDS[0]: {"step": [1]}}},
    {"running": {IDS[0]: {"per_gpu": "4"}}},
    {"n_slots": "2"},
    {"n_slots": -1},
    {"n_gpus": float("inf")},
    {"n_gpus": 10**400},
    {"is_draining": "no"},
    {"t": "1"},
    {"t": True},
]


@pytest.mark.parametrize("damage", DAMAGED, ids=json.dumps)
def test_what_a_driver_says_may_be_damaged(folder, damage):
    with folder.locked():
        journal(folder, LAUNCHED, started(0), finished(1))
        live(folder, **damage)
        found = read_status(folder)
        assert (found.n_slots, found.beat, found.counts["running"]) == (0, None, 1)
        assert list(status_lines("DIR", found))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "[" * 100_000])
def test_what_a_driver_says_may_be_unreadable(folder, text):
    with folder.locked():
        journal(folder, LAUNCHED, started(0))
        folder.live.write_text(text)
        assert counts(folder) == {"running": 1, "waiting": 5}


def test_a_trial_that_failed_waits_for_its_driver_and_is_interrupted_without_one(folder):
    journal(folder, LAUNCHED, retried(0))
    assert counts(folder) == {"interrupted": 1, "waiting": 5}
    with folder.locked():
        assert counts(folder) == {"waiting": 6}
        (group,) = read_status(folder).failures
        assert "  1 run again after RuntimeError: full" in list(
            status_lines("DIR", read_status(folder))
        )
    assert (group.trials, group.retried, group.kind) == ((IDS[0],), (IDS[0],), "oom")
    (group,) = read_status(folder).failures
    assert (group.retried, group.interrupted) == ((), (IDS[0],)), "nobody runs it again"


def test_what_is_stored_under_another_name_is_complete_while_it_is_there(folder):
    (folder.path / PREDICTIONS / "trials" / "told").mkdir(parents=True)
    for index, label in enumerate(("told", "tgone")):
        with Journal(folder.journal) as writer:
            writer.append("finished", trial=IDS[index], state="complete", label=label)
    assert counts(folder) == {"complete": 1, "waiting": 5}


def test_the_time_left_is_that_of_the_steps_left_on_the_slots_there_are(folder):
    with folder.locked():
        journal(folder, LAUNCHED)
        (event, fields) = finished(0)
        journal(folder, (event, {**fields, "seconds": 40.0, "steps": 100}))
        time.sleep(0.002)
        live(folder, 1, 2)  # half through
        status = read_status(folder)
        assert status.work_left == 40.0 * (2 * 0.5 + 3)
        assert status.seconds_left == status.work_left / 2
        live(folder, 1, 2, is_draining=True)
        assert (read_status(folder).seconds_left, read_status(folder).is_draining) == (None, True)
    assert read_status(folder).seconds_left is None
    assert read_status(folder).work_left == 40.0 * 5, "nothing is known of a checkpoint"


def measured(seconds=60.0):
    """The first trial, all of its 100 steps in so many seconds."""
    event, fields = finished(0)
    return event, {**fields, "seconds": seconds, "steps": 100}


@pytest.mark.parametrize(
    ("packed", "per_gpu", "expected"),
    [(1, 1, 300.0), (4, 1, 75.0), (None, 2, 150.0), (None, 8, 60.0)],
)
def test_on_gpus_the_time_left_is_that_of_the_gpus_and_not_of_what_feeds_them(
    folder, packed, per_gpu, expected
):
    """Five trials of a minute each, on one GPU of a machine with processors for eight."""
    shape = planned_work(folder.plan).shapes[0]
    with folder.locked():
        journal(folder, LAUNCHED, measured())
        if packed:
            journal(folder, ("packed", {"shape": shape, "per_gpu": packed, "reason": "r"}))
        live(folder, 1, n_slots=8, n_gpus=1)
        found = json.loads(folder.live.read_text())
        found["running"][IDS[1]] |= {"per_gpu": per_gpu, "step": 0}
        folder.live.write_text(json.dumps(found))
        assert read_status(folder).seconds_left == expected


def test_the_first_wave_has_its_time_left(folder):
    with folder.locked():
        journal(folder, LAUNCHED, ("started", {**started(1)[1], "step": 20, "n_steps": 100}))
        assert read_status(folder).work_left is None
        time.sleep(0.002)
        now = time.time()
        live(folder, 1)
        found = json.loads(folder.live.read_text())
        found["running"][IDS[1]] |= {"step": 50, "since": now - 15, "beat": now}
        folder.live.write_text(json.dumps(found))
        status = read_status(folder)  # 30 steps in 15 seconds
        assert status.work_left == pytest.approx(50 * (5 + 0.5), abs=0.2)
        assert status.seconds_left == pytest.approx(status.work_left / 2, abs=0.2)


def test_what_an_interrupted_trial_did_is_neither_forgotten_nor_to_be_done_again(folder):
    stopped = {"trial": IDS[0], "attempt": 1, "seconds": 30.0, "steps": 60}
    begun = {**started(0)[1], "n_steps": 100}
    journal(folder, LAUNCHED, ("started", {**begun, "step": 20}), ("stopped", stopped))
    assert read_status(folder).work_left == pytest.approx(0.5 * (20 + 500))
    journal(folder, LAUNCHED, ("started", {**begun, "attempt": 2, "step": 80}))
    assert read_status(folder).work_left == pytest.approx(0.5 * (20 + 500)), "and on again"
    journal(folder, retried(0))
    assert read_status(folder).work_left == pytest.approx(0.5 * (20 + 500)), "and lost"
    journal(folder, ("requeued", {"trial": IDS[0]}))
    assert read_status(folder).work_left is None, "nothing of it is there any more"


def test_the_share_of_the_gpus_in_use_is_that_of_the_slots_that_run_a_trial(folder):
    with folder.locked():
        live(folder, 0, 1, 2)
        assert read_status(folder).in_use == 3
        assert "slots 3 of 4 busy" in text_of(folder, n_slots=4)
        shares = {0: 1, 1: 4, 2: 4}
        assert "GPU share in use 1.5 of 2" in text_of(folder, shares, n_gpus=2)


def text_of(folder, shares=(), **fields):
    """The printed status of a driver that runs the first three trials."""
    live(folder, 0, 1, 2)
    found = json.loads(folder.live.read_text()) | fields
    for index, per_gpu in dict(shares).items():
        found["running"][IDS[index]]["per_gpu"] = per_gpu
    folder.live.write_text(json.dumps(found))
    return "\n".join(status_lines("DIR", read_status(folder)))


def test_the_trial_that_was_silent_the_longest_is_named(folder):
    with folder.locked():
        live(folder, 0, 1, 2)
        found = json.loads(folder.live.read_text())
        found["running"][IDS[1]] |= {"beat": found["t"] - 3600, "host": "n7", "device": "cuda:3"}
        folder.live.write_text(json.dumps(found))
        status = read_status(folder)
        assert (status.beat.trial, status.beat.host, status.beat.device) == (IDS[1], "n7", "cuda:3")
        assert 3600 <= status.beat.seconds < 3700
        (line,) = [line for line in status_lines("DIR", status) if "silent" in line]
        assert line == f"  silent for 1 h 0 min, the longest: {IDS[1]} on n7 cuda:3; it may hang"
        found["running"][IDS[1]] |= {"beat": time.time() - 500}
        folder.live.write_text(json.dumps(found))
        (line,) = [line for line in status_lines("DIR", read_status(folder)) if "silent" in line]
        assert line.endswith(f"the longest: {IDS[1]} on n7 cuda:3")
    assert read_status(folder).beat is None


@pytest.mark.parametrize("how", ["live", "request"])
def test_a_driver_that_was_asked_to_stop_drains(folder, how):
    folder.stop_request.touch()
    assert not read_status(folder).is_draining, "nobody is there to drain"
    with folder.locked():
        if how == "live":
            folder.stop_request.unlink()
            live(folder, is_draining=True)
        status = read_status(folder)
        assert status.is_draining
        assert next(status_lines("DIR", status)).startswith("DIR: 6 trials, draining, by process ")


def test_shapes_that_share_a_gpu_are_named(folder):
    packed = [("a b500 #1", 4), ("b b500 #2", 2), ("b b500 #2", 1)]
    events = [("packed", {"shape": shape, "per_gpu": n, "reason": "r"}) for shape, n in packed]
    journal(folder, LAUNCHED, *events)
    status = read_status(folder)
    assert status.packed == {"a b500 #1": 4}
    assert "  4 trials share a GPU: a b500 #1" in list(status_lines("DIR", status))


def test_where_it_depends_on_the_kind_of_gpu_that_is_named(folder):
    packed = [("a", "A", 4), ("a", "B", 8), ("b", "A", 2), ("c", "A", 0), ("c", "B", 2)]
    of = [{"shape": shape, "kind": kind, "per_gpu": n, "reason": "r"} for shape, kind, n in packed]
    journal(folder, LAUNCHED, *(("packed", fields) for fields in of))
    assert read_status(folder).packed == {"a on A": 4, "a on B": 8, "b": 2, "c on B": 2}


def test_nodes_that_are_avoided_are_named_with_the_reason(folder):
    avoided = {"node": "1", "host": "node3", "reason": "3 trials failed there", "trials": ["t1"]}
    with folder.locked():
        journal(
            folder,
            LAUNCHED,
            ("avoided", {**avoided, "signature": "ValueError: #"}),
            ("avoided", {**avoided, "host": "node4", "signature": "", "reason": "other code"}),
        )
        lines = list(status_lines("DIR", read_status(folder)))
        assert "  node3 is avoided: 3 trials failed there (ValueError: #)" in lines
        assert "  node4 is avoided: other code" in lines
    status = read_status(folder)
    assert [found["host"] for found in status.avoided] == ["node3", "node4"]
    assert "  node4 was avoided: other code" in list(status_lines("DIR", status))
    journal(folder, LAUNCHED)
    assert read_status(folder).avoided == ()
