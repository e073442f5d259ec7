"""A small store of seeded random predictions, for tests that need one but no training."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from sweeper.config import content_id
from sweeper.store import url
from sweeper.store.opening import create_store
from sweeper.store.schema import LOG_PROB_MIN, SampleSet
from sweeper.store.seal import seal
from sweeper.store.writer import AttemptWriter, TrialHeader
from tests.s3_server import BUCKET, Proxy, environment, s3_server

# Ray gives way to everything else, so beside tests that compute its workers would hardly run, and
# tests that limit their time would fail.
os.environ.update(RAY_worker_niceness="0")

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("sweeper", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sweeper")

CLASSES = ("ant", "bee", "cat")
METRICS = ("test_loss", "test_accuracy")


def sample_set(split: str = "test", n_samples: int = 12, seed: int = 0) -> SampleSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), n_samples)
    return SampleSet(split, labels, np.arange(100, 100 + n_samples), CLASSES)


def log_probs(*seeds: int, n_samples: int = 12, scale: float = 3.0) -> np.ndarray:
    """Stored predictions, (n_samples, 3) float16, as the evaluation makes them."""
    logits = np.random.default_rng(seeds).normal(0, scale, (n_samples, len(CLASSES)))
    logits = logits.astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    values = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return values.clip(LOG_PROB_MIN).astype(np.float16)


@dataclass
class TinyStore:
    """A store, and what should be read of it."""

    path: Path | str  # a string may be a URL
    samples: Mapping[str, SampleSet] = field(default_factory=lambda: {"test": sample_set()})
    n_snapshots: int = 4

    def __post_init__(self) -> None:
        self.objects = create_store(self.path)

    def header(self, seed: int = 1, **changes: Any) -> TrialHeader:
        """Of a trial whose id is that of its configuration, as the store demands."""
        identity = {"model.name": "fc", "model.widths": [8, 8], "seed": seed}
        given: dict[str, Any] = {
            "trial_id": content_id(identity),
            "schema": 1,
            "config": identity | {"epochs": 3},
            "identity": identity,
            "steps": [10 * i for i in range(self.n_snapshots)],
            "metrics": METRICS,
            "sample_sets": self.samples,
            "provenance": {"host": "here"},
        }
        return TrialHeader(**given | changes)

    def predictions(self, seed: int, snapshot: int, split: str = "test") -> np.ndarray:
        samples = self.samples[split]
        return log_probs(seed, snapshot, len(split), n_samples=len(samples.labels))

    def append(self, writer: AttemptWriter, seed: int, snapshot: int) -> None:
        values = {split: self.predictions(seed, snapshot, split) for split in self.samples}
        metrics = {"test_loss": 1 / (1 + snapshot), "test_accuracy": snapshot / 10}
        writer.append(snapshot, snapshot / 2, metrics, values)

    def record(
        self, seed: int = 1, first: int = 0, stop: int | None = None, **changes: Any
    ) -> AttemptWriter:
        """Stage the snapshots from `first` up to `stop`, as a new attempt."""
        writer = AttemptWriter(self.objects, self.header(seed, **changes), first)
        for snapshot in range(first, self.n_snapshots if stop is None else stop):
            self.append(writer, seed, snapshot)
        return writer

    def sealed(self, seed: int = 1, **changes: Any) -> str:
        """Record and seal a trial; its id."""
        writer = self.record(seed, **changes)
        seal(self.objects, writer.header.trial_id, "complete", writer.attempt)
        return writer.header.trial_id


@pytest.fixture
def tiny(tmp_path: Path) -> TinyStore:
    """A store of 12 samples, 3 classes and 4 snapshots a trial, empty yet."""
    return TinyStore(tmp_path / "predictions.zarr")


@pytest.fixture
def make_tiny() -> Callable[..., TinyStore]:
    """Such stores elsewhere, or of other samples."""
    return TinyStore


@pytest.fixture
def make_log_probs() -> Callable[..., np.ndarray]:
    """Seeded float16 log-probabilities."""
    return log_probs


@pytest.fixture
def make_samples() -> Callable[..., SampleSet]:
    """Seeded sample sets."""
    return sample_set


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow comes first: it mostly waits, and all else is run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# --- a bucket ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Where this process's own S3 server listens, on loopback."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of this test's own in a bucket that the environment has the credentials for."""
    for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment(s3_endpoint).items():
        monkeypatch.setenv(variable, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}/sweep"


@pytest.fixture
def proxy(s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What all requests to the bucket go through; they are tried four times more, at once."""
    backoff = {
        "init_backoff": timedelta(milliseconds=1),
        "max_backoff": timedelta(milliseconds=5),
        "base": 2,
    }
    monkeypatch.setattr(url, "BACKOFF", backoff)
    monkeypatch.setattr(url, "MAX_RETRIES", 4)
    found = Proxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
    yield found
    found.close()
