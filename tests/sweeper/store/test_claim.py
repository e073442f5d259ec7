"""One driver of a sweep at a time, as far as a store can tell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import SweepDirError, UnavailableStoreError
from sweeper.store import claim as module
from sweeper.store.claim import DRIVER, Claim, claimed, clear, driver_of, heard
from sweeper.store.objects import Objects, open_objects

Leave = Callable[..., None]
Pauses = Callable[[Callable[[float], None]], None]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Nobody waits; what is given is done instead."""

    def do(instead: Callable[[float], None]) -> None:
        monkeypatch.setattr(module, "_pause", instead)

    do(lambda seconds: None)
    return do


@pytest.fixture(params=["folder", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_objects(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}/x")


@pytest.fixture
def leave(objects: Objects) -> Leave:
    """Write a claim as another driver leaves it."""

    def write(host: str = "elsewhere", pid: Any = 4321, age: float = 1.0, **others: Any) -> None:
        found = {"host": host, "pid": pid, "t": time.time() - age, "token": "theirs", **others}
        objects.write(DRIVER, json.dumps(found).encode())

    return write


def holder(objects: Objects) -> dict[str, Any]:
    return dict(json.loads(bytes(objects.read(DRIVER))))


def test_a_claim_names_its_driver_and_goes_with_it(objects: Objects):
    assert driver_of(objects) is None
    with claimed(objects):
        found = holder(objects)
        assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    assert objects.names("") == []


def test_a_claim_goes_when_the_driver_raises(objects: Objects):
    with pytest.raises(KeyboardInterrupt), claimed(objects):
        raise KeyboardInterrupt
    assert not objects.exists(DRIVER)


@pytest.mark.parametrize("age", [0.0, 1e6, -1e6])
def test_who_renews_its_claim_lives_whatever_the_clocks_say(
    objects: Objects, leave: Leave, pauses: Pauses, capsys: pytest.CaptureFixture[str], age: float
):
    leave(age=age, directory="/runs/x")
    pauses(lambda seconds: leave(age=age, directory="/runs/x", n=2))
    with pytest.raises(SweepDirError) as caught:
        Claim(objects).take()
    assert caught.value.where == objects.location
    assert caught.value.found == "held by another driver, process 4321 on elsewhere"
    assert caught.value.hint == "wait for it, or `sweeper stop /runs/x` on elsewhere"
    assert holder(objects)["token"] == "theirs"
    assert capsys.readouterr().err == (
        f"{objects.location}: waiting up to 60 s to see whether its driver, "
        "process 4321 on elsewhere, is alive\n"
    )


@pytest.mark.parametrize("age", [0.0, 1e6, -1e6])
def test_one_that_is_not_renewed_is_taken_over_after_its_time(
    objects: Objects, leave: Leave, pauses: Pauses, age: float
):
    paused: list[float] = []
    pauses(paused.append)
    leave(age=age)
    found = driver_of(objects)
    assert found is not None, "one look cannot tell"
    assert (found["host"], found["pid"]) == ("elsewhere", 4321)
    with claimed(objects):
        assert holder(objects)["pid"] == os.getpid()
    *looks, settling = paused
    assert sum(looks) == pytest.approx(module.STALE_SECONDS)
    assert settling == module.SETTLE_SECONDS


def test_one_that_goes_meanwhile_is_not_waited_for(objects: Objects, leave: Leave, pauses: Pauses):
    leave()
    pauses(lambda seconds: objects.delete(DRIVER))
    assert clear(objects)
    assert not clear(objects), "there is none"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"7", b'{"t": "x"}', b"\xff"])
def test_a_damaged_one_is_nobodys(objects: Objects, data: bytes):
    objects.write(DRIVER, data)
    assert driver_of(objects) is None
    with claimed(objects):
        assert holder(objects)["pid"] == os.getpid()


def test_a_process_that_is_gone_holds_nothing(
    objects: Objects, leave: Leave, monkeypatch: pytest.MonkeyPatch
):
    here = {"boot": "b", "namespace": "pid:[1]"}
    monkeypatch.setattr(module, "_whereabouts", lambda: here)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    dead, us = int(ended.stdout), os.getpid()
    began = module._started(us)
    leave(pid=dead, **here)
    assert driver_of(objects) is None
    leave(pid=1 << 80, **here)
    assert driver_of(objects) is None
    leave(pid=us, started=f"{began}0", **here)  # as after a restart of a container
    assert (driver_of(objects) is None) == (began is not None)
    for other in ({"started": began}, {}):
        leave(pid=us, **here, **other)
        assert driver_of(objects) is not None
    # Where numbers mean other processes, or may, they say nothing; hosts may be named alike.
    for there in (here | {"boot": "c"}, here | {"namespace": "pid:[2]"}, {}):
        leave(socket.gethostname(), dead, **there)
        assert driver_of(objects) is not None
    for name in here:
        monkeypatch.setattr(module, "_whereabouts", lambda name=name: here | {name: None})
        leave(pid=dead, **here | {name: None})
        assert driver_of(objects) is not None


