"""Corner inits: a first phase that fits something else, recorded with epochs below 0."""

import copy
import itertools

import numpy as np
import pytest
import torch

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.train import labels_fitted, metric_names, planned_steps
from sweeper.train.corner import fitted
from sweeper.train.data import load
from sweeper.train.length import phases
from sweeper.train.loop import train

CORNER = {"init.corner.fit": "random-labels", "init.corner.epochs": 3, "init.corner.accuracy": 0}
SUBSET = {**CORNER, "init.corner.fit": "subset", "init.corner.samples": 20}


def recorded(config):
    return [moment for moment in train(config) if moment.snapshot is not None]


def test_a_corner_is_recorded_below_epoch_0_and_training_from_it_on(trial):
    moments = recorded(trial(**CORNER))
    assert [moment.epoch for moment in moments] == [-3, -2, -1, 0, 1, 2]
    assert [moment.snapshot for moment in moments] == list(range(6))
    assert [moment.step for moment in moments] == [0, 3, 6, 9, 12, 15]


@pytest.mark.parametrize("schedule", ["epoch", "log", "manifold", [0.5, 1, 2]])
@pytest.mark.parametrize("corner", [CORNER, SUBSET], ids=["labels", "subset"])
def test_both_phases_are_recorded_by_the_schedule(trial, corner, schedule):
    config = trial(record__schedule=schedule, **corner)
    found = [moment.step for moment in recorded(config)]
    assert tuple(found) == planned_steps(config)
    first, second = phases(config)
    assert {0, first.last, second.last} <= set(found)
    assert len(set(range(first.last)) & set(found)) > 1


def test_the_first_phase_fits_random_labels_and_the_second_the_true_ones(trial):
    corner = {**CORNER, "init.corner.epochs": 60, "init.corner.accuracy": 0.3}
    wide = {"model__widths": [256], "optim__batch_size": 100, "epochs": 8}
    moments = recorded(trial(**wide, **corner))
    reached = next(moment.metrics for moment in moments if moment.epoch == 0)
    assert reached["fit_accuracy"] > 0.3
    assert reached["train_accuracy"] < 0.2
    assert moments[-1].metrics["train_accuracy"] > 0.9
    assert moments[-1].metrics["fit_accuracy"] == moments[-1].metrics["train_accuracy"]


def test_a_subset_is_fitted_alone(trial):
    corner = {**SUBSET, "init.corner.epochs": 40, "init.corner.accuracy": 1}
    config = trial(**corner, optim__name="adam", optim__lr=1e-2)
    reached = next(moment.metrics for moment in recorded(config) if moment.epoch == 0)
    assert reached["fit_accuracy"] == 1
    assert 0.2 < reached["train_accuracy"] < 0.9
    positions = fitted(config.init.corner, phases(config)[0], load(config.data)).positions
    assert len(positions.unique()) == 20


def test_what_a_phase_fits_is_scored_on_its_own_labels_and_samples(trial):
    for corner in (CORNER, SUBSET):
        config = trial(record__train="predictions", **corner)
        data = load(config.data)
        for moment in recorded(config):
            phase = phases(config)[moment.epoch > 0]
            fit = fitted(config.init.corner, phase, data)
            rows = slice(None) if fit.positions is None else fit.positions.numpy()
            log_probs = moment.log_probs["train"][rows].astype(np.float64)
            labels = fit.labels.numpy()[rows]
            loss = -log_probs[np.arange(len(labels)), labels].mean()
            assert moment.metrics["fit_loss"] == pytest.approx(loss, rel=1e-3)
            right = (log_probs.argmax(axis=1) == labels).mean()
            assert moment.metrics["fit_accuracy"] == pytest.approx(right, abs=2e-3)


def test_the_labels_of_a_corner_are_uniform_and_follow_from_its_own_seed(trial):
    def labels(**changes):
        config = trial(**{**CORNER, **changes})
        return labels_fitted(config, load(config.data))["corner"]

    counts = torch.bincount(labels(), minlength=10)
    assert counts.min() > 100
    assert counts.max() < 190
    assert torch.equal(labels(), labels(seed=5))
    assert not torch.equal(labels(), labels(**{"init.corner.seed": 1}))


