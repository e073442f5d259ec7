"""What is written down of events: the journal, live.json, a trial's log, and the counts."""

import json
import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper import journal as journal_module
from sweeper.attempt import Outcome, Progress, Waiting
from sweeper.journal import Journal, Tally, read_events
from sweeper.schedule import scribe as module
from sweeper.schedule.executor import Avoided, Halt, Packed, Retry, Stranded
from sweeper.schedule.retry import Failure
from sweeper.schedule.scribe import DIGEST_SECONDS, LIVE_SECONDS, Counts, Running, Scribe
from sweeper.status.live import read_live
from sweeper.store.root import Root
from sweeper.sweep_dir import SweepDir

PLACE = {"host": "node1", "device": "cuda:0"}


def says(trial="t1", attempt=1, step=0, n_steps=100, epoch=0.0, per_gpu=2):
    return Progress(trial, attempt, step, n_steps, "node1", "cuda:0", epoch, per_gpu)


def ended(trial="t1", state="complete", attempt=1):
    return Outcome(trial, attempt, state, 12.5, "d" * 64)


def broken(trial="t1", kind="bug", host="node2"):
    return Failure(trial, kind, "ValueError", "a message", "a signature", host)


AVOIDED = Avoided("id of it", "node3", "3 trials failed there", ("t1", "t2"), "a signature")


class Slots:
    n_slots, n_gpus = 8, 2


class Written:
    """A scribe at work, and what it has written."""

    def __init__(self, path, works, clock):
        self.folder, self.clock = SweepDir(path), clock
        path.mkdir(exist_ok=True)
        self.counts, self.shown, self.is_stopping = Counts(works), [], False
        self.journal = Journal(self.folder.journal)
        self.scribe = Scribe(
            self.folder,
            Root(self.folder.root()),
            self.journal,
            Tally.read(self.folder.status, self.folder.journal),
            self.counts,
            Slots(),
            lambda event, counts: self.shown.append((event, counts)),
            lambda: self.is_stopping,
        )

    def take(self, *events):
        for event in events:
            self.scribe.take(event)

    def lines(self):
        """All journal lines, without their times."""
        found = [dict(event) for event in read_events(self.folder.journal).events]
        assert all(event.pop("t") > 0 for event in found)
        return found

    def live(self):
        return read_live(self.folder.live, {"pid": os.getpid(), "host": socket.gethostname()})

    def log(self, trial="t1"):
        return Root(self.folder.root()).read_log(trial)


