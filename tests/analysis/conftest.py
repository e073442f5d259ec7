"""Small sweeps with known predictions, written by the store itself."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from analysis.ahead import Rows
from sweeper.store.opening import create_store
from sweeper.store.schema import SampleSet
from sweeper.store.seal import seal
from sweeper.store.writer import AttemptWriter, TrialHeader

N_SAMPLES, N_CLASSES = 40, 4
CLASS_NAMES = ("ape", "bee", "cat", "dog")


def _write_trial(
    sweep: Path,
    trial_id: str,
    config: Mapping[str, Any] | None = None,
    state: str | None = "complete",
    n_snapshots: int = 5,
    train_accuracy: float | None = 1.0,
    class_names: tuple[str, ...] = CLASS_NAMES,
    n_samples: int = N_SAMPLES,
) -> np.ndarray:
    """Record one trial that walks from ignorance towards the truth; returns its predictions."""
    seed = int.from_bytes(trial_id.encode(), "big") % 2**32
    rng = np.random.default_rng(seed)
    labels = np.arange(n_samples) % N_CLASSES
    goal = 6 * np.eye(N_CLASSES)[labels] + rng.standard_normal((n_samples, N_CLASSES))
    detour = rng.standard_normal((n_samples, N_CLASSES))
    metrics = ("test_loss", "test_accuracy", "train_loss", "train_accuracy")
    names = metrics if train_accuracy is not None else metrics[:2]
    samples = SampleSet("test", labels, np.arange(n_samples), class_names)
    header = TrialHeader(
        trial_id=trial_id,
        schema=1,
        config={"model.name": "fc", "seed": seed, "optim.lr": 0.1, **(config or {})},
        identity={},
        steps=[10 * i for i in range(n_snapshots)],
        metrics=names,
        sample_sets={"test": samples},
    )
    objects = create_store(sweep / "predictions.zarr")
    writer = AttemptWriter(objects, header, 0)
    kept = []
    for i in range(n_snapshots if state else n_snapshots - 1):
        t = i / (n_snapshots - 1)
        values = log_softmax(t * goal + 0.5 * np.sin(np.pi * t) * detour, axis=-1).astype(
            np.float16
        )
        right = float((values.argmax(-1) == labels).mean())
        loss = float(-values[np.arange(n_samples), labels].astype(float).mean())
        found = dict(zip(metrics, (loss, right, loss, train_accuracy), strict=True))
        writer.append(i, float(i), {name: found[name] for name in names}, {"test": values})
        kept.append(values)
    if state is not None:
        seal(objects, trial_id, state, writer.attempt)
    return np.stack(kept)


@contextlib.contextmanager
def watched_runs() -> Iterator[list[tuple[int, int]]]:
    """The step of all that is read in runs, and the sample from which on."""
    seen: list[tuple[int, int]] = []
    runs = Rows.runs

    def seeing(self, shape, run, step, first):
        seen.append((step, first))
        return runs(self, shape, run, step, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "runs", seeing)
        yield seen


@pytest.fixture
def write_trial() -> Callable[..., np.ndarray]:
    return _write_trial


@pytest.fixture(scope="session")
def _sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis") / "tiny"
    for i, model in enumerate(("fc", "fc", "vit", "vit")):
        _write_trial(folder, f"t{i}", {"model.name": model, "optim.lr": 0.1 * (i + 1), "seed": i})
    _write_trial(folder, "t8", {"model.name": "fc"}, "diverged", 3)
    _write_trial(folder, "t9", {"model.name": "vit"}, None)
    return folder


@pytest.fixture
def sweep(_sweep: Path, tmp_path: Path) -> Path:
    """Four complete trials of two models, one diverged, one incomplete."""
    return Path(shutil.copytree(_sweep, tmp_path / "tiny"))


@pytest.fixture
def copy_trials() -> Callable[..., None]:
    """Put some trials of a sweep, finished or not, into the store of another."""

    def copy(sweep: Path, trials: Iterable[str], other: Path) -> None:
        source, target = sweep / "predictions.zarr", other / "predictions.zarr"
        below = [f"{kind}/{trial_id}" for trial_id in trials for kind in ("trials", "staging")]
        for name in ("samples", *below):
            if (source / name).exists():
                shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        shutil.copy(source / "zarr.json", target)

    return copy
