"""Findings of many nodes, folded and shown."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.doctor.finding import Finding, failed, passed, warned
from sweeper.doctor.report import fields, fold, named, show, verdict_of

texts = st.sampled_from(["2.1.0", "2.2.0", "write 3.5 ms", "write 12 ms", "1,024 MiB free"])
findings = st.builds(
    Finding, st.sampled_from(["a", "b"]), st.sampled_from(["pass", "warn", "fail"]), texts
)
found_by_nodes = st.dictionaries(
    st.sampled_from(["n1", "n2", "n3"]), st.lists(findings, max_size=4), max_size=3
)


@given(found_by_nodes)
def test_folding_loses_no_check_of_any_node_and_invents_none(found):
    before = {
        (node, one.check, one.verdict, one.text.split()[0].isalpha())
        for node, findings in found.items()
        for one in findings
    }
    after = {
        (node, one.check, one.verdict, one.text.split()[0].isalpha())
        for nodes, findings in fold(found)
        for one in findings
        for node in nodes
    }
    assert after == before


def test_measurements_become_a_range_and_versions_stay_apart():
    found = {
        "n1": [passed("torch", "2.1.0"), passed("memory", "9.5 GiB free, 16 processors")],
        "n2": [passed("torch", "2.1.0"), passed("memory", "10.0 GiB free, 16 processors")],
        "n3": [passed("torch", "2.2.0"), passed("memory", "1,024.0 GiB free, 16 processors")],
    }
    groups = dict(fold(found))
    assert groups["n1", "n2"] == [passed("torch", "2.1.0")]
    assert groups[("n3",)] == [passed("torch", "2.2.0")]
    memory = passed("memory", "9.5–1,024.0 GiB free, 16 processors")
    assert groups["n1", "n2", "n3"] == [memory]


def test_nodes_that_fail_alike_are_one_line_beside_the_others():
    found = {f"n{i}": [passed("store", "fine")] for i in range(50)}
    found["n7"] = found["n9"] = [failed("store", "read-only", "mount it")]
    assert [len(nodes) for nodes, _ in fold(found)] == [48, 2]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["a"], "a"),
        (["a", "b"], "2 nodes: a, b"),
        (list("abcdef"), "6 nodes: a, b, c, 3 more"),
        (list("abcdefgh"), "all 8 nodes"),
    ],
)
def test_nodes_are_named_in_few_words(nodes, expected):
    assert named(nodes, 8) == expected


FOUND = {"a": [passed("one", "fine")], "b": [warned("longer", "not so fine", "mend it")]}


@pytest.fixture
def shown(monkeypatch):
    """What is printed on a stream that is or is no terminal."""

    def run(found, *, terminal=False, **environment):
        for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm"} | environment).items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        show(found, 2, stream)
        return stream.getvalue()

    return run


def test_lines_are_aligned_and_plain_where_nobody_asked_for_colour(shown):
    expected = (
        "a\n"
        "  pass  one     fine\n"
        "b\n"
        "  warn  longer  not so fine\n"
        "                hint: mend it\n"
        "1 warn, 1 pass\n"
    )
    assert shown(FOUND) == expected
    assert "\x1b[3" in shown(FOUND, terminal=True)
    assert "\x1b[3" not in shown(FOUND, terminal=True, NO_COLOR="1")


def test_a_long_line_is_not_broken_and_markup_is_text(shown):
    text = "[bold]s3://x[/bold] " + 40 * "long "
    assert text.rstrip() in shown({"a": [passed("one", text.rstrip())]})


def test_scripts_get_everything():
    assert json.loads(json.dumps(fields(FOUND))) == {
        "verdict": "warn",
        "findings": [
            {"node": "a", "check": "one", "verdict": "pass", "text": "fine", "cure": ""},
            {
                "node": "b",
                "check": "longer",
                "verdict": "warn",
                "text": "not so fine",
                "cure": "mend it",
            },
        ],
    }


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [([], "pass"), (["pass"], "pass"), (["fail", "warn"], "fail"), (["pass", "warn"], "warn")],
)
def test_the_worst_verdict_counts(verdicts, worst):
    assert verdict_of({"a": [Finding("x", verdict, "") for verdict in verdicts]}) == worst
