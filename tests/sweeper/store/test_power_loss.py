"""What was acknowledged survives a power loss at any instant, and work goes on from the rest."""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper import durable
from sweeper.errors import MissingStoreError, SweeperError
from sweeper.store import Store, open_store
from sweeper.store.local import LocalObjects
from sweeper.store.seal import is_sealed, seal
from sweeper.store.staging import StagedAttempt, StagedTrial, owner_of
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter
from tests.power_loss import Disk, KilledError, frozen, put

PLACE = "runs/predictions.zarr"
SEEDS = (1, 2)
N_TRAIN = 8
TARGETS = np.arange(N_TRAIN) % 3  # of the second trial, which is not trained on the clean labels


@pytest.fixture(autouse=True)
def _no_real_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk under test keeps its own account of what is synced; copies of it need none."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass
class Told:
    """What a writer was told is durable; `heard` is called each time."""

    store: bool = False
    snapshots: list[tuple[int, int, int]] = field(default_factory=list)  # seed, attempt, snapshot
    sealed: dict[int, str] = field(default_factory=dict)
    heard: Callable[[], None] = lambda: None

    @property
    def n(self) -> int:
        return self.store + len(self.snapshots) + len(self.sealed)


class Writer:
    """Records trials below a root, in a process of its own."""

    def __init__(self, root: Path, told: Told, make_tiny: Callable[..., Any], samples: Any) -> None:
        durable._settled.clear()  # as in a new process
        self.told, self.samples = told, samples
        self.tiny = make_tiny(root / PLACE, samples, n_snapshots=3)
        told.store = True
        told.heard()

    def record(self, seed: int, first: int, stop: int) -> AttemptWriter:
        noisy = {"targets": {"train": TARGETS}, "target_set": self.samples.get("train")}
        writer = self.tiny.record(seed, first, first, **(noisy if seed == 2 else {}))
        for snapshot in range(first, stop):
            self.tiny.append(writer, seed, snapshot)
            self.told.snapshots.append((seed, writer.attempt, snapshot))
            self.told.heard()
        return writer

    def complete(self, seed: int) -> None:
        """What is left of a trial, as an attempt does it."""
        objects, trial, attempt = self.tiny.objects, self.tiny.header(seed).trial_id, 0
        if not is_sealed(objects, trial):
            attempt = self.record(seed, self._first(seed), self.tiny.n_snapshots).attempt
        self.told.sealed[seed] = seal(objects, trial, "complete", attempt)
        self.told.heard()

    def _first(self, seed: int) -> int:
        """Where a checkpoint starts an attempt: it claims what was acknowledged to its owner."""
        try:
            claims = StagedTrial(self.tiny.objects, self.tiny.header(seed).trial_id).claims
        except MissingStoreError:
            return 0
        first = 0
        while (seed, owner_of(first, claims), first) in self.told.snapshots:
            first += 1
        return first

    def work(self) -> None:
        """Claims, an attempt that takes over from another, targets, and seals."""
        self.record(1, 0, 2)
        self.record(1, 1, 2)
        for seed in SEEDS:
            self.complete(seed)


class Judge:
    """Checks what is left of a disk against what a writer was told."""

    def __init__(self, folder: Path, writer: Callable[[Path, Told], Writer]) -> None:
        self.folder, self.writer, self.seen = folder, writer, set[Any]()
        told = Told()
        undisturbed = writer(folder / "undisturbed", told)
        undisturbed.work()
        self.tiny, self.digests = undisturbed.tiny, told.sealed
        self.files = _files(folder / "undisturbed" / PLACE)

    def check(self, left: Any, told: Told, goes_on: bool) -> None:
        """Fail unless all that was told is there, nothing is damaged, and work goes on from it."""
        state = frozen(left), told.n, goes_on
        if state in self.seen:
            return
        self.seen.add(state)
        root = self.folder / "left"
        put(left, root)
        try:
            self._read(root, told)
            if goes_on:
                self._go_on(root, told)
        finally:
            shutil.rmtree(root)

    def _read(self, root: Path, told: Told) -> None:
        try:
            store = open_store(root / PLACE)
        except MissingStoreError:
            assert not told.store
            return
        assert verify(store).damages == ()
        for seed, attempt, snapshot in told.snapshots:
            values, moment = self._stored(store, seed, attempt, snapshot)
            for found, split in zip(values, self.tiny.samples, strict=True):
                np.testing.assert_array_equal(found, self.tiny.predictions(seed, snapshot, split))
            assert (moment["step"], moment["epoch"]) == (10 * snapshot, snapshot / 2)
            assert moment["test_loss"] == 1 / (1 + snapshot)
        for seed, digest in told.sealed.items():
            trial = self.tiny.header(seed).trial_id
            assert store.trial_attributes(trial)["digest"] == digest == self.digests[seed]

    def _stored(self, store: Store, seed: int, attempt: int, snapshot: int) -> Any:
        """A snapshot's predictions and moment, sealed or as the attempt that was told staged it."""
        trial = self.tiny.header(seed).trial_id
        if is_sealed(store.objects, trial):
            stored = [
                store.log_probs(trial, split, [snapshot], dtype="float16")[0]
                for split in self.tiny.samples
            ]
            return stored, store.snapshots(trial).iloc[snapshot]
        staged = StagedAttempt(store.objects, trial, attempt)
        stored = [staged.log_probs(snapshot, split) for split in self.tiny.samples]
        return stored, staged.moment(snapshot)

    def _go_on(self, root: Path, told: Told) -> None:
        """Sweep, complete every trial, and have what an undisturbed writer has."""
        writer = self.writer(root, Told(snapshots=list(told.snapshots)))
        writer.tiny.objects.remove_partials()
        for seed in SEEDS:
            writer.complete(seed)
        assert writer.told.sealed == self.digests
        report = verify(open_store(root / PLACE))
        assert (report.n_trials, report.damages, report.orphans) == (len(SEEDS), (), ())
        assert _files(root / PLACE) == self.files


