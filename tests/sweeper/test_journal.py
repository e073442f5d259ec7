import json
import os
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import SweepDirError
from sweeper.journal import Journal, Tally, read_events
from tests.power_loss import Disk

TRIALS = st.sampled_from(["t1", "t2", "t3"])
MEASURED = {"seconds": st.integers(1, 3), "steps": st.integers(0, 2)}
EVENTS = st.one_of(
    st.tuples(st.just("launched"), st.fixed_dictionaries({"n_todo": st.integers(0, 9)})),
    st.tuples(st.just("ended"), st.fixed_dictionaries({"reason": st.just("complete")})),
    st.tuples(
        st.just("started"),
        st.fixed_dictionaries(
            {
                "trial": TRIALS,
                "attempt": st.integers(1, 9),
                "host": st.sampled_from(["", "a", "b"]),
            },
            optional={"step": st.integers(0, 2)},
        ),
    ),
    st.tuples(
        st.just("finished"),
        st.fixed_dictionaries(
            {"trial": TRIALS, "state": st.sampled_from(["complete", "diverged"])},
            optional=MEASURED,
        ),
    ),
    st.tuples(
        st.sampled_from(["failed", "retried"]),
        st.fixed_dictionaries({"trial": TRIALS, "error": st.text(), "message": st.text()}),
    ),
    st.tuples(
        st.just("packed"),
        st.fixed_dictionaries(
            {"shape": st.text(), "per_gpu": st.integers(0, 8)}, optional={"kind": st.text()}
        ),
    ),
    st.tuples(st.just("stranded"), st.just({"kinds": ["B"], "shapes": ["s"], "n_trials": 2})),
    st.tuples(st.just("avoided"), st.fixed_dictionaries({"host": st.text(), "reason": st.text()})),
    st.tuples(
        st.sampled_from(["lost", "stopped", "requeued"]),
        st.fixed_dictionaries({"trial": TRIALS}, optional=MEASURED),
    ),
)


def write(path, *events):
    with Journal(path) as journal:
        return [journal.append(kind, **fields) for kind, fields in events]


def expected_states(events):
    """The fold, said again in the words of the documentation."""
    states = {}
    for kind, fields in events:
        if kind in ("lost", "stopped", "failed", "retried", "requeued"):
            states[fields["trial"]] = kind
        elif kind == "started":
            states[fields["trial"]] = "running"
        elif kind == "finished":
            states[fields["trial"]] = fields["state"]
    return states


# --- the file --------------------------------------------------------------------------------


def test_what_is_read_is_what_was_appended(tmp_path):
    path = tmp_path / "journal.jsonl"
    written = write(path, ("launched", {"n_todo": 2}), ("lost", {"trial": "t1"}))
    written += write(
        path, ("failed", {"trial": "t1", "error": "E", "message": "two\nlines – and more"})
    )
    found = read_events(path)
    assert found.events == written
    assert (found.offset, found.torn) == (path.stat().st_size, 0)
    assert [event["event"] for event in found.events] == ["launched", "lost", "failed"]


def test_no_journal_is_an_empty_one(tmp_path):
    found = read_events(tmp_path / "journal.jsonl")
    assert (found.events, found.offset, found.torn) == ([], 0, 0)


def test_every_event_is_synced_before_append_returns(tmp_path, monkeypatch):
    path, synced = tmp_path / "journal.jsonl", []
    fsync = os.fsync

    def watched(descriptor):
        fsync(descriptor)
        synced.append(path.stat().st_size)

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", watched)
        for i in range(3):
            journal.append("lost", trial=f"t{i}")
            assert len(synced) == i + 1
            assert synced[-1] == journal.offset == path.stat().st_size


def test_the_first_event_of_a_journal_survives_a_power_loss(tmp_path):
    with Disk(tmp_path) as disk, Journal(tmp_path / "journal.jsonl") as journal:
        journal.append("lost", trial="t1")
        left = disk.left("least", random.Random(0))
    assert left == {"journal.jsonl": (tmp_path / "journal.jsonl").read_bytes()}


@given(st.integers(1, 200))
def test_a_torn_last_line_is_dropped_reported_and_cut(tmp_path_factory, n_cut):
    path = tmp_path_factory.mktemp("torn") / "journal.jsonl"
    written = write(path, *(("lost", {"trial": f"t{i}"}) for i in range(3)))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    n_cut = 1 + (n_cut - 1) % (len(lines[-1]) - 1)
    path.write_bytes(whole[:-n_cut])
    n_torn = len(lines[-1]) - n_cut
    found = read_events(path)
    assert (found.events, found.torn) == (written[:2], n_torn)
    assert found.offset == len(lines[0]) + len(lines[1])
    with Journal(path) as journal:
        assert journal.torn == n_torn
        journal.append("lost", trial="t9")
    after = read_events(path)
    assert [event["trial"] for event in after.events] == ["t0", "t1", "t9"]
    assert after.torn == 0


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        "\0\0\0",
        '{"t": 1}',
        '{"event": "lost", "t": 1}',
        '{"event": []}',
        '{"event": "lost", "t": 1, "trial": []}',
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    write(path, ("lost", {"trial": "t1"}))
    good = path.read_text()
    path.write_text(good + good + line + "\n" + good)
    with pytest.raises(SweepDirError, match="line 3 is not an event") as caught:
        read_events(path)
    assert caught.value.where == str(path)
    with pytest.raises(SweepDirError, match="line 3 "):
        read_events(path, offset=len(good))
    with pytest.raises(SweepDirError, match="line 3 "):
        Journal(path)