@pytest.fixture
def clock(monkeypatch):
    """Both clocks of the scribe, which stand still until they are set."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def written(tmp_path, clock):
    found = Written(tmp_path / "sweep", {"t1": 3.0, "t2": 1.0}, clock)
    with found.journal:
        yield found


# --- the journal ----------------------------------------------------------------------------


def test_a_trial_that_completes(written):
    written.take(says(step=0), says(step=50), says(step=99), ended())
    assert written.lines() == [
        {
            "event": "started",
            "trial": "t1",
            "attempt": 1,
            **PLACE,
            "step": 0,
            "n_steps": 100,
            "per_gpu": 2,
        },
        {
            "event": "finished",
            "trial": "t1",
            "attempt": 1,
            "seconds": 12.5,
            "state": "complete",
            "steps": 100,
            "digest": "d" * 64,
        },
    ]


FAILED = {
    "trial": "t1",
    "attempt": 1,
    "kind": "bug",
    "error": "ValueError",
    "message": "a message",
    "signature": "a signature",
    "host": "node2",
    "device": "cuda:0",
}


def test_a_trial_that_fails_once_and_then_for_good(written):
    written.take(says(), Retry(broken(), 1.5), says(attempt=2), broken())
    named = [line["event"] for line in written.lines()]
    assert named == ["started", "retried", "started", "failed"]
    assert written.lines()[1] == {"event": "retried", **FAILED, "delay": 1.5}
    assert written.lines()[3] == {"event": "failed", **FAILED, "attempt": 2}


def test_a_trial_that_fails_before_it_says_a_word(written):
    written.take(broken(kind="invalid"))
    found = FAILED | {"kind": "invalid", "attempt": None, "device": ""}
    assert written.lines() == [{"event": "failed", **found}]


def test_a_lost_worker_is_placed_where_it_was_last_heard_of(written):
    written.take(says(attempt=3), Retry(Failure.lost("t1", "its node is gone"), 1.0))
    line = written.lines()[-1]
    assert (line["host"], line["device"], line["attempt"]) == ("node1", "cuda:0", 3)
    assert (line["kind"], line["error"]) == ("lost", "WorkerDied")


def test_a_drained_attempt_and_what_shares_a_gpu(written):
    written.take(
        says(step=10),
        says(step=30),
        Packed("a shape", 4, "measured", 5, 80, "t1"),
        ended(state="stopped"),
        Packed("a shape", 2, "out of memory", trial_id="t2", kind="A"),
    )

    def found(per_gpu, reason, kind):
        return {"kind": kind, "per_gpu": per_gpu, "reason": reason}

    packed = {"event": "packed", "shape": "a shape"}
    assert written.lines()[1:] == [
        {**packed, **found(4, "measured", ""), "peak_bytes": 5, "device_bytes": 80},
        {"event": "stopped", "trial": "t1", "attempt": 1, "seconds": 12.5, "steps": 20},
        {**packed, **found(2, "out of memory", "A"), "peak_bytes": 0, "device_bytes": 0},
    ]


def test_a_node_that_is_avoided(written):
    written.take(AVOIDED)
    assert written.lines() == [
        {
            "event": "avoided",
            "node": "id of it",
            "host": "node3",
            "reason": "3 trials failed there",
            "trials": ["t1", "t2"],
            "signature": "a signature",
        }
    ]
    assert written.counts.avoided == [AVOIDED]
    assert written.shown[-1][0] == AVOIDED


def test_what_waits_for_gpus_that_are_gone(written):
    event = Stranded(("B",), ("a shape",), 2)
    written.take(event)
    found = {"event": "stranded", "kinds": ["B"], "shapes": ["a shape"], "n_trials": 2}
    assert written.lines() == [found]
    assert written.shown[-1][0] == event


def test_waiting_and_halting_are_shown_and_not_journalled(written):
    halt = Halt(broken(), 10)
    written.take(Waiting("t1", "no room"), halt)
    assert written.lines() == []
    assert written.counts.halt is halt
    assert [event for event, _ in written.shown] == [Waiting("t1", "no room"), halt]


def test_what_is_written_is_what_the_journal_documents(written):
    """Each line has the fields that the table names, in that event's row, and no other."""
    written.take(says(), Retry(broken(), 0.0), says(), broken(), says(), ended())
    written.take(ended(state="stopped"), Packed("s", 1, "measured"), AVOIDED)
    table = journal_module.__doc__
    rows = dict(re.findall(r"^(\w+)  +(\S.*(?:\n {6,}\S.*)*)", table, re.MULTILINE))
    failure = rows["retried"]
    rows["failed"] = failure.replace("delay, ", "")
    seen = {line.pop("event"): line for line in written.lines()}
    named = {"started", "retried", "failed", "finished", "stopped", "packed", "avoided"}
    assert set(seen) == named
    for event, fields in seen.items():
        listed = re.sub(r"\(.*?\)|;.*|:.*", "", rows[event], flags=re.DOTALL)
        assert set(re.findall(r"\w+", listed)) == set(fields), event


def test_events_are_shown_after_they_are_durable(tmp_path, clock):
    seen = []
    written = Written(tmp_path / "sweep", {"t1": 1.0}, clock)
    written.scribe._on_event = lambda event, counts: seen.append(
        (type(event), [line["event"] for line in written.lines()], counts.n_complete)
    )
    with written.journal:
        written.take(says(), ended())
    assert seen == [(Progress, ["started"], 0), (Outcome, ["started", "finished"], 1)]


# --- steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "steps"),
    [
        ([says(step=0), ended()], 100),
        ([says(step=40), says(step=70), ended()], 60),  # resumed at 40
        ([says(step=100), ended()], 0),  # all that was left was to seal
        ([ended()], 0),  # it was sealed already
        ([says(step=40), says(step=70), ended(state="diverged")], 30),
        ([ended(state="diverged")], 0),
        ([says(step=0), says(step=90), says(attempt=2, step=80), ended(attempt=2)], 20),
    ],
)
def test_steps_are_those_that_the_last_attempt_made(written, events, steps):
    written.take(*events)
    assert written.lines()[-1]["steps"] == steps


# --- counts ---------------------------------------------------------------------------------


