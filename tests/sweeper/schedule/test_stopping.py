"""What makes a driver drain. Signals are sent for real, to this process or to one of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sweeper.schedule import stopping as module
from sweeper.schedule.stopping import stopping

DRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture
def request_file(tmp_path):
    return tmp_path / "stop.request"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def heeded():
    """SIGHUP, though `nohup` may have these tests ignore it, which a sweep would respect."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", DRAINING)
@pytest.mark.usefixtures("heeded")
def test_a_signal_asks_to_stop_for_good(request_file, number):
    with stopping(request_file, None) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert stop.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_is_sent_twice_ends_nothing(request_file, number):
    with stopping(request_file, None) as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.is_set()


def test_signals_are_their_former_handlers_again_afterwards(request_file):
    heard = []
    before = {number: signal.getsignal(number) for number in DRAINING}
    signal.signal(signal.SIGUSR1, lambda *_: heard.append("mine"))
    try:
        with pytest.raises(ZeroDivisionError), stopping(request_file, None):
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == ["mine"]
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) is before[number]
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])


def test_a_request_is_seen_at_the_next_look_and_taken_away_at_the_end(request_file, clock):
    with stopping(request_file, None) as stop:
        assert not stop.is_set()
        request_file.touch()
        assert not stop.is_set()  # has looked this very second
        clock.now += module.LOOK_SECONDS
        assert stop.is_set()
        request_file.unlink()
        clock.now += module.LOOK_SECONDS
        assert stop.is_set()
        request_file.touch()
    assert not request_file.exists()


def test_a_request_is_told_from_a_signal_also_when_it_comes_later(request_file):
    with stopping(request_file, None) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.is_set()
        assert not stop.is_asked
        request_file.touch()
        assert stop.is_asked


def test_a_request_for_the_driver_before_stops_no_other(request_file):
    request_file.touch()
    with stopping(request_file, None) as stop:
        assert not request_file.exists()
        assert not stop.is_set()


def test_a_disk_that_does_not_answer_is_no_request(request_file, monkeypatch):
    def stale(*_, **__):
        raise OSError(116, "Stale file handle")

    with stopping(request_file, None) as stop:
        monkeypatch.setattr(os, "stat", stale)
        assert not stop.is_set()
        monkeypatch.undo()


def test_the_clock_asks_to_stop(request_file, clock):
    with stopping(request_file, 60.0) as stop:
        assert not stop.is_set()
        clock.now += 59.9
        assert not stop.is_set()
        clock.now += 0.1
        assert stop.is_set()
    with stopping(request_file, None) as stop:
        clock.now += 1e9
        assert not stop.is_set()


DRIVER = """
    import sys, time
    from pathlib import Path
    from sweeper.schedule.stopping import stopping

    with stopping(Path(sys.argv[1]), None) as stop:
        print("ready", flush=True)
        while not stop.is_set():
            time.sleep(0.01)
        print("drains", flush=True)
        time.sleep(60)
"""


def test_the_second_interrupt_kills(request_file):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(request_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for said in ("ready", "drains"):
            assert process.stdout.readline().strip() == said
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, complaint) == (130, "")
