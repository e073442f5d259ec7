"""Training as a generator of moments."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.errors import ConfigError
from sweeper.train.build import build_model
from sweeper.train.data import load
from sweeper.train.length import phases, planned_steps
from sweeper.train.loop import train


def recorded(moments):
    return [moment for moment in moments if moment.snapshot is not None]


def weights(moment):
    return copy.deepcopy(moment.state()["model"])


# --- moments --------------------------------------------------------------------------------


def test_there_is_a_moment_before_training_and_after_each_step(trial):
    moments = list(train(trial()))
    assert [moment.step for moment in moments] == list(range(7))
    assert [moment.epoch for moment in moments] == [step / 3 for step in range(7)]


@pytest.mark.parametrize("schedule", ["epoch", "log", "manifold", [0.5, 1.7]])
def test_snapshots_are_taken_at_the_planned_steps(trial, schedule):
    config = trial(record__schedule=schedule, optim__batch_size=200)
    found = recorded(train(config))
    assert tuple(moment.step for moment in found) == planned_steps(config)
    assert [moment.snapshot for moment in found] == list(range(len(found)))


def test_moments_between_snapshots_are_empty(trial):
    quiet = [moment for moment in train(trial()) if moment.snapshot is None]
    assert len(quiet) == 4
    assert not any(moment.metrics or moment.log_probs or moment.diverged for moment in quiet)


@pytest.mark.parametrize(
    ("record", "metrics", "splits"),
    [
        ("none", {"test_loss", "test_accuracy"}, {"test"}),
        ("metrics", {"test_loss", "test_accuracy", "train_loss", "train_accuracy"}, {"test"}),
        (
            "predictions",
            {"test_loss", "test_accuracy", "train_loss", "train_accuracy"},
            {"test", "train"},
        ),
    ],
)
def test_what_is_recorded_of_the_training_set_is_what_was_asked(trial, record, metrics, splits):
    for moment in recorded(train(trial(record__train=record))):
        assert set(moment.metrics) == metrics
        assert set(moment.log_probs) == splits


def test_recording_changes_nothing_in_training(trial):
    rarely, often = trial(record__train="none"), trial(record__schedule="log")
    *_, first = train(rarely)
    *_, second = train(often)
    found, expected = weights(first), weights(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert np.array_equal(first.log_probs["test"], second.log_probs["test"])


def test_predictions_and_metrics_are_those_of_the_clean_data_in_evaluation_mode(trial):
    config = trial(
        record__train="predictions",
        augment__name="shift",
        regularize__dropout=0.5,
        regularize__label_smoothing=0.3,
    )
    data = load(config.data)
    for moment in train(config):
        if moment.snapshot is None:
            continue
        model = build_model(config.data, config.model, config.regularize, seed=0).double().eval()
        model.load_state_dict(moment.state()["model"])
        for split, x, y in (
            ("train", data.train_x, data.train_y),
            ("test", data.test_x, data.test_y),
        ):
            with torch.no_grad():
                logits = model((x.double() / 16 - 0.305) / 0.376).numpy()
            expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found = moment.log_probs[split]
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
            truth = expected[np.arange(len(y)), y]
            assert moment.metrics[f"{split}_loss"] == pytest.approx(-truth.mean(), rel=1e-5)
            right = (expected.argmax(axis=1) == y.numpy()).mean()
            assert moment.metrics[f"{split}_accuracy"] == pytest.approx(right, abs=1e-12)


def certain(shape, n_classes):
    """Logits so far apart that probabilities underflow even as float32 logarithms of float16."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(1e5 * torch.arange(n_classes))
    return model


def test_log_probabilities_beyond_float16_are_clipped_not_infinite(trial):
    config = trial(model__name=f"{__name__}:certain", model__widths=None)
    found = next(train(config)).log_probs["test"]
    assert np.array_equal(found[0], np.array([-65504.0] * 9 + [0.0], dtype=np.float16))


# --- one step -------------------------------------------------------------------------------