def test_counts_of_all_that_can_happen(tmp_path, clock):
    written = Written(tmp_path / "sweep", {f"t{i}": 1.0 for i in range(5)}, clock)
    with written.journal:
        written.take(says("t0"), ended("t0"))
        written.take(says("t1"), ended("t1", "diverged"))
        written.take(says("t2"), Retry(broken("t2"), 0.0), says("t2", 2), broken("t2"))
        written.take(says("t3"), ended("t3", "stopped"))
    counts = written.counts
    assert (counts.n_todo, counts.n_ended) == (5, 3)
    found = (counts.n_complete, counts.n_diverged, counts.n_failed)
    assert found == (1, 1, 1)
    assert (counts.n_stopped, counts.n_retried) == (1, 1)
    assert counts.running == {}
    assert counts.fraction == pytest.approx(0.6)


def running(step, n_steps=100):
    return Running(says(step=step, n_steps=n_steps), 0, 0.0, 0.0)


def test_a_fraction_is_of_work_and_not_of_trials():
    counts = Counts({"t1": 3.0, "t2": 1.0})
    assert counts.fraction == 0.0
    counts.running["t1"] = running(50)
    assert counts.fraction == pytest.approx(1.5 / 4)
    counts.work_done, counts.n_complete = 1.0, 1
    assert counts.fraction == pytest.approx(2.5 / 4)
    counts.running["t9"] = running(50)  # of no work that is known
    counts.running["t2"] = running(0, 0)
    assert counts.fraction == pytest.approx(2.5 / 4)


def test_a_fraction_without_work_is_of_trials_and_of_nothing_is_all():
    assert Counts({}).fraction == 1.0
    counts = Counts({"t1": 0.0, "t2": 0.0}, n_complete=1)
    counts.running["t2"] = running(0, 0)
    assert counts.fraction == 0.5


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e18), min_size=1),
    st.data(),
)
def test_a_fraction_is_between_nothing_and_all_and_never_falls_as_trials_go_on(works, data):
    counts, before = Counts(works), 0.0
    for trial, work in works.items():
        for step in sorted(data.draw(st.lists(st.integers(0, 100), max_size=3))):
            counts.running[trial] = running(step)
            assert before <= counts.fraction * (1 + 1e-12) <= 1 + 1e-12
            before = counts.fraction
        counts.running.pop(trial, None)
        counts.n_complete += 1
        counts.work_done += work
        assert before <= counts.fraction * (1 + 1e-12) <= 1 + 1e-12
        before = counts.fraction
    assert counts.fraction == pytest.approx(1.0)


# --- a trial's log --------------------------------------------------------------------------


def test_a_worker_that_could_say_nothing_has_its_end_written_into_the_log(written):
    written.take(says(attempt=3), Retry(Failure.lost("t1", "its node is gone"), 1.0))
    assert "attempt 3 on node1 (cuda:0) lost: its node is gone\n" in written.log()
    written.take(Failure.lost("t2", "its worker died"))
    assert "attempt lost: its worker died\n" in written.log("t2")


def test_a_worker_that_spoke_has_written_its_own_log(written):
    written.take(says(), Retry(broken(kind="lost"), 1.0), says(attempt=2), broken())
    assert written.log() == ""


# --- live.json ------------------------------------------------------------------------------


def test_live_says_what_runs_where_and_how_far_it_is(written):
    written.take(says(step=10))
    written.clock.now += LIVE_SECONDS
    written.take(says(step=50, epoch=1.23456))
    found = written.live()
    assert (found.n_slots, found.n_gpus, found.is_draining) == (8, 2, False)
    seen = dict(found.running["t1"])
    assert 0 < seen.pop("since") <= seen.pop("beat") <= found.t + 1
    assert seen == {
        "attempt": 1,
        "step": 50,
        "n_steps": 100,
        "epoch": 1.235,
        **PLACE,
        "per_gpu": 2,
    }
    assert found.share_in_use == 0.5


def test_live_is_written_every_few_seconds(written):
    written.take(says(step=1))
    before = written.folder.live.read_bytes()
    written.clock.now += LIVE_SECONDS - 0.1
    written.take(says(step=2))
    assert written.folder.live.read_bytes() == before
    written.clock.now += 0.1
    written.take(ended())
    assert written.live().running == {}


def test_progress_is_a_beat_and_the_start_stays(written, monkeypatch):
    written.take(says(step=7))
    began = written.counts.running["t1"].since
    monkeypatch.setattr(module.time, "time", lambda: began + 100)
    written.take(says(step=8))
    now = written.counts.running["t1"]
    assert (now.beat, now.since, now.first_step) == (began + 100, began, 7)