# --- the tally -------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(EVENTS, max_size=12), st.data())
def test_a_digest_and_the_rest_tell_what_all_events_tell(tmp_path_factory, events, data):
    folder = tmp_path_factory.mktemp("tally")
    journal, digest = folder / "journal.jsonl", folder / "status.json"
    n_before = data.draw(st.integers(0, len(events)))
    write(journal, *events[:n_before])
    Tally.read(digest, journal).save(digest)
    write(journal, *events[n_before:])
    whole = Tally.read(folder / "none.json", journal)
    one_by_one = Tally(offset=whole.offset)
    for event in read_events(journal).events:
        one_by_one.add(event)
    assert one_by_one == whole
    assert Tally.read(digest, journal) == whole
    states = {trial: found["state"] for trial, found in whole.trials.items()}
    assert states == expected_states(events)
    assert whole.offset == journal.stat().st_size


def test_a_launch_clears_the_end_of_the_one_before(tmp_path):
    events = [("launched", {"n_todo": 1}), ("ended", {"reason": "stopped"})]
    write(tmp_path / "journal.jsonl", *events)
    tally = Tally.read(tmp_path / "status.json", tmp_path / "journal.jsonl")
    assert tally.ended["reason"] == "stopped"
    write(tmp_path / "journal.jsonl", ("launched", {"n_todo": 5}))
    tally = Tally.read(tmp_path / "status.json", tmp_path / "journal.jsonl")
    assert (tally.launched["n_todo"], tally.ended) == (5, None)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "[]",
        "{",
        '{"unknown": 1}',
        '{"offset": "1"}',
        '{"offset": -4}',
        '{"offset": 100000, "trials": {"t9": {"state": "complete"}}}',  # of a longer journal
        '{"offset": 10, "trials": {"t9": {"state": "complete"}}}',  # of another journal
        '{"offset": 45, "trials": []}',
    ],
)
def test_a_digest_that_does_not_fit_the_journal_is_ignored(tmp_path, digest):
    write(tmp_path / "journal.jsonl", ("lost", {"trial": "t1"}), ("lost", {"trial": "t2"}))
    (tmp_path / "status.json").write_text(digest)
    tally = Tally.read(tmp_path / "status.json", tmp_path / "journal.jsonl")
    assert tally.trials.keys() == {"t1", "t2"}


def test_a_digest_without_its_journal_is_ignored(tmp_path):
    write(tmp_path / "journal.jsonl", ("lost", {"trial": "t1"}))
    Tally.read(tmp_path / "none", tmp_path / "journal.jsonl").save(tmp_path / "status.json")
    (tmp_path / "journal.jsonl").unlink()
    tally = Tally.read(tmp_path / "status.json", tmp_path / "journal.jsonl")
    assert (tally.trials, tally.offset) == ({}, 0)


def test_a_saved_digest_is_json(tmp_path):
    write(tmp_path / "journal.jsonl", ("failed", {"trial": "t1", "error": "é", "message": "ü"}))
    Tally.read(tmp_path / "none", tmp_path / "journal.jsonl").save(tmp_path / "status.json")
    saved = json.loads((tmp_path / "status.json").read_text())
    assert saved["trials"]["t1"]["error"] == "é"
    assert saved["offset"] == (tmp_path / "journal.jsonl").stat().st_size


FAILED = {"attempt": 1, "kind": "oom", "error": "E", "message": "full", "signature": "E in f"}


def tally_of(tmp_path, *events):
    write(tmp_path / "journal.jsonl", *events)
    return Tally.read(tmp_path / "none", tmp_path / "journal.jsonl")


def test_what_an_attempt_failed_of_is_known_until_the_trial_ends(tmp_path):
    events = [
        ("retried", {"trial": "t1", **FAILED, "delay": 1.0, "host": "a", "device": "cuda:0"}),
        ("started", {"trial": "t1", "attempt": 2, "host": "b", "device": "cuda:1"}),
        ("finished", {"trial": "t1", "attempt": 2, "state": "complete", "seconds": 2.0}),
    ]
    retried, started, finished = (
        tally_of(tmp_path, event).trials["t1"] | {"t": 0} for event in events
    )
    assert retried == {"state": "retried", "t": 0, **FAILED, "host": "a", "device": "cuda:0"}
    where = {"attempt": 2, "host": "b", "device": "cuda:1"}
    assert started == {"state": "running", "t": 0, **FAILED, **where}
    assert finished == {"state": "complete", "t": 0, "attempt": 2, "seconds": 2.0}