def test_a_corners_draws_have_nothing_in_common_with_those_of_the_data(trial):
    for seed in range(6):
        config = trial(**{**SUBSET, "init.corner.samples": 300, "init.corner.seed": seed})
        for data_seed in (0, seed):
            noise = {"data.label_noise": 0.2, "data.seed": data_seed}
            data = load(TrialConfig.from_flat({**config.to_flat(), **noise}).data)
            seen = fitted(config.init.corner, phases(config)[0], data).positions
            share = (data.targets != data.train_y)[seen].double().mean().item()
            assert share == pytest.approx(0.2, abs=0.1)
        drawn = trial(
            **{**CORNER, "init.corner.seed": seed},
            **{"data.name": "synthetic", "data.labels": "random", "data.n_train": 1000},
        )
        data = load(drawn.data)
        random = fitted(drawn.init.corner, phases(drawn)[0], data).labels
        assert (random == data.train_y).double().mean().item() == pytest.approx(0.2, abs=0.08)


def test_a_network_that_diverges_at_the_end_of_its_corner_has_diverged(trial):
    config = trial(
        **{**CORNER, "init.corner.epochs": 1, "init.corner.accuracy": 1},
        **{"optim.lr": 1e37, "optim.batch_size": 1437, "model.norm": "none"},
    )
    first, last = train(config)
    assert (first.diverged, last.diverged, last.step) == (False, True, 1)
    assert last.state()["diverged"]


def test_a_network_that_does_not_reach_its_corner_is_an_error(trial):
    config = trial(**{**CORNER, "init.corner.accuracy": 0.99})
    moments = train(config)
    with pytest.raises(ConfigError, match=r"init\.corner\.accuracy: 0\.\d+ reached after 3 ep"):
        list(moments)


def test_the_second_phase_begins_with_a_fresh_optimizer_and_schedule(trial):
    settings = {"optim__name": "adam", "optim__schedule.name": "cosine", "epochs": 1}
    config = trial(**settings, **CORNER)
    at_the_corner = next(m for m in train(config) if m.epoch == 0)
    state = copy.deepcopy(at_the_corner.state())
    found = next(train(config, state=state)).state()["optimizer"]
    assert {int(entry["step"]) for entry in found["state"].values()} == {1}
    assert found["param_groups"][0]["lr"] == config.optim.lr


@pytest.mark.parametrize("corner", [CORNER, SUBSET], ids=["labels", "subset"])
def test_a_trial_in_two_phases_resumes_from_any_step_bit_for_bit(trial, corner):
    config = trial(optim__name="adam", regularize__ema=0.9, regularize__dropout=0.2, **corner)
    whole, states = [], []
    for moment in train(config):
        whole.append(moment)
        states.append(copy.deepcopy(moment.state()))
    for step, state in enumerate(states):
        again = list(train(config, state=state))
        for left, right in zip(whole[step + 1 :], again, strict=True):
            assert (left.step, left.epoch, left.metrics) == (right.step, right.epoch, right.metrics)
            for split in left.log_probs:
                assert np.array_equal(left.log_probs[split], right.log_probs[split])


def test_metrics_of_the_fit_are_recorded_only_where_it_is_not_the_clean_training_set(trial):
    assert metric_names(trial(record__train="none")) == ("test_loss", "test_accuracy")
    assert len(metric_names(trial())) == 4
    for change in ({"data__label_noise": 0.1}, {"data__shuffle_labels": True}, CORNER):
        assert metric_names(trial(**change))[-2:] == ("fit_loss", "fit_accuracy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.corner.epochs": 5}, "`5`, but `init.corner.fit` is `nothing`; `200` there"),
        ({**CORNER, "init.corner.samples": 9}, "`9`, but `init.corner.fit` is `random-labels`"),
        ({**SUBSET, "init.corner.samples": 0}, "how many training samples to fit first"),
        ({**SUBSET, "init.corner.samples": 1}, "from 2 to the 1437 training samples"),
        ({**SUBSET, "init.corner.samples": 1438}, "from 2 to the 1437 training samples"),
        (
            {**CORNER, "epochs": 9, "optim.schedule.warmup_epochs": 4},
            "warmup_epochs: `4.0`; at most the 3 epochs of the corner",
        ),
    ],
)
def test_a_corner_that_makes_no_sense_is_refused(trial, changes, message):
    with pytest.raises(ConfigError, match=message):
        phases(trial(**changes))


def test_an_ordinary_trial_has_one_phase(trial):
    (only,) = phases(trial())
    assert (only.first, only.last, only.epoch(3), only.is_corner) == (0, 6, 1.0, False)
    assert list(itertools.islice((m.epoch for m in train(trial())), 2)) == [0, 1 / 3]


def test_the_corner_is_that_of_the_trained_network_not_of_its_average(trial):
    corner = {**CORNER, "init.corner.epochs": 60, "init.corner.accuracy": 0.3}
    config = trial(model__widths=[256], optim__batch_size=100, regularize__ema=0.9999, **corner)
    reached = next(moment.metrics for moment in train(config) if moment.epoch == 0)
    assert reached["fit_accuracy"] < 0.3  # the average's, which hardly moved
