"""What only shows between a node and the driver."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.doctor import nodes, place
from sweeper.doctor.examine import Question
from sweeper.doctor.nodes import SKEW_FAILED, SKEW_WARNED, ask_nodes, clock, names_of
from sweeper.doctor.place import marked
from sweeper.doctor.software import versions
from tests.sweeper.doctor.conftest import node

moments = st.floats(0, 1e6)
skews = st.floats(-1e4, 1e4)


@given(moments, st.floats(0, 60), st.floats(0, 1), skews)
def test_a_clock_is_accused_of_no_more_than_is_certain(before, took, share, skew):
    """A node's clock is read somewhere in the round trip, and nobody knows where."""
    found = clock(before + share * took + skew, before, before + took)
    if abs(skew) <= SKEW_WARNED:
        assert found.verdict == "pass"
    if abs(skew) <= SKEW_FAILED:
        assert found.verdict != "fail"
    if abs(skew) > SKEW_FAILED + took + 1e-6:
        assert found.verdict == "fail"
        assert ("ahead of" if skew > 0 else "behind") in found.text


@pytest.fixture
def question():
    return Question(versions(), briefly=True)


def briefly(findings):
    return [(finding.check, finding.verdict) for finding in findings]


def test_nodes_that_see_the_same_have_only_their_clocks_to_report(nodes_answer, question):
    ours = [node("a"), node("bb")]
    nodes_answer(dict.fromkeys(ours, contextlib.nullcontext))
    found = ask_nodes(question, 60)
    assert list(found) == ours
    assert [briefly(findings) for findings in found.values()] == 2 * [[("clock", "pass")]]


def test_a_clock_that_is_wrong_is_told_of_its_node(nodes_answer, question):
    @contextlib.contextmanager
    def behind():
        with pytest.MonkeyPatch.context() as patch:
            real = time.time()
            patch.setattr(time, "time", lambda: real - 100)
            yield

    good, bad = node("good"), node("bad")
    nodes_answer({good: contextlib.nullcontext, bad: behind})
    # Of `time.time` itself, which a real node calls in its own process, this one has the old.
    from sweeper.schedule import cluster

    ask = cluster.ask_every_node
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "ask_every_node", lambda what, s: ask(_named_again(what), s))
        found = ask_nodes(question, 60)
    assert briefly(found[good]) == [("clock", "pass")]
    assert briefly(found[bad]) == [("clock", "fail")]
    assert "100.0 s behind the driver's" in found[bad][0].text


def test_a_clock_that_is_not_told_in_time_is_said_to_be(nodes_answer, question, monkeypatch):
    ours = [node("a"), node("bb")]
    nodes_answer(dict.fromkeys(ours, contextlib.nullcontext))
    monkeypatch.setattr(nodes, "_clocks", lambda: iter([(ours[0], clock(0.0, 0.0, 0.0))]))
    found = ask_nodes(question, 60)
    assert [briefly(findings) for findings in found.values()] == [
        [("clock", "pass")],
        [("clock", "warn")],
    ]


def _named_again(what):
    """A node gets a function by its name."""
    return (lambda: time.time()) if what is time.time else what


def test_a_node_that_does_not_answer_is_a_failure_of_its_own(nodes_answer, question):
    @contextlib.contextmanager
    def gone():
        raise RuntimeError("ModuleNotFoundError: No module named 'sweeper'")
        yield

    good, bad = node("good"), node("bad")
    nodes_answer({good: contextlib.nullcontext, bad: gone})
    found = ask_nodes(question, 60)
    assert briefly(found[good]) == [("clock", "pass")]
    (only,) = found[bad]
    assert (only.check, only.verdict) == ("node", "fail")
    assert "No module named 'sweeper'" in only.text


def test_a_node_whose_writes_are_not_seen_is_told(nodes_answer, question, tmp_path, monkeypatch):
    """It reads the driver's mark, as from a cache, and what it writes goes elsewhere."""
    monkeypatch.setattr(place, "SEE_SECONDS", 0.0)

    @contextlib.contextmanager
    def unseen():
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        yield
        for path in {path for path in tmp_path.rglob("*") if path.is_file()} - before:
            path.unlink()

    good, bad = node("good"), node("bad")
    nodes_answer({good: contextlib.nullcontext, bad: unseen})
    with marked(str(tmp_path)) as mark:
        found = ask_nodes(Question(versions(), mark=mark, briefly=True), 60)
    assert ("store", "fail") not in briefly(found[good])
    assert ("store", "fail") in briefly(found[bad])
    assert any("not seen where sweeper runs" in finding.text for finding in found[bad])


def test_a_disk_of_a_nodes_own_is_told_and_left_alone(
    nodes_answer, question, tmp_path, monkeypatch
):
    monkeypatch.setattr(place, "SEE_SECONDS", 0.0)

    @contextlib.contextmanager
    def other_disk():
        tmp_path.rename(tmp_path.with_name("shared"))
        tmp_path.mkdir()
        yield
        assert not list(tmp_path.iterdir())
        shutil.rmtree(tmp_path)
        tmp_path.with_name("shared").rename(tmp_path)

    good, bad = node("good"), node("bad")
    nodes_answer({good: contextlib.nullcontext, bad: other_disk})
    with marked(str(tmp_path)) as mark:
        found = ask_nodes(Question(versions(), mark=mark, briefly=True), 60)
    assert ("store", "pass") in briefly(found[good])
    failures = [finding for finding in found[bad] if finding.verdict == "fail"]
    assert ["another place here" in finding.text for finding in failures] == [True]
    assert not list(tmp_path.iterdir())


def test_two_nodes_of_one_host_have_two_names():
    ours = [node("a"), dataclasses.replace(node("a"), node_id="other"), node("bb")]
    names = list(names_of(ours).values())
    assert len(set(names)) == 3
    assert names[2] == "bb (10.0.0.2)"