def test_a_failure_for_good_is_over_once_the_trial_is_launched_again(tmp_path):
    tally = tally_of(
        tmp_path,
        ("failed", {"trial": "t1", **FAILED}),
        ("launched", {}),
        ("started", {"trial": "t1", "attempt": 2}),
    )
    assert tally.trials["t1"] == {"state": "running", "t": tally.trials["t1"]["t"], "attempt": 2}


def test_the_last_measured_attempt_and_the_last_known_step_stay_until_the_trial_ends(tmp_path):
    def kept(*events):
        found = tally_of(tmp_path, *events).trials["t1"]
        return {key: found[key] for key in ("seconds", "steps", "step") if key in found}

    at = {"trial": "t1"}
    assert kept(("started", {**at, "step": 100})) == {"step": 100}
    stopped = {"seconds": 4.0, "steps": 30, "step": 130}
    assert kept(("stopped", {**at, "seconds": 4.0, "steps": 30})) == stopped
    # Its last checkpoint could not be read.
    assert kept(("started", {**at, "step": 90})) == {**stopped, "step": 90}
    assert kept(("retried", {**at, **FAILED})) == {**stopped, "step": 90}
    assert kept(("started", {**at, "step": 120})) == {**stopped, "step": 120}
    assert kept(("failed", {**at, **FAILED})) == {**stopped, "step": 120}
    assert kept(("started", {**at, "step": 120}), ("lost", at)) == {**stopped, "step": 120}
    done = {"seconds": 9.0, "steps": 80}
    assert kept(("finished", {**at, "state": "complete", **done})) == done
    assert kept(("requeued", at)) == {}


def test_the_last_word_on_how_a_shape_is_packed_counts_and_hosts_are_named_once(tmp_path):
    tally = tally_of(
        tmp_path,
        ("packed", {"shape": "s", "per_gpu": 4, "reason": "memory"}),
        ("started", {"trial": "t1", "host": "a"}),
        ("packed", {"shape": "r", "per_gpu": 2, "reason": "memory"}),
        ("packed", {"shape": "r", "kind": "A", "per_gpu": 8, "reason": "memory"}),
        ("started", {"trial": "t2", "host": "b"}),
        ("packed", {"shape": "s", "per_gpu": 2, "reason": "oom"}),
        ("started", {"trial": "t3", "host": "a"}),
    )
    assert tally.packed == {"s": {"": 2}, "r": {"": 2, "A": 8}}
    assert tally.sharing == {"s": 2, "r": 8}
    assert tally.hosts == ["a", "b"]


def test_the_nodes_that_the_last_launch_avoided_are_kept(tmp_path):
    avoided = {"node": "1", "host": "a", "reason": "bad", "trials": ["t1"], "signature": "s"}
    events = [("launched", {}), ("avoided", avoided), ("avoided", {**avoided, "host": "b"})]
    tally = tally_of(tmp_path, *events)
    assert [(found["host"], found["trials"]) for found in tally.avoided] == [
        ("a", ["t1"]),
        ("b", ["t1"]),
    ]
    (tmp_path / "again").mkdir()
    assert tally_of(tmp_path / "again", *events, ("launched", {})).avoided == []


def test_a_digest_from_before_there_were_kinds_is_read_again_from_the_journal(tmp_path):
    path, digest = tmp_path / "journal.jsonl", tmp_path / "status.json"
    write(path, ("packed", {"shape": "s", "per_gpu": 4}))
    Tally.read(digest, path).save(digest)
    saved = json.loads(digest.read_bytes())
    saved["packed"] = {"s": 4}
    del saved["avoided"]
    digest.write_text(json.dumps(saved))
    assert Tally.read(digest, path).packed == {"s": {"": 4}}


@pytest.mark.parametrize("event", ["failed", "retried"])
def test_a_failure_without_its_error_is_no_event(tmp_path, event):
    with pytest.raises(SweepDirError, match="line 1 is not an event"):
        tally_of(tmp_path, (event, {"trial": "t1", "message": ""}))


def test_two_halves_of_a_line_are_not_taken_for_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"t":1,"event":"lost"\n"trial":"t1"}\n')
    with pytest.raises(SweepDirError, match="line 1 is not an event"):
        read_events(path)


def test_a_finished_trial_takes_little_memory(tmp_path):
    def events(trials):
        for i in trials:
            # New text objects each time, as JSON gives them.
            where = {"trial": f"t{i:012x}", "attempt": 1, "host": "n".ljust(40, "o")}
            yield {"t": float(i), "event": "started", "step": 0, "n_steps": 9, **where}
            done = {"state": "".join(["comp", "lete"]), "seconds": i / 7, "steps": i + 1000}
            yield {"t": float(i), "event": "finished", **where, **done, "digest": f"{i:064x}"}

    tally, n_trials = Tally(), 10_000
    tracemalloc.start()
    for event in events(range(n_trials)):
        tally.add(event)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tally.trials) == n_trials
    assert size / n_trials < 600
