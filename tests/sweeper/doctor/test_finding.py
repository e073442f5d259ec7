"""Checks that end well, badly, and not at all."""

from __future__ import annotations

import threading

import pytest

from sweeper.doctor.finding import attempt, failed, passed, run_checks
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
        "one": raising(ValueError("bad")),
        "two": lambda: [passed("two", "fine"), failed("more", "not fine", "mend it")],
    }
    found = run_checks(checks, 60)
    assert [finding.check for finding in found] == ["before", "one", "two", "more"]


def test_a_check_that_hangs_fails_and_those_after_it_are_not_begun():
    end, begun = threading.Event(), []

    def hang():
        end.wait()
        yield passed("hangs", "too late to be heard")

    found = run_checks({"hangs": hang, "after": lambda: begun.append(1) or ()}, 0.05)
    assert [(one.check, one.verdict) for one in found] == [("hangs", "fail"), ("after", "warn")]
    assert "no answer within" in found[0].text
    end.set()
    assert not begun