def _files(store: Path) -> list[str]:
    """The files, without the numbers of attempts."""
    paths = (path.relative_to(store).parts for path in store.rglob("*") if path.is_file())
    return sorted("/".join((*parts[:2], *parts[3:])) for parts in paths)


@pytest.fixture
def writer(
    make_tiny: Callable[..., Any], make_samples: Callable[..., Any]
) -> Callable[[Path, Told], Writer]:
    samples = {"test": make_samples(), "train": make_samples("train", N_TRAIN)}
    return lambda root, told: Writer(root, told, make_tiny, samples)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for many small files, in memory where the system has such a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def judge(place: Path, writer: Callable[[Path, Told], Writer]) -> Judge:
    return Judge(place, writer)


@pytest.fixture
def root(place: Path) -> Path:
    """A folder on the disk that loses power."""
    (place / "disk").mkdir()
    return place / "disk"


def lose_power_all_along(
    root: Path, judge: Judge, writer: Callable[[Path, Told], Writer], **options: Any
) -> int:
    """Work, and check at every step what a power loss would leave; the number of steps.

    Going on from what is left takes longest, and is tried for a sample.
    """
    draw, told = random.Random(0), Told()

    def lose_power() -> None:
        disk.check_seen()
        for survival, often in (("least", 1.0), ("names", 0.6), ("mixture", 0.6)):
            if draw.random() < often:
                judge.check(disk.left(survival, draw), told, goes_on=draw.random() < 0.3)

    with Disk(root, lose_power, **options) as disk:
        writer(root, told).work()
        lose_power()
    return len(disk.steps)


def test_a_power_loss_at_any_step_takes_nothing_that_was_acknowledged(
    root: Path, judge: Judge, writer: Callable[[Path, Told], Writer]
):
    assert lose_power_all_along(root, judge, writer) > 200
    assert len(judge.seen) > 100


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_forgets_what_was_fsynced_is_found_out(
    kind: str, root: Path, judge: Judge, writer: Callable[[Path, Told], Writer]
):
    with pytest.raises((AssertionError, SweeperError)):
        lose_power_all_along(root, judge, writer, ignores=frozenset({kind}))


def kill_and_go_on(root: Path, judge: Judge, writer: Callable[[Path, Told], Writer]) -> int:
    """Kill a writer before each of its fsyncs, and lose power whenever the next one is told.

    Returns how often it was killed.
    """
    kills = steps_half_done(root / "undisturbed", writer)
    for kill in kills:
        told, left = Told(), root / str(kill)
        left.mkdir()
        with Disk(left) as disk:
            disk.dies_at = kill
            with pytest.raises(KilledError):
                writer(left, told).complete(2)
            disk.dies_at = None
            told.heard = functools.partial(check_least, disk, judge, told)
            writer(left, told).complete(2)
        assert told.sealed[2] == judge.digests[2]
    return len(kills)


def steps_half_done(root: Path, writer: Callable[[Path, Told], Writer]) -> list[int]:
    """The steps that make durable what was done before, as one trial is recorded and sealed."""
    root.mkdir()
    with Disk(root) as disk:
        writer(root, Told()).complete(2)
    return [number for number, name in enumerate(disk.steps) if name == "fsync"]


def check_least(disk: Disk, judge: Judge, told: Told) -> None:
    judge.check(disk.left("least", random.Random(0)), told, goes_on=False)


def test_what_a_killed_writer_left_half_done_takes_nothing_from_the_next_one(
    root: Path, judge: Judge, writer: Callable[[Path, Told], Writer]
):
    assert kill_and_go_on(root, judge, writer) > 80


@pytest.mark.parametrize(
    ("where", "name"),
    [(LocalObjects, "settle"), (durable, "sync_folder")],
    ids=["settle", "sync_folder"],
)
def test_a_writer_that_trusts_what_a_killed_one_left_is_found_out(
    where: Any,
    name: str,
    root: Path,
    judge: Judge,
    writer: Callable[[Path, Told], Writer],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(where, name, lambda *_: None)
    with pytest.raises((AssertionError, SweeperError)):
        kill_and_go_on(root, judge, writer)