def test_a_step_is_the_textbooks(trial):
    """One step of SGD with weight decay and label smoothing, written out."""
    config = trial(
        model__widths=[],
        optim__batch_size=1437,
        epochs=1,
        optim__lr=0.2,
        regularize__weight_decay=0.01,
        regularize__label_smoothing=0.1,
    )
    start, end = (weights(moment) for moment in train(config))
    data = load(config.data)
    x = ((data.train_x.double() / 16 - 0.305) / 0.376).flatten(1).numpy()
    target = 0.9 * np.eye(10)[data.train_y.numpy()] + 0.01
    weight, bias = (start[key].double().numpy() for key in ("1.weight", "1.bias"))
    logits = x @ weight.T + bias
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (probs - target) / len(x)
    np.testing.assert_allclose(
        end["1.weight"], weight - 0.2 * (error.T @ x + 0.01 * weight), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        end["1.bias"], bias - 0.2 * (error.sum(axis=0) + 0.01 * bias), rtol=1e-4, atol=1e-6
    )


class Spy(nn.Module):
    """A linear classifier that remembers its training batches."""

    batches: list = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        if self.training:
            Spy.batches.append(x.detach().clone())
        return self.linear(x.flatten(1))


def spy(shape, n_classes):
    Spy.batches = []
    return Spy()


def test_each_epoch_trains_on_every_sample_once_in_another_order(trial):
    config = trial(model__name=f"{__name__}:spy", model__widths=None)
    list(train(config))
    data = load(config.data)
    wanted = data.inputs(data.pixels(data.train_x)).flatten(1)
    first, second = torch.cat(Spy.batches[:3]), torch.cat(Spy.batches[3:])
    assert [len(batch) for batch in Spy.batches] == [500, 500, 437] * 2
    for epoch in (first, second):
        found = sorted(map(tuple, epoch.flatten(1).tolist()))
        assert found == sorted(map(tuple, wanted.tolist()))
    assert not torch.equal(first, second)


def test_augmentation_moves_what_is_trained_on_and_nothing_else(trial):
    name = f"{__name__}:spy"
    list(train(trial(model__name=name, model__widths=None)))
    plain = Spy.batches
    list(train(trial(model__name=name, model__widths=None, augment__name="shift")))
    assert not torch.equal(torch.cat(plain), torch.cat(Spy.batches))
    assert torch.cat(plain).min() == torch.cat(Spy.batches).min()  # black comes in, not grey


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(1, 1437), (2, 718), (359, 4), (500, 3), (1437, 1), (1436, 1)]
)
def test_a_single_left_over_sample_makes_no_step(trial, batch_size, steps):
    assert phases(trial(optim__batch_size=batch_size))[0].steps_per_epoch == steps


def test_training_goes_past_a_single_left_over_sample(trial):
    assert [moment.step for moment in train(trial(optim__batch_size=1436))] == [0, 1, 2]


# --- plug-ins and errors --------------------------------------------------------------------


def decaying(progress, power=2.0):
    return (1 - progress) ** power


def noisy(x, generator, std=0.1):
    return x + std * torch.randn(x.shape, generator=generator)


def half(model, generator):
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)


def two_rates(params, lr, weight_decay, ratio=0.1):
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": ratio * lr}]
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay)


def test_every_axis_takes_a_plug_in_by_its_import_path(trial):
    config = trial(
        **{
            "model.name": f"{__name__}:spy",
            "model.widths": None,
            "optim.name": f"{__name__}:two_rates",
            "optim.ratio": 0.5,
            "optim.schedule.name": f"{__name__}:decaying",
            "augment.name": f"{__name__}:noisy",
            "init.name": f"{__name__}:half",
        }
    )
    first, *_, last = train(config)
    assert last.step == 6
    groups = last.state()["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.1 / 36, 0.05 / 36])
    assert len({row.tobytes() for row in first.log_probs["test"]}) == 1  # all weights equal


def test_errors_of_building_come_before_the_first_moment(trial):
    with pytest.raises(ConfigError, match=r"model.widths: `\[0\]`"):
        train(trial(model__widths=[0]))
