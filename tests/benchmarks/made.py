"""A store of made trials, and processes to measure in, for benchmarks of the analysis."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sweeper.processors import n_cores
from sweeper.store.opening import create_store
from sweeper.store.schema import SampleSet
from sweeper.store.seal import seal
from sweeper.store.writer import AttemptWriter, TrialHeader

T = TypeVar("T")
SNAPSHOTS, CLASSES = 60, 10


def parser(description: str | None, models: int, samples: int) -> argparse.ArgumentParser:
    """The arguments that say of what size the store is, with these defaults, and where it goes."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--models", type=int, default=models)
    found.add_argument("--samples", type=int, default=samples)
    found.add_argument("--folder")
    return found


@contextlib.contextmanager
def store(asked: argparse.Namespace) -> Iterator[tuple[Path, int]]:
    """A sweep with a sealed store, removed afterwards, and its number of trials; says its size."""
    n_trials = -(-asked.models // SNAPSHOTS)
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        folder = Path(scratch) / "made"
        started = time.perf_counter()
        _write(folder, n_trials, asked.samples)
        print(
            f"{n_trials * SNAPSHOTS:,} snapshots, {asked.samples:,} samples, {CLASSES} classes, "
            f"{n_cores()} cores; store written in {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        yield folder, n_trials


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What the function gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _write(folder: Path, n_trials: int, n_samples: int) -> None:
    """Trials that walk from ignorance to one of a few confident networks."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=n_samples)
    kinds = rng.standard_normal((8, n_samples, CLASSES), np.float32)
    kinds[:, np.arange(n_samples), labels] += 3
    samples = SampleSet(
        "test", labels, np.arange(n_samples), tuple(f"class {i}" for i in range(CLASSES))
    )
    objects = create_store(folder / "predictions.zarr")

    def write(trial: int) -> None:
        rng = np.random.default_rng((1, trial))
        header = TrialHeader(
            trial_id=f"t{trial:05}",
            schema=1,
            config={"model.name": "made", "seed": trial},
            identity={},
            steps=list(range(SNAPSHOTS)),
            metrics=("test_loss", "test_accuracy"),
            sample_sets={"test": samples},
        )
        writer = AttemptWriter(objects, header, 0)
        kind = kinds[trial % len(kinds)]
        for snapshot in range(SNAPSHOTS):
            noise = rng.standard_normal(kind.shape, np.float32)
            x = (kind + 0.3 * noise) * (2.5 * snapshot / SNAPSHOTS)
            x -= np.log(np.exp(x).sum(-1, keepdims=True))
            metrics = {"test_loss": 1.0, "test_accuracy": 0.5}
            writer.append(snapshot, float(snapshot), metrics, {"test": x.astype(np.float16)})
        seal(objects, header.trial_id, "complete", writer.attempt)

    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(write, range(n_trials)))