def test_a_sign_of_life_is_a_beat_but_no_progress(written, monkeypatch):
    written.take(says(step=7))
    began = written.counts.running["t1"].beat
    monkeypatch.setattr(module.time, "time", lambda: began + 100)
    written.take(Waiting("t1", "no room"), Waiting("t9", "of nobody"))
    now = written.counts.running["t1"]
    assert (now.beat, now.since, now.said.step) == (began + 100, began, 7)


@pytest.mark.parametrize("why", ["asked", "halted"])
def test_live_says_that_the_driver_drains(written, why):
    if why == "asked":
        written.is_stopping = True
        written.take(says())
    else:
        written.take(Halt(broken(), 10))
    assert written.live().is_draining


def test_another_driver_s_live_is_nobody_s(written):
    written.take(says())
    here = {"pid": os.getpid(), "host": socket.gethostname()}
    assert read_live(written.folder.live, here | {"pid": 1}) is None
    assert read_live(written.folder.live, None) is None


def test_a_driver_that_ends_leaves_its_digest_and_no_live(written):
    written.take(says(), ended())
    written.scribe.close()
    assert not written.folder.live.exists()
    saved = json.loads(written.folder.status.read_bytes())
    assert saved["offset"] == written.folder.journal.stat().st_size
    assert saved["trials"]["t1"]["state"] == "complete"
    written.scribe.close()  # nothing is there to remove


# --- the digest and the tally ----------------------------------------------------------------


def test_the_tally_in_memory_is_that_of_the_journal(written):
    written.take(says(), Retry(broken(), 1.0), says(attempt=2), says("t2"), ended("t2"))
    written.take(Packed("a", 4, "measured", 1, 2))
    read = Tally.read(written.folder.path / "no digest", written.folder.journal)
    assert read.trials == written.scribe.tally.trials
    assert (read.packed, read.offset) == ({"a": {"": 4}}, written.scribe.tally.offset)


def test_a_digest_is_saved_now_and_then(written):
    written.take(says())
    assert not written.folder.status.exists()
    written.clock.now += DIGEST_SECONDS + 1
    written.take(says(step=1))
    assert written.folder.status.exists()


def test_a_scribe_goes_on_where_the_last_one_ended(written, clock):
    written.take(Packed("a", 4, "measured"), says(), broken())
    written.scribe.close()
    again = Written(written.folder.path, {"t1": 1.0}, clock)
    with again.journal:
        assert again.scribe.tally.packed == {"a": {"": 4}}
        assert again.scribe.tally.trials["t1"]["state"] == "failed"


def test_a_full_disk_is_waited_for_and_then_nothing_is_missing(written, monkeypatch):
    append, n_failed = written.journal.append, iter(range(10))

    def full(event, **fields):
        if next(n_failed) < 2:
            raise OSError(28, "No space left on device")
        return append(event, **fields)

    monkeypatch.setattr(written.journal, "append", full)
    monkeypatch.setattr("sweeper.room.ROOM_SECONDS", 0.0)
    monkeypatch.setattr("sweeper.room.time.sleep", lambda _: None)
    written.take(says())
    assert [line["event"] for line in written.lines()] == ["started"]
    said = [event for event, _ in written.shown]
    assert [type(event) for event in said] == [Waiting, Waiting, Progress]
    assert "No space left on device" in said[0].reason


def test_a_full_disk_does_not_hold_up_a_driver_that_is_to_stop(written, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written.journal, "append", full)
    monkeypatch.setattr(module, "write_atomically", full)
    written.is_stopping = True
    written.take(says(), ended(state="stopped"))
    assert written.lines() == []
    assert written.counts.n_stopped == 1


def test_any_other_error_of_the_journal_ends_the_driver(written, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(written.journal, "append", fail)
    with pytest.raises(OSError, match="Input/output"):
        written.take(says())


def test_what_has_ended_is_not_remembered(tmp_path, clock):
    written = Written(tmp_path / "sweep", dict.fromkeys(map(str, range(300)), 1.0), clock)
    with written.journal:
        for i in map(str, range(300)):
            written.take(says(i), Retry(broken(i), 0.0), says(i, 2), ended(i, attempt=2))
    assert written.counts.running == {}
    assert written.counts.fraction == pytest.approx(1.0)