def test_a_claim_says_of_what_its_process_number_is(objects: Objects):
    with claimed(objects):
        found = holder(objects)
        assert module._whereabouts().items() <= found.items()
        assert found["started"] == module._started(os.getpid())
        assert driver_of(objects) is not None, "this process is alive"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"t": 90}, "heard of 10 s ago"),
        ({"t": -7120.0}, "heard of 2 h 0 min ago"),
        ({"t": 500.0}, "heard of 0 s ago"),  # its clock is before ours
        ({"t": "x"}, "heard of nobody knows when"),
        ({}, "heard of nobody knows when"),
    ],
)
def test_when_a_driver_was_heard_of(
    said: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "time", lambda: 100.0)
    assert heard(said) == told


def test_of_several_that_begin_at_once_one_has_it(objects: Objects, pauses: Pauses):
    claims: list[Claim] = [Claim(objects) for _ in range(8)]
    outcomes: list[Claim | None] = []
    pauses(lambda seconds: [claim.renew() for claim in claims if claim in outcomes] and None)

    def take(claim: Claim) -> None:
        try:
            claim.take()
            outcomes.append(claim)
        except SweepDirError:
            outcomes.append(None)

    threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (claim for claim in outcomes if claim)
    assert len(outcomes) == len(claims)
    assert holder(objects)["token"] == winner._own["token"]


def test_of_two_that_find_one_dead_one_has_it(
    objects: Objects, leave: Leave, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
):
    """The slower one deletes the claim that the faster one has made in between."""
    leave()
    fast, slow = Claim(objects), Claim(objects)
    is_made, is_over = threading.Event(), threading.Event()
    both = threading.Barrier(2)
    slow_one = threading.Thread(target=lambda: (slow.take(), is_over.set()))
    delete, n_deleted = type(objects).delete, []

    def late(found: Objects, key: str) -> None:
        n_deleted.append(1)
        if len(n_deleted) <= 2:
            both.wait(60)  # both have seen the dead one's bytes
        if threading.current_thread() is slow_one:
            assert is_made.wait(60)
        delete(found, key)

    def pause(seconds: float) -> None:
        if seconds == module.SETTLE_SECONDS and threading.current_thread() is not slow_one:
            is_made.set()
            assert is_over.wait(60)
        elif is_over.is_set():
            slow.renew()

    monkeypatch.setattr(type(objects), "delete", late)
    pauses(pause)
    slow_one.start()
    with pytest.raises(SweepDirError, match="held by another driver"):
        fast.take()
    slow_one.join()
    assert holder(objects)["token"] == slow._own["token"]


def test_one_that_another_has_taken_over_is_not_deleted(
    objects: Objects, leave: Leave, monkeypatch: pytest.MonkeyPatch
):
    leave()
    listen = module._listen

    def too_long(*arguments: Any) -> None:
        listen(*arguments)
        if holder(objects)["token"] == "theirs":
            leave(token="another's")

    monkeypatch.setattr(module, "_listen", too_long)
    deleted: list[str] = []
    delete = type(objects).delete

    def note(found: Objects, key: str) -> None:
        deleted.append(holder(objects)["token"])
        delete(found, key)

    monkeypatch.setattr(type(objects), "delete", note)
    clear(objects)
    assert deleted == ["another's"], "once it had its own time"


def test_it_is_renewed_in_other_words_each_time(objects: Objects, monkeypatch: pytest.MonkeyPatch):
    claim = Claim(objects)
    monkeypatch.setattr(time, "time", lambda: 7.0)  # a clock that stands tells nothing
    claim.take()
    said = [bytes(objects.read(DRIVER))]
    for _ in range(2):
        claim.renew()
        said.append(bytes(objects.read(DRIVER)))
    assert claim.rival is None
    assert len(set(said)) == 3


def test_one_that_is_gone_is_made_anew(objects: Objects):
    claim = Claim(objects)
    claim.take()
    objects.delete(DRIVER)
    claim.renew()
    assert claim.rival is None
    assert objects.exists(DRIVER)


def test_one_that_was_damaged_is_written_again(objects: Objects):
    claim = Claim(objects)
    claim.take()
    objects.write(DRIVER, b"{")
    claim.renew()
    assert claim.rival is None
    assert holder(objects)["pid"] == os.getpid()


def test_who_was_cut_off_learns_of_the_rival_and_leaves_its_claim(objects: Objects, leave: Leave):
    claim = Claim(objects)
    claim.take()
    leave()
    claim.renew()
    assert claim.rival is not None
    assert claim.rival["host"] == "elsewhere"
    claim.release()
    assert holder(objects)["token"] == "theirs"


def test_a_store_out_of_reach_is_asked_again(
    objects: Objects, leave: Leave, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.001)
    asked, renew = threading.Semaphore(0), Claim.renew

    def fail_twice(claim: Claim) -> None:
        asked.release()
        if fails:
            raise fails.pop()
        renew(claim)

    fails = [UnavailableStoreError("there", "no answer"), OSError("stale handle")]
    monkeypatch.setattr(Claim, "renew", fail_twice)
    with claimed(objects) as claim:
        for _ in range(4):
            assert asked.acquire(timeout=60)
        assert claim.rival is None
        while claim.rival is None:
            leave()  # again, lest a renewal that had begun is what stays
            time.sleep(0.001)
