"""Checks that end well, badly, and not at all."""

from __future__ import annotations

import threading
import time

import pytest

from sweeper.doctor.finding import Check, attempt, failed, passed, run_checks
from sweeper.errors import PlanError


def raising(error):
    def check():
        yield passed("before", "fine")
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "text", "cure"),
    [
        (PlanError("here", "it is wrong", "right", "mend it"), "here: it is wrong; right", "mend"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied", "check that"),
        (ZeroDivisionError("division\nby zero"), "ended with ZeroDivisionError: division by", ""),
    ],
)
def test_an_exception_is_a_finding_beside_those_before_it(error, text, cure):
    before, after = attempt("check", raising(error))
    assert before == passed("before", "fine")
    assert (after.check, after.verdict) == ("check", "fail")
    assert text in after.text
    assert cure in after.cure


def test_no_failure_stops_another_check():
    checks = {
        "one": Check(raising(ValueError("bad"))),
        "two": Check(lambda: [passed("two", "fine"), failed("more", "not fine", "mend it")]),
    }
    found = run_checks(60, checks)
    assert [finding.check for finding in found] == ["before", "one", "two", "more"]


@pytest.fixture
def hang():
    """A check that finds something and then ends no sooner than the test."""
    end = threading.Event()

    def look():
        yield passed("first", "in time")
        end.wait()
        yield passed("hangs", "too late to be heard")

    yield look
    end.set()


def test_a_check_that_hangs_is_named_with_its_place_and_those_behind_it_are_not_begun(hang):
    begun = []
    late = Check(hang, "s3://bucket", "fail", "mend the network")
    first, late, after = run_checks(
        1.0, {"hangs": late, "after": Check(lambda: begun.append(1) or ())}
    )
    assert first == passed("first", "in time")
    assert late == failed("hangs", "s3://bucket: no answer within 1 s", "mend the network")
    assert (after.check, after.verdict) == ("after", "warn")
    assert "`hangs` before it took too long" in after.text
    assert not begun


def test_what_hangs_holds_up_no_other_lane_and_slow_is_a_warning(hang):
    ended = threading.Event()

    def look():
        ended.set()
        yield passed("other", "fine")

    found = run_checks(1.0, {"hangs": Check(hang)}, {"other": Check(look)})
    assert ended.is_set()
    assert [(one.check, one.verdict) for one in found] == [
        ("first", "pass"),
        ("hangs", "warn"),
        ("other", "pass"),
    ]


def test_lanes_together_take_no_longer_than_one(hang):
    started = time.monotonic()
    run_checks(0.6, *({f"{number}": Check(hang)} for number in range(10)))
    assert time.monotonic() - started < 5.0
