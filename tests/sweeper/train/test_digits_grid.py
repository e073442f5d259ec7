"""The demo's grid trains long enough to mean something."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from sweeper.grid import Trial, expand, load_grid
from sweeper.train import train

GRID = Path(__file__).parents[3] / "grids" / "digits.yaml"


@pytest.fixture(scope="module")
def trials() -> tuple[Trial, ...]:
    return expand(load_grid(GRID)).trials


def test_the_grid_has_at_least_48_trials_over_every_axis(trials: tuple[Trial, ...]):
    assert len(trials) >= 48
    flats = [trial.config.to_flat() for trial in trials]
    for axis in (
        "model.name",
        "optim.name",
        "regularize.weight_decay",
        "augment.name",
        "init.name",
        "seed",
    ):
        assert len({flat[axis] for flat in flats}) > 1, axis


@pytest.mark.parametrize(("model", "least"), [("fc", 0.95), ("cnn", 0.97)])
def test_reference_settings_learn_the_digits(model: str, least: float, trials: tuple[Trial, ...]):
    """Reference: the first seed of every optimizer, neither augmented nor initialized otherwise."""
    chosen = [
        trial.config
        for trial in trials
        if trial.config.model.name == model
        and (trial.config.augment.name, trial.config.init.name) == ("none", "torch")
        and trial.config.regularize.weight_decay == 0
        and trial.config.seed == 0
    ]
    assert len(chosen) == 3
    finals = [list(train(config))[-1].metrics for config in chosen]
    assert statistics.median(final["test_accuracy"] for final in finals) >= least
    assert min(final["train_accuracy"] for final in finals) >= 0.99
