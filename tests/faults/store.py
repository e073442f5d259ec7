"""What befalls a store, many times over, and what must be true of it each time.

    python -m tests.faults.store [--kills 200] [--seed 0] [--url s3://bucket/prefix]

kills writers at random instants, has two of them record the same trials at once, lets calls of the
object store fail, and flips bits of, cuts off and deletes objects. After each, every snapshot that
a writer was told is durable is there and correct, all damage is reported and nothing else is, and
work goes on to the same digests. Prints how often that was so; the first time that it is not ends
it. With --url the stores are there; the environment has the credentials.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sweeper.errors import UnavailableStoreError
from sweeper.store import Store
from sweeper.store.objects import Entry, Objects, open_objects
from sweeper.store.opening import check_format
from sweeper.store.verify import verify
from tests.faults.damage import ALL, do_damage
from tests.faults.writer import (
    TRIALS,
    Counts,
    Digests,
    Told,
    Trials,
    check,
    complete,
    finish,
    never,
)

ROOT = Path(__file__).parents[2]
FAILS = 0.02  # of the calls of an object store that fails

NewPlace = Callable[[], str]


def in_memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


# --- writers that are killed, and writers of the same trials ----------------------------------


def start(place: str, seed: int, *options: str) -> subprocess.Popen[str]:
    """A writer in a process of its own, which waits to be told to begin."""
    command = [sys.executable, "-m", "tests.faults.writer", place, str(seed), *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.close()


def hear(process: subprocess.Popen[str], seconds: float | None, told: Told) -> bool:
    """Hear what a writer is told until it ends, or is killed after so long; whether it was."""
    killer = threading.Timer(seconds or 0, process.kill)
    if seconds is not None:
        killer.start()
    with process:
        for line in process.stdout or ():
            if line.endswith("\n"):  # it may be killed amid a word
                told.hear(line)
    killer.cancel()
    assert process.returncode in (0, -signal.SIGKILL), f"a writer failed with {process.returncode}"
    return process.returncode != 0


def take_stock(place: str, told: Told, digests: Digests, counts: Counts) -> None:
    """Check what was told, in a store that is there for sure once a writer had begun."""
    if told.begun:
        check_format(open_objects(place))
    report = check(Trials(place), told, digests)
    counts["leftovers of crashes, recognised"] += len(report.orphans)


def conclude(place: str, told: Told, digests: Digests, counts: Counts) -> None:
    """Complete the trials, count what was told, and remove the store."""
    assert finish(Trials(place)) == {seed: digests[seed] for seed in TRIALS}
    open_objects(place).delete("")
    counts["snapshots told durable, there and correct"] += len(told.stored)
    counts["seals told durable, there and correct"] += len(told.sealed)


def seconds_to_write(place: str) -> float:
    process, started = start(place, 0), time.monotonic()
    begin(process)
    hear(process, None, Told())
    return time.monotonic() - started


def kill_writers(
    new_place: NewPlace, n_kills: int, digests: Digests, draw: random.Random, counts: Counts
) -> None:
    """Kill writers at random instants, again and again until their trials are complete."""
    seconds, n_killed = seconds_to_write(new_place()), 0
    while n_killed < n_kills:
        place, told, killed = new_place(), Told(), True
        while killed and n_killed < n_kills:
            process = start(place, draw.randrange(10**6))
            begin(process)
            killed = hear(process, draw.uniform(0, seconds), told)
            n_killed += killed
            take_stock(place, told, digests, counts)
        conclude(place, told, digests, counts)
    counts["writers killed"] += n_killed


def write_together(
    new_place: NewPlace, n_rounds: int, digests: Digests, draw: random.Random, counts: Counts
) -> None:
    """Have two writers record the same trials at once, and kill one in every other round."""
    seconds = seconds_to_write(new_place())
    for number in range(n_rounds):
        place, told = new_place(), Told()
        pair = [start(place, draw.randrange(10**6), "--together") for _ in range(2)]
        try:
            for process in pair:
                begin(process)
            killed = hear(pair[0], draw.uniform(0, 2 * seconds) if number % 2 else None, told)
            hear(pair[1], None, told)
        finally:
            for process in pair:
                process.kill()
        take_stock(place, told, digests, counts)
        conclude(place, told, digests, counts)
        counts["pairs of writers at once"] += 1
        counts["pairs of which one was killed"] += killed


# --- calls that fail ---------------------------------------------------------------------------


def failing(name: str) -> Callable[..., Any]:
    def call(self: Failing, *args: Any) -> Any:
        self.may_fail()
        found = getattr(self.inner, name)(*args)
        self.may_fail()
        return found

    return call


class Failing(Objects):
    """Another's objects, of which calls fail at random before, amid or after what they do."""

    def __init__(self, inner: Objects, draw: random.Random) -> None:
        self.inner, self.draw, self.location = inner, draw, inner.location
        self.n_failed = 0

    def may_fail(self) -> None:
        # Every failure leaves an attempt that later ones look at: unless calls fail ever more
        # seldom, none of many would come to its end.
        if self.draw.random() < FAILS / 2 / (1 + self.n_failed / 20):
            self.n_failed += 1
            network = UnavailableStoreError(self.location, "a fault made by a test")
            raise self.draw.choice([network, OSError(errno.EIO, os.strerror(errno.EIO))])

    def _amid(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            self.may_fail()
            yield part

    def write_parts(self, key: str, parts: Iterable[Any]) -> None:
        self.inner.write_parts(key, self._amid(parts))
        self.may_fail()

    def walk(self, key: str) -> Iterator[Entry]:
        yield from self._amid(self.inner.walk(key))

    def below(self, key: str) -> Failing:
        return Failing(self.inner.below(key), self.draw)

    read, read_tail, read_ranges = map(failing, ("read", "read_tail", "read_ranges"))
    names, stamps, exists = map(failing, ("names", "stamps", "exists"))
    create, delete, settle = map(failing, ("create", "delete", "settle"))
    remove_partials = failing("remove_partials")


def fail_calls(
    new_place: NewPlace, n_rounds: int, digests: Digests, draw: random.Random, counts: Counts
) -> None:
    """Record in a store that fails; an attempt whose call failed is followed by another."""
    for _ in range(n_rounds):
        place, told = new_place(), Told()
        objects = Failing(open_objects(place), draw)
        while len(told.sealed) < len(TRIALS):
            try:
                trials = Trials(objects)
                told.hear("begun")
                for seed in TRIALS:
                    complete(trials, seed, draw, told.hear, never)
            except (UnavailableStoreError, OSError):
                counts["writers that a failing call ended"] += 1
                take_stock(place, told, digests, counts)
            with contextlib.suppress(UnavailableStoreError, OSError):
                damages = verify(Store(objects)).damages
                assert {damage.cure for damage in damages} <= {"copy"}  # out of reach, no more
        conclude(place, told, digests, counts)


# --- the script --------------------------------------------------------------------------------


@contextlib.contextmanager
def places(url: str | None) -> Iterator[NewPlace]:
    """New places for stores, which are removed at the end: below a URL, or in temporary folders."""
    if url:
        ours = f"{url}/{uuid.uuid4().hex}"
        yield lambda: f"{ours}/{uuid.uuid4().hex}"
        open_objects(ours).delete("")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield lambda: f"{folder}/{uuid.uuid4().hex}"


def run(n_kills: int, seed: int, url: str | None, counts: Counts) -> None:
    """All of it, in numbers that follow from that of the kills."""
    draw, digests = random.Random(seed), finish(Trials(in_memory()), ALL)
    with places(url) as new_place, places(None) as new_folder:
        kill_writers(new_place, n_kills, digests, draw, counts)
        write_together(new_place, -(-n_kills // 5), digests, draw, counts)
        fail_calls(in_memory, -(-n_kills // 10), digests, draw, counts)
        fail_calls(new_folder, -(-n_kills // 10), digests, draw, counts)
        do_damage(new_place, 3 * n_kills, digests, draw, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="of a bucket and a prefix in it, such as s3://bucket/prefix")
    asked = parser.parse_args()
    counts: Counts = Counter()
    try:
        run(asked.kills, asked.seed, asked.url, counts)
    finally:
        for what in sorted(counts, key=lambda what: what if ": " in what else ""):
            print(f"{counts[what]:7,}  {what}")


if __name__ == "__main__":
    main()
