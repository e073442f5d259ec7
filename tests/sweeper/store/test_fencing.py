"""Two live processes at one trial: each has its own number, and the newer one's bytes are read."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper.errors import StoreError
from sweeper.store import open_store
from sweeper.store.schema import staging_key
from sweeper.store.seal import seal
from sweeper.store.staging import attempts
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter
from tests.conftest import TinyStore

N_TRIALS, TRIAL, N_SNAPSHOTS = 12, 1, 6


class Attempt:
    """What a process does of a trial, a step at a time."""

    def __init__(self, place: str) -> None:
        self.tiny = TinyStore(place, n_snapshots=N_SNAPSHOTS)
        self.writer: AttemptWriter | None = None

    def claim_all(self, start: float) -> list[int]:
        """Claim an attempt of each trial at the instant at which the other process does."""
        numbers = []
        for seed in range(N_TRIALS):
            header = self.tiny.header(seed)
            while time.time() < start + 0.04 * seed:
                pass
            numbers.append(AttemptWriter(self.tiny.objects, header, 0).attempt)
        return numbers

    def claim(self, first: int) -> int:
        self.writer = AttemptWriter(self.tiny.objects, self.tiny.header(TRIAL), first)
        return self.writer.attempt

    def append(self, snapshots: list[int]) -> None:
        """Append predictions that are this attempt's alone."""
        assert self.writer is not None
        for snapshot in snapshots:
            values = {"test": self.tiny.predictions(100 * self.writer.attempt, snapshot)}
            self.writer.append(
                snapshot, float(snapshot), {"test_loss": 1.0, "test_accuracy": 0.5}, values
            )

    def seal(self) -> str:
        assert self.writer is not None
        trial = self.writer.header.trial_id
        return seal(self.tiny.objects, trial, "complete", self.writer.attempt)


def _work(pipe: Connection, place: str) -> None:
    """Take steps as they are asked for, until there is nobody to ask."""
    attempt = Attempt(place)
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        step, arguments = asked
        try:
            pipe.send(getattr(attempt, step)(*arguments))
        except Exception as error:
            pipe.send(error)


class Live:
    """Another process; another thread where the store is one process's memory."""

    def __init__(self, place: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        kind: Any = multiprocessing.get_context("spawn").Process
        if place.startswith("memory:"):
            kind = threading.Thread
        self._runner = kind(target=_work, args=(theirs, place))
        self._runner.start()

    def begin(self, step: str, *arguments: object) -> None:
        self._pipe.send((step, arguments))

    def end(self) -> Any:
        assert self._pipe.poll(50), "it answers"
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __call__(self, step: str, *arguments: object) -> Any:
        self.begin(step, *arguments)
        return self.end()

    def close(self) -> None:
        self._pipe.send(None)
        self._runner.join(50)
        self._pipe.close()


@pytest.fixture
def two(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Live, Live]]:
    """Two processes that have opened the same store."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # they import this file
    TinyStore(place)
    with ExitStack() as stack:
        found = Live(place), Live(place)
        for process in found:
            stack.callback(process.close)
        for process in found:
            process.end()
        yield found


def read(place: str, trial: str) -> np.ndarray:
    return open_store(place).log_probs(trial, "test", dtype="float16")


def owned(tiny: TinyStore, *owners: int) -> np.ndarray:
    """What should be read when these attempts own the snapshots."""
    return np.stack([tiny.predictions(100 * owner, i) for i, owner in enumerate(owners)])


def test_processes_that_claim_the_same_trials_at_once_have_different_numbers(
    place: str, two: tuple[Live, Live]
):
    start = time.time() + 0.05
    for process in two:
        process.begin("claim_all", start)
    numbers = [process.end() for process in two]
    assert [sorted(pair) for pair in zip(*numbers, strict=True)] == [[1, 2]] * N_TRIALS
    tiny = TinyStore(place, n_snapshots=N_SNAPSHOTS)
    for seed in range(N_TRIALS):
        trial = tiny.header(seed).trial_id
        assert attempts(tiny.objects, trial) == [1, 2]
        claims = {number: tiny.objects.attributes(staging_key(trial, number)) for number in (1, 2)}
        assert [found["attempt"] for found in claims.values() if found] == [1, 2]
        assert len({found["claim"] for found in claims.values() if found}) == 2


def test_a_late_attempt_changes_nothing_that_is_read(place: str, two: tuple[Live, Live]):
    late, new = two
    tiny = TinyStore(place, n_snapshots=N_SNAPSHOTS)
    trial = tiny.header(TRIAL).trial_id
    assert late("claim", 0) == 1
    late("append", [0, 1, 2])
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1, 1, 1))

    # It stalls; another one takes over from the snapshot 1 on, and then both go on at once.
    assert new("claim", 1) == 2
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1))
    late.begin("append", [3, 4])
    new.begin("append", [1, 2])
    late.end()
    new.end()
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1, 2, 2))
    with pytest.raises(StoreError, match="attempt 2 has taken over from attempt 1"):
        late("seal")
    new("append", [3, 4, 5])
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1, 2, 2, 2, 2, 2))
    assert verify(open_store(place)).damages == ()

    sealed = new("seal")
    late("append", [5])  # it wakes up once more, when what it staged is gone
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1, 2, 2, 2, 2, 2))
    assert verify(open_store(place)).damages == ()
    assert late("seal") == sealed, "it is told what was published"
    report = verify(open_store(place))
    assert (report.n_trials, report.n_snapshots, report.damages, report.orphans) == (1, 6, (), ())


def test_of_two_that_seal_at_once_the_newer_one_does(place: str, two: tuple[Live, Live]):
    late, new = two
    tiny = TinyStore(place, n_snapshots=N_SNAPSHOTS)
    trial = tiny.header(TRIAL).trial_id
    late("claim", 0)
    late("append", list(range(N_SNAPSHOTS)))
    new("claim", 2)
    new("append", list(range(2, N_SNAPSHOTS)))
    late.begin("seal")
    new.begin("seal")
    sealed = new.end()
    try:
        told = late.end()
    except StoreError as error:
        told = error.found
    # The latter when the other one had published before it came to it.
    assert told in ("attempt 2 has taken over from attempt 1", sealed)
    assert open_store(place).trial_attributes(trial)["arrays"] == "2"
    np.testing.assert_array_equal(read(place, trial), owned(tiny, 1, 1, 2, 2, 2, 2))
    report = verify(open_store(place))
    assert (report.n_trials, report.damages, report.orphans) == (1, (), ())
