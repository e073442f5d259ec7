"""A sweep that loses power at any instant goes on as if it had not."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from sweeper import durable
from sweeper import trial as trial_module
from sweeper.attempt import Outcome
from sweeper.config import TrialConfig
from sweeper.errors import SweeperError
from sweeper.grid import Trial
from sweeper.journal import Journal, read_events
from sweeper.plan import make_plan
from sweeper.schedule.driver import Launch, complete_trials, drive
from sweeper.schedule.local import LocalExecutor
from sweeper.store import open_store
from sweeper.store.local import LocalObjects
from sweeper.store.root import Root
from sweeper.store.seal import is_sealed
from sweeper.store.staging import StagedAttempt, owner_of
from sweeper.store.verify import verify
from sweeper.store.writer import AttemptWriter
from sweeper.sweep_dir import SweepDir
from sweeper.train import checkpoint
from sweeper.trial import size_of
from tests.power_loss import Disk, Left, Survival, frozen, put

SWEEP = "runs/sweep"
CHECKED = 100  # of what power losses leave, drawn with a seed

CONFIGS = [
    TrialConfig.from_flat(
        {
            "data.name": "digits",
            "data.label_noise": noise,
            "model.name": "fc",
            "model.widths": [8],
            "optim.name": "adam",
            "optim.lr": 0.01,
            "optim.batch_size": 512,
            "record.schedule": "log",
            "record.train": "predictions",
            "epochs": 1,
        }
    )
    for noise in (0.0, 0.2)
]
TRIALS = [Trial(config.trial_id, config) for config in CONFIGS]


@dataclass(frozen=True)
class Told:
    """What a sweep's processes were told is durable."""

    events: tuple[dict[str, Any], ...] = ()
    snapshots: tuple[tuple[str, int, int], ...] = ()  # trial, attempt, snapshot
    checkpointed: frozenset[str] = frozenset()
    complete: frozenset[str] = frozenset()


class Hearing:
    """Listens to what is acknowledged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told = Told()
        self.n_told = 0
        monkeypatch.setattr(Journal, "append", self._event(Journal.append))
        monkeypatch.setattr(AttemptWriter, "append", self._snapshot(AttemptWriter.append))
        monkeypatch.setattr(LocalObjects, "write_parts", self._object(LocalObjects.write_parts))

    def _hear(self, **fields: Any) -> None:
        self.told = replace(self.told, **fields)
        self.n_told += 1

    def _event(self, append: Callable[..., Any]) -> Callable[..., Any]:
        def heard(journal: Journal, *args: Any, **fields: Any) -> dict[str, Any]:
            line = append(journal, *args, **fields)
            self._hear(events=(*self.told.events, line))
            return line

        return heard

    def _snapshot(self, append: Callable[..., None]) -> Callable[..., None]:
        def heard(writer: AttemptWriter, snapshot: int, *args: Any) -> None:
            append(writer, snapshot, *args)
            known = writer.header.trial_id, writer.attempt, snapshot
            self._hear(snapshots=(*self.told.snapshots, known))

        return heard

    def _object(self, write_parts: Callable[..., None]) -> Callable[..., None]:
        def heard(objects: LocalObjects, key: str, parts: Any) -> None:
            write_parts(objects, key, parts)
            if key.endswith(".pt"):
                known = self.told.checkpointed | {objects.root.name}
                self._hear(checkpointed=known)

        return heard

    def on_event(self, event: Any, counts: Any) -> None:
        if isinstance(event, Outcome):
            self._hear(complete=self.told.complete | {event.trial_id})


def launch(root: Path, on_event: Callable[..., None] = lambda *_: None) -> dict[str, str]:
    """Launch the sweep, as a new process would; the digests."""
    durable._settled.clear()
    folder = SweepDir(root / SWEEP)
    plan = make_plan(TRIALS, complete_trials(folder.root()), size_of)
    asked = Launch("sweep", "name: sweep\n", checkpoint_seconds=0)
    drive(folder, plan, asked, LocalExecutor(), on_event)
    return open_store(folder.path).trials()["digest"].to_dict()


def check(root: Path, told: Told) -> None:
    """Fail unless all that was told is there, and nothing is damaged."""
    folder = SweepDir(root / SWEEP)
    events = read_events(folder.journal).events
    assert tuple(events[: len(told.events)]) == told.events
    if not told.snapshots:
        return
    store = open_store(folder.path)
    assert verify(store).damages == ()
    for trial, attempt, snapshot in told.snapshots:
        if not is_sealed(store.objects, trial):
            assert snapshot in StagedAttempt(store.objects, trial, attempt).present
    assert told.complete <= set(store.complete_ids())
    for trial in told.checkpointed - set(store.complete_ids()):
        check_checkpoints(store.objects, Root(folder.path).checkpoints(trial), trial)


def check_checkpoints(store: Any, checkpoints: Any, trial: str) -> None:
    """There is one, and each claims only snapshots that are there."""
    names = [name for name in checkpoints.names("") if name.endswith(".pt")]
    assert names
    for name in names:
        found = checkpoint.from_bytes(checkpoints.read(name), name)
        lineage = [(number, first) for number, first, _ in found["lineage"]]
        for snapshot in range(found["next_snapshot"]):
            owner = owner_of(snapshot, lineage)
            assert snapshot in StagedAttempt(store, trial, owner).present


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for many small files, in memory where the system has such a disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk keeps its own account
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def lose_power_all_along(place: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Sweep, and check and go on from what power losses at its steps would leave."""
    expected = launch(place / "undisturbed")
    (place / "disk").mkdir()
    draw = random.Random(0)
    losses: dict[Any, tuple[Left, Told]] = {}  # by what is left and what was told
    with monkeypatch.context() as patch:
        hearing = Hearing(patch)

        def lose_power() -> None:
            disk.check_seen()
            for survival in get_args(Survival):
                left = disk.left(survival, draw)
                losses[frozen(left), hearing.n_told] = left, hearing.told

        with Disk(place / "disk", lose_power, **options) as disk:
            assert launch(place / "disk", hearing.on_event) == expected
            lose_power()
    assert len(losses) > 3 * CHECKED
    for number, (left, told) in enumerate(draw.sample([*losses.values()], CHECKED)):
        root = place / str(number)
        put(left, root)
        check(root, told)
        assert launch(root) == expected
        assert_swept(root / SWEEP)


def assert_swept(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    left += [*folder.glob("checkpoints/*"), *folder.glob("predictions.zarr/staging/*")]
    assert not left


def test_a_power_loss_at_any_step_of_a_sweep_takes_nothing_that_was_acknowledged(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    lose_power_all_along(place, monkeypatch)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_forgets_what_a_sweep_fsynced_is_found_out(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises((AssertionError, SweeperError)):
        lose_power_all_along(place, monkeypatch, ignores=frozenset({kind}))


def test_a_checkpoint_that_does_not_wait_for_its_snapshots_is_found_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    append = AttemptWriter.append

    def late(*args: Any) -> None:
        time.sleep(0.02)
        append(*args)

    monkeypatch.setattr(AttemptWriter, "append", late)
    monkeypatch.setattr(trial_module._Recorder, "wait", lambda recorder: None)
    with pytest.raises(AssertionError):
        lose_power_all_along(place, monkeypatch)
