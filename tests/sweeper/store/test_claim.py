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
from sweeper.store.claim import DRIVER, Claim, claimed, driver_of
from sweeper.store.objects import Objects, open_objects
from sweeper.sweep_dir import STALE_SECONDS

Leave = Callable[..., None]


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


def test_another_drivers_is_respected(objects: Objects, leave: Leave):
    leave(age=20.0)
    with pytest.raises(SweepDirError) as caught:
        Claim(objects).take()
    assert caught.value.where == objects.location
    assert caught.value.found == "held by another driver, process 4321 on elsewhere"
    assert caught.value.hint.endswith("another can take over in 40 s")
    assert holder(objects)["token"] == "theirs"
    found = driver_of(objects)
    assert found is not None
    assert (found["host"], found["pid"]) == ("elsewhere", 4321)


@pytest.mark.parametrize("age", [STALE_SECONDS + 1, -STALE_SECONDS - 1])
def test_one_that_is_not_renewed_is_taken_over(objects: Objects, leave: Leave, age: float):
    leave(age=age)
    assert driver_of(objects) is None
    with claimed(objects):
        assert holder(objects)["pid"] == os.getpid()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"7", b'{"t": "x"}', b"\xff"])
def test_a_damaged_one_is_nobodys(objects: Objects, data: bytes):
    objects.write(DRIVER, data)
    assert driver_of(objects) is None
    with claimed(objects):
        assert holder(objects)["pid"] == os.getpid()


def test_a_dead_process_of_this_host_holds_nothing(objects: Objects, leave: Leave):
    here = socket.gethostname()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    leave(here, int(ended.stdout))
    assert driver_of(objects) is None
    leave(here, os.getppid())
    assert driver_of(objects) is not None
    leave(here, os.getpid())  # as after a restart of a container
    assert driver_of(objects) is None
    leave(here, 1 << 80)
    assert driver_of(objects) is None


def test_of_several_that_begin_at_once_one_has_it(objects: Objects):
    claims, outcomes = [Claim(objects) for _ in range(8)], []
    for claim in claims:  # threads stand for processes, which one process would take for dead
        claim._own["host"] = "elsewhere"

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


def test_it_is_renewed(objects: Objects, monkeypatch: pytest.MonkeyPatch):
    claim = Claim(objects)
    claim.take()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 50)
    claim.renew()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert claim.rival is None
    assert driver_of(objects) is None, "it is this process's own"
    assert holder(objects)["t"] == pytest.approx(now + 50, abs=0.01)


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
