"""What a launch shows while it runs."""

import io
import re
import time

import pytest
from rich.console import Console

from sweeper import display as display_module
from sweeper.attempt import Outcome, Progress, Waiting
from sweeper.display import _Lines, _View, display
from sweeper.launch_cli import _conclude
from sweeper.schedule.executor import Avoided, Halt, Packed, Retry, Stranded
from sweeper.schedule.retry import Failure
from sweeper.schedule.scribe import Counts, Running
from sweeper.sweep_dir import SweepDir

TRIALS = [f"t{i:012x}" for i in range(4)]


@pytest.fixture
def counts():
    return Counts(dict.fromkeys(TRIALS, 1.0))


def running(trial, step, device="cpu"):
    said = Progress(trial, 1, step, 100, "node1", device)
    return Running(said, 0, 0.0, 0.0)


def failure(trial, kind="bug", message="shape 64 does not fit", signature="RuntimeError: #"):
    return Failure(trial, kind, "RuntimeError", message, signature)


class Shown:
    """A display without a terminal, and the lines that it printed."""

    def __init__(self):
        self._stream = io.StringIO()
        self.display = _Lines(self._stream)

    @property
    def lines(self):
        return self._stream.getvalue().splitlines()


@pytest.fixture
def shown():
    return Shown()


def test_failures_alike_are_said_once_for_each_fate(shown, counts):
    for trial in TRIALS:
        shown.display(Retry(failure(trial), 0.0), counts)
    for trial in TRIALS:
        shown.display(failure(trial), counts)
    shown.display(failure(TRIALS[0], message="another", signature="another"), counts)
    assert shown.lines == [
        f"trial {TRIALS[0]} is run again (bug): RuntimeError: shape 64 does not fit",
        f"trial {TRIALS[0]} failed (bug): RuntimeError: shape 64 does not fit",
        f"trial {TRIALS[0]} failed (bug): RuntimeError: another",
    ]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            Retry(Failure.lost(TRIALS[0], "its node is gone"), 1.0),
            f"trial {TRIALS[0]} is run again (lost): its node is gone",
        ),
        (
            Outcome(TRIALS[0], 1, "diverged", 1.0),
            f"trial {TRIALS[0]} diverged; recorded up to there",
        ),
        (Packed("vit b64", 4, "measured"), "vit b64: 4 a GPU (measured)"),
        (
            Packed("vit b64", 0, "out of memory", kind="A"),
            "vit b64: none a GPU of kind A (out of memory)",
        ),
        (
            Avoided("id", "node3", "3 trials failed there", ("t1",), "a bug"),
            "node3 is avoided: 3 trials failed there (a bug)",
        ),
        (
            Stranded(("B", "C"), ("vit b64",), 2),
            "2 trials wait for a GPU of kind `B`, `C`, which no node has: `vit b64`",
        ),
        (Halt(failure(TRIALS[0]), 10), "10 trials in a row failed alike; stopping"),
        (
            Waiting(TRIALS[0], "/disk: No space left on device"),
            "/disk: No space left on device; paused, goes on as soon as there is room",
        ),
    ],
)
def test_what_matters_is_said_in_a_line(event, said, shown, counts):
    shown.display(event, counts)
    assert shown.lines == [said]


def test_what_is_as_it_should_be_is_not_said(shown, counts):
    shown.display(Progress(TRIALS[0], 1, 5, 10, "node1", "cpu"), counts)
    shown.display(Outcome(TRIALS[0], 1, "complete", 1.0), counts)
    assert shown.lines == []


def test_many_slots_that_wait_for_room_are_said_once_a_minute(shown, counts, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for second in range(150):
        now[0] = 1000.0 + second
        shown.display(Waiting(TRIALS[second % 4], "/disk: full"), counts)
    assert len([line for line in shown.lines if "paused" in line]) == 3


def test_a_line_each_half_minute_tells_work_and_time(monkeypatch, counts):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Shown()
    counts.n_complete, counts.work_done = 1, 1.0
    counts.running[TRIALS[1]] = running(TRIALS[1], step=50)
    for second in range(0, 65, 5):
        now[0] = float(second)
        shown.display(Progress(TRIALS[1], 1, 50, 100, "node1", "cpu"), counts)
    # (1 + 0.5) of 4 took 30 s, then 60 s: as much for each of the other 2.5.
    assert shown.lines == [
        "1/4 trials, 37 % of the work, 1 running, 50 s left",
        "1/4 trials, 37 % of the work, 1 running, 1 min 40 s left",
    ]


def test_on_a_terminal_one_view_is_redrawn(counts):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=20, legacy_windows=False)
    view = _View(console)
    counts.running = {t: running(t, 25, f"cuda:{i % 2}") for i, t in enumerate(TRIALS)}
    for trial in TRIALS:
        view(failure(trial, signature=trial), counts)
    view.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split("0/4 trials")[-1]
    assert "25 % of the work, 4 running" in last
    assert f"node1 cuda:0: {TRIALS[0]} 25%, {TRIALS[2]} 25%" in last
    assert f"node1 cuda:1: {TRIALS[1]} 25%, {TRIALS[3]} 25%" in last
    assert last.count("failed (bug)") == 4


def test_the_view_stays_small(counts):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=50)
    view = _View(console)
    counts.running = {f"t{i}": running(f"t{i}", 1, f"cuda:{i}") for i in range(64)}
    for i in range(100):
        view(failure(f"t{i}", signature=str(i)), counts)
    rows = console.render_lines(view._live.renderable)
    view.close()
    most = 2 + display_module.DEVICES_SHOWN + 1 + display_module.RECENT
    assert len(rows) <= most


def test_the_display_keeps_the_standard_error_that_it_began_with(capfd, counts):
    with display() as shown:
        shown.say("a line")
    assert capfd.readouterr().err == "a line\n"


def test_at_the_end_the_nodes_that_were_avoided_are_named_in_a_sentence(tmp_path, counts, capsys):
    counts.n_complete = counts.n_todo
    counts.avoided += [Avoided(str(i), host, "bad") for i, host in enumerate(["n3", "n5", "n3"])]
    _conclude(SweepDir(tmp_path), counts, "1 s")
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == [
        f"no more trials were given to n3, n5; `sweeper status {tmp_path}` tells why"
    ]
