"""A trial's log, in every place that a store can be in."""

import time

from sweeper.store.root import Root


def test_a_log_is_read_as_it_was_written_by_attempts_one_after_another(place, monkeypatch):
    root = Root(place)
    for day, texts in (("2026-01-01", ["one", "two"]), ("2026-01-02", ["three – é"])):
        # Objects in a bucket are in the order of their times.
        monkeypatch.setattr(time, "strftime", lambda form, day=day: day)
        log = root.log("t1")
        for text in texts:
            log(text)
    root.log("t12")("another trial's")
    lines = root.read_log("t1").splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == ["one", "two", "three – é"]
    assert b"".join(root.log_parts("t1").values()).decode() == root.read_log("t1")


def test_what_has_logged_nothing_has_no_log(place):
    assert Root(place).log_parts("t1") == {}
    assert Root(place).read_log("t1") == ""
