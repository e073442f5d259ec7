"""Waiting for a driver, with a clock that is no clock: every pause is a step of a story."""

import errno
import io
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from sweeper.config import TrialConfig
from sweeper.errors import SweepDirError
from sweeper.grid import Trial
from sweeper.journal import Journal
from sweeper.plan import Size, make_plan, write_plan
from sweeper.status.summary import Watch
from sweeper.status.watch import LINE_SECONDS, SCREEN_SECONDS, stop, watch
from sweeper.sweep_dir import SweepDir

HERE = {"pid": os.getpid(), "host": socket.gethostname()}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def folder(tmp_path):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    configs = [TrialConfig.from_flat({**flat, "epochs": 1, "seed": seed}) for seed in range(2)]
    trials = [Trial(config.trial_id, config) for config in configs]
    found = SweepDir(tmp_path)
    found.write_manifest({"name": "two"})
    write_plan(found.plan, make_plan(trials, (), lambda config: Size(1, 1, 4)))
    return found


def story(*steps):
    """A pause that takes the next step each time, and how long each was to be."""
    left, asked = list(steps), []

    def pause(seconds):
        asked.append(seconds)
        left.pop(0)()

    return pause, asked


def finish(folder, trial):
    (folder.path / "predictions.zarr/trials" / trial).mkdir(parents=True)
    with Journal(folder.journal) as journal:
        journal.append("finished", trial=trial, attempt=1, state="complete", seconds=1.0)


def watched(folder, stream, *steps):
    """Watch a driver of which each step but the last is one thing it does; the last, its end."""
    held = folder.locked()
    held.__enter__()
    looks = Watch(folder)
    pause, asked = story(*steps, lambda: held.__exit__(None, None, None))
    watch("DIR", looks.status, stream, pause)
    return asked, [trial for trial in looks.status().counts.items() if trial[1]]


@pytest.fixture
def ids(folder):
    return list(Watch(folder)._sight.ids)


def test_without_a_terminal_a_line_now_and_then_and_all_of_it_at_the_end(folder, ids):
    stream = io.StringIO()
    asked, counts = watched(folder, stream, lambda: finish(folder, ids[0]))
    assert asked == [LINE_SECONDS] * 2
    assert counts == [("complete", 1), ("waiting", 1)]
    first, second, *last = stream.getvalue().splitlines()
    assert first.startswith("0/2 trials complete")
    assert second.startswith("1/2 trials complete")
    assert last[0] == "DIR: 2 trials, not running"


def test_on_a_terminal_it_is_drawn_again_in_the_same_place(folder, ids, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    asked, _ = watched(folder, stream, lambda: finish(folder, ids[0]))
    assert asked == [SCREEN_SECONDS] * 2
    text = stream.getvalue()
    assert text.count("DIR: 2 trials, driven by process") == 2
    assert text.count("DIR: 2 trials, not running") >= 1
    assert "\x1b[1A" in text, "the cursor went up"
    assert text.index("not running") > text.rindex("driven by")


def test_what_nobody_drives_is_shown_once(folder):
    stream = io.StringIO()
    watch("DIR", Watch(folder).status, stream, story()[0])
    assert stream.getvalue().startswith("DIR: 2 trials, not running\n")


# --- stopping ---------------------------------------------------------------------------------


def test_without_a_driver_there_is_nothing_to_stop_and_nothing_is_left(folder):
    folder.stop_request.touch()  # of somebody who left the wait before the driver was killed
    said = []
    assert stop(folder, said.append, story()[0]) is False
    assert said == []
    assert not folder.stop_request.exists()


def test_a_driver_is_asked_and_waited_for(folder):
    running = {f"t{i}": {"host": f"n{i}"} for i in range(5)}
    live = {"t": time.time(), **HERE, "n_slots": 5, "running": running}
    folder.live.write_text(json.dumps(live))
    held = folder.locked()
    held.__enter__()
    request = []

    def checkpointed():
        request.append(json.loads(folder.stop_request.read_text()))
        folder.live.write_text(json.dumps({**live, "running": {"t4": {"host": "n4"}}}))

    steps = (
        checkpointed,
        lambda: None,  # nothing new is not said again
        lambda: folder.live.write_text(json.dumps({**live, "running": {}})),
        lambda: held.__exit__(None, None, None),
    )
    said = []
    assert stop(folder, said.append, story(*steps)[0]) is True
    assert said == [
        f"asked process {HERE['pid']} on {HERE['host']} to stop: its trials checkpoint, then it "
        "ends",
        "waiting for t0 on n0, t1 on n1, t2 on n2 and 2 more",
        "waiting for t4 on n4",
        "waiting for the driver to end",
    ]
    assert {key: request[0][key] for key in HERE} == HERE
    assert not folder.stop_request.exists()


def test_who_leaves_the_wait_leaves_the_request(folder):
    def leave():
        raise KeyboardInterrupt

    with folder.locked():
        with pytest.raises(KeyboardInterrupt):
            stop(folder, lambda text: None, story(leave)[0])
        assert folder.stop_request.exists()


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_the_request_is_an_empty_file(folder, monkeypatch):
    monkeypatch.setattr("sweeper.status.watch.write_atomically", full)
    held, sizes = folder.locked(), []
    held.__enter__()

    def look():
        sizes.append(folder.stop_request.stat().st_size)
        held.__exit__(None, None, None)

    assert stop(folder, lambda text: None, story(look)[0]) is True
    assert sizes == [0]
    assert not folder.stop_request.exists()


@pytest.fixture
def no_room(monkeypatch):
    """A disk that is too full for the name of another file; yields the signals that are sent."""
    monkeypatch.setattr("sweeper.status.watch.write_atomically", full)
    monkeypatch.setattr(Path, "touch", full)
    sent = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    return sent


def test_on_a_disk_without_room_for_any_file_a_driver_here_is_sent_a_signal(folder, no_room):
    held = folder.locked()
    held.__enter__()
    assert stop(folder, lambda text: None, story(lambda: held.__exit__(None, None, None))[0])
    assert no_room == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(
    "driver", [{"host": "elsewhere", "pid": 7}, {**HERE, "pid": -1}, {**HERE, "pid": "7"}, {}]
)
def test_a_driver_that_cannot_be_sent_one_is_an_error_that_says_how(
    folder, no_room, monkeypatch, driver
):
    monkeypatch.setattr(SweepDir, "driver", lambda self: driver)
    with pytest.raises(SweepDirError, match="no room on the disk") as caught:
        stop(folder, lambda text: None, story()[0])
    assert "SIGTERM" in caught.value.hint
    assert no_room == []


def test_a_request_that_fails_otherwise_is_not_made_up_for(folder, monkeypatch):
    def refused(*arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("sweeper.status.watch.write_atomically", refused)
    with folder.locked(), pytest.raises(PermissionError):
        stop(folder, lambda text: None, story()[0])
    assert not folder.stop_request.exists()
