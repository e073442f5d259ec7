"""One attempt after another: where each starts, what it leaves, what it never does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeper import trial as trial_module
from sweeper.attempt import Order, Outcome, Progress
from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.store import open_store
from sweeper.store.root import Root
from sweeper.store.staging import StagedTrial
from sweeper.train import checkpoint
from sweeper.trial import run_attempt, size_of

BASE = {
    "data.name": "digits",
    "model.name": "fc",
    "model.widths": [16],
    "optim.name": "adam",
    "optim.lr": 0.01,
    "optim.batch_size": 256,
    "regularize.dropout": 0.2,
    "augment.name": "shift",
    "record.schedule": "log",
    "epochs": 3,
}


def order_in(folder: Path, checkpoint_seconds: float = 60, **changes: object) -> Order:
    """An order for the base trial; `optim__lr=1` changes `optim.lr`."""
    flat = BASE | {key.replace("__", "."): value for key, value in changes.items()}
    config = TrialConfig.from_flat(flat)
    return Order(
        config.trial_id, config.to_flat(), str(folder), checkpoint_seconds=checkpoint_seconds
    )


def run(order: Order, steps: int | None = None) -> Outcome:
    """Run an attempt, drained after so many steps of its own."""
    asked = itertools.count()
    return run_attempt(order, lambda: steps is not None and next(asked) >= steps, lambda _: None)


def log_of(order: Order) -> Path:
    return Path(order.root) / "logs" / f"{order.trial_id}.log"


def checkpoints_of(order: Order) -> Path:
    return Path(order.root) / "checkpoints" / order.trial_id


def starts(order: Order) -> list[int]:
    """The step at which each attempt started, from the trial's log."""
    lines = log_of(order).read_text().splitlines()
    return [int(line.split("step ")[1].split()[0]) for line in lines if "] attempt " in line]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the base trial, never interrupted."""
    outcome = run(order_in(tmp_path_factory.mktemp("whole")))
    assert outcome.digest
    return outcome.digest


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7, 11])
def test_a_trial_drained_every_few_steps_ends_with_the_same_digest(
    steps: int, tmp_path: Path, expected: str
):
    order = order_in(tmp_path)
    outcomes = []
    while not outcomes or outcomes[-1].state == "stopped":
        outcomes.append(run(order, steps))
        assert len(outcomes) < 40
    assert outcomes[-1].digest == expected
    assert len(outcomes) > 1
    assert starts(order) == sorted(starts(order))


def test_without_a_checkpoint_a_trial_starts_over_and_ends_the_same(tmp_path: Path, expected: str):
    order = order_in(tmp_path)
    run(order, 9)
    Root(tmp_path).remove_checkpoints(order.trial_id)
    assert run(order).digest == expected
    assert starts(order) == [0, 0]


def test_an_attempt_that_was_killed_before_its_claim_does_not_block_the_next(
    tmp_path: Path, expected: str
):
    order = order_in(tmp_path)
    (tmp_path / "predictions.zarr/staging" / order.trial_id / "1").mkdir(parents=True)
    (tmp_path / "predictions.zarr/zarr.json").write_text(
        '{"attributes": {"sweeper_format": 1}, "node_type": "group", "zarr_format": 3}'
    )
    assert run(order).digest == expected


def test_a_damaged_checkpoint_is_ignored_and_said_so(tmp_path: Path, expected: str):
    order = order_in(tmp_path)
    run(order, 9)
    (path,) = checkpoints_of(order).glob("*.pt")
    path.write_bytes(path.read_bytes()[:-100])
    assert run(order).digest == expected
    assert starts(order) == [0, 0]
    assert "not a checkpoint" in log_of(order).read_text()


def test_a_checkpoint_of_an_attempt_that_lost_its_tail_is_not_gone_on_from(
    tmp_path: Path, expected: str
):
    order = order_in(tmp_path)
    run(order, 6)
    (early,) = checkpoints_of(order).glob("1-*.pt")
    found = checkpoint.load(early)
    run(order, 3)  # attempt 2 takes over from there and writes a checkpoint of its own
    for path in checkpoints_of(order).glob("*.pt"):
        path.unlink()
    # Attempt 1 wakes up late: it claims snapshots that belong to attempt 2 by now.
    late = checkpoints_of(order) / "1-16.pt"
    late.parent.mkdir(parents=True, exist_ok=True)
    staged = StagedTrial(Root(tmp_path).predictions, order.trial_id)
    assert staged.n_recorded > found["next_snapshot"]
    late.write_bytes(checkpoint.to_bytes({**found, "next_snapshot": staged.n_recorded}))
    assert run(order).digest == expected
    assert starts(order)[-1] == 0, "the late checkpoint was not used"


def test_a_checkpoint_from_before_a_repair_is_not_gone_on_from(tmp_path: Path, expected: str):
    order = order_in(tmp_path)
    run(order, 9)
    (before,) = checkpoints_of(order).glob("*.pt")
    kept = before.read_bytes()
    Root(tmp_path).predictions.delete(f"staging/{order.trial_id}")  # what a repair does
    run(order, 9)  # attempt 1 once more, which records as many snapshots
    for path in checkpoints_of(order).glob("*.pt"):
        path.unlink()
    before.write_bytes(kept)
    assert run(order).digest == expected
    assert starts(order) == [0, 0, 0]


def test_a_trial_with_every_snapshot_staged_is_sealed_without_training(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
):
    order = order_in(tmp_path)

    def crash(*_: object) -> str:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "seal", crash)
        with pytest.raises(OSError, match="input/output"):
            run(order)
    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "train", crash)
        assert run(order).digest == expected


def test_a_complete_trial_is_left_alone(tmp_path: Path, expected: str):
    order = order_in(tmp_path)
    run(order)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "predictions.zarr").rglob("*")}
    outcome = run(order)
    assert (outcome.state, outcome.digest) == ("complete", expected)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "predictions.zarr").rglob("*")}
    assert after == before


def test_checkpoints_are_written_by_the_clock_and_only_the_last_is_kept(tmp_path: Path):
    order = order_in(tmp_path, checkpoint_seconds=0)
    run(order, 8)
    (path,) = checkpoints_of(order).glob("*.pt")
    assert path.name == "1-8.pt"
    run(order)
    assert not checkpoints_of(order).exists()


def test_a_diverging_trial_is_kept_up_to_there_and_marked(tmp_path: Path):
    order = order_in(tmp_path, optim__name="sgd", optim__lr=1e30, record__schedule="epoch")
    outcome = run(order)
    assert outcome.state == "diverged"
    store = open_store(tmp_path)
    row = store.trials().loc[order.trial_id]
    assert (row["state"], row["n_snapshots"]) == ("diverged", 1)
    assert store.log_probs(order.trial_id, "test").shape == (1, 360, 10)
    assert run(order).state == "diverged", "never tried again"


def test_a_trial_that_says_so_records_its_training_set_too(tmp_path: Path):
    order = order_in(tmp_path, record__train="predictions", epochs=1)
    run(order)
    store = open_store(tmp_path)
    assert store.log_probs(order.trial_id, "train").shape[1:] == (1437, 10)
    assert len(store.labels("train")) == 1437
    assert len(store.labels("test")) == 360
    size = size_of(TrialConfig.from_flat(order.config))
    n_snapshots = store.trials().loc[order.trial_id, "n_snapshots"]
    assert (size.n_snapshots, size.n_bytes) == (n_snapshots, n_snapshots * 1797 * 10 * 2)


@pytest.mark.parametrize(
    ("changes", "shard_bytes", "n_files"),
    [
        ({}, 2**20, 4),
        ({"record__train": "predictions"}, 2**20, 6),
        ({"data__label_noise": 0.1}, 2**20, 6),
        ({"data__shuffle_labels": True, "record__train": "predictions"}, 2**20, 8),
        ({}, 10_000, 5),
    ],
)
def test_a_trial_has_as_many_files_as_planned(
    tmp_path: Path, monkeypatch, changes, shard_bytes, n_files
):
    monkeypatch.setattr("sweeper.store.schema.SHARD_BYTES", shard_bytes)
    monkeypatch.setattr("sweeper.store.schema.CHUNK_BYTES", min(shard_bytes, 5_000))
    order = order_in(tmp_path, epochs=1, record__schedule="epoch", **changes)
    run(order)
    sealed = tmp_path / "predictions.zarr" / "trials" / order.trial_id
    found = [path for path in sealed.rglob("*") if path.is_file()]
    assert log_of(order).is_file()
    planned = size_of(TrialConfig.from_flat(order.config)).n_files
    assert len(found) + 1 == planned == n_files


def test_what_was_recorded_is_what_the_metrics_say(tmp_path: Path):
    order = order_in(tmp_path, epochs=1)
    run(order)
    store = open_store(tmp_path)
    log_p, labels = store.log_probs(order.trial_id, "test"), store.labels("test")
    table = store.snapshots(order.trial_id)
    accuracy = (log_p.argmax(-1) == labels).mean(1)
    loss = -log_p[:, range(360), labels].mean(1)
    # The metrics are of float32; in the float16 that is stored two classes can tie.
    assert accuracy == pytest.approx(table["test_accuracy"].to_numpy(), abs=2.1 / 360)
    assert loss == pytest.approx(table["test_loss"].to_numpy(), rel=1e-3)


def test_progress_tells_where_an_attempt_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    order, told = order_in(tmp_path), []
    run(order, 7)
    run_attempt(order, lambda: False, told.append)
    assert told[0] == Progress(order.trial_id, 2, 7, 18, told[0].host, "cpu")


def test_a_configuration_that_cannot_be_built_is_an_error_with_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> Callable[..., object]:
        raise ConfigError("model.name", "`fc` is out of order")

    monkeypatch.setattr(trial_module, "train", refuse)
    order = order_in(tmp_path)
    with pytest.raises(ConfigError):
        run(order)
    log = log_of(order).read_text()
    assert "Traceback" in log
    assert "out of order" in log


def test_the_labels_that_were_fitted_are_stored_where_they_are_not_the_clean_ones(tmp_path: Path):
    order = order_in(tmp_path, data__label_noise=0.25, **{"init.corner.fit": "random-labels"})
    order = with_corner(order, epochs=1, accuracy=0)
    run(order)
    store = open_store(tmp_path)
    assert set(store.target_phases(order.trial_id)) == {"corner", "train"}
    clean = store.labels("train", order.trial_id)
    wrong = {
        phase: (store.targets(order.trial_id, phase) != clean).mean()
        for phase in ("corner", "train")
    }
    assert wrong["train"] == pytest.approx(0.25, abs=1e-3)
    assert 0.85 < wrong["corner"] < 0.95
    metrics = store.trials().loc[order.trial_id]
    assert metrics["state"] == "complete"


def test_a_corner_phase_is_stored_with_epochs_below_0_and_resumes_to_the_same_digest(
    tmp_path: Path,
):
    digests = []
    for name, steps in (("whole", None), ("pieces", 5)):
        order = order_in(
            tmp_path / name, **{"init.corner.fit": "subset", "init.corner.samples": 50}
        )
        order = with_corner(order, epochs=4, accuracy=0)
        outcome = run(order, steps)
        while outcome.state == "stopped":
            outcome = run(order, steps)
        digests.append(outcome.digest)
        epochs = open_store(tmp_path / name).snapshots(order.trial_id)["epoch"]
        assert epochs.min() == -4
        assert epochs.max() == 3
        assert (epochs == 0).sum() == 1
    assert digests[0] == digests[1]


def test_a_corner_that_is_not_reached_fails_the_attempt_and_seals_nothing(tmp_path: Path):
    order = order_in(tmp_path, **{"init.corner.fit": "random-labels"})
    with pytest.raises(ConfigError, match=r"init\.corner\.accuracy"):
        run(with_corner(order, epochs=1, accuracy=1))
    assert not list(open_store(tmp_path).trials().query("state == 'complete'").index)


def with_corner(order: Order, **corner: float) -> Order:
    """The same order with other values of `init.corner`."""
    flat = dict(order.config) | {f"init.corner.{key}": value for key, value in corner.items()}
    config = TrialConfig.from_flat(flat)
    return dataclasses.replace(order, trial_id=config.trial_id, config=config.to_flat())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("per_gpu", [1, 2])
def test_on_a_gpu_a_trial_is_drained_goes_on_and_is_recorded(tmp_path: Path, per_gpu: int):
    order = dataclasses.replace(order_in(tmp_path), per_gpu=per_gpu)
    assert run(order, 5).state == "stopped"
    outcome = run(order)
    assert outcome.state == "complete"
    assert starts(order)[-1] > 0
    assert " (cuda:" in log_of(order).read_text()
    assert np.isfinite(open_store(tmp_path).log_probs(order.trial_id, "test")).all()
