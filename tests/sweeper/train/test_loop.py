"""Training as a generator of moments."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.config import TrialConfig
from sweeper.errors import CheckpointError, ConfigError
from sweeper.train import checkpoint
from sweeper.train.build import build_model, draw_weights
from sweeper.train.data import load
from sweeper.train.loop import planned_steps, steps_per_epoch, train

OPTIMIZERS = ("sgd", "sgd-nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on the thread count, and these networks are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trial(**changes):
    flat = {
        "data.name": "digits",
        "model.name": "fc",
        "model.widths": [16],
        "optim.name": "sgd",
        "optim.lr": 0.1,
        "optim.batch_size": 500,
        "epochs": 2,
    }
    flat |= {key.replace("__", "."): value for key, value in changes.items()}
    return TrialConfig.from_flat({key: value for key, value in flat.items() if value is not None})


def recorded(moments):
    return [moment for moment in moments if moment.snapshot is not None]


def same(first, second):
    """Whether two moments agree in every bit."""
    return (
        (first.step, first.epoch, first.snapshot, first.metrics, first.diverged)
        == (second.step, second.epoch, second.snapshot, second.metrics, second.diverged)
        and first.log_probs.keys() == second.log_probs.keys()
        and all(np.array_equal(first.log_probs[k], second.log_probs[k]) for k in first.log_probs)
    )


def weights(moment):
    return copy.deepcopy(moment.state()["model"])


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- moments --------------------------------------------------------------------------------


def test_there_is_a_moment_before_training_and_after_each_step():
    moments = list(train(trial()))
    assert [moment.step for moment in moments] == list(range(7))
    assert [moment.epoch for moment in moments] == [step / 3 for step in range(7)]


@pytest.mark.parametrize("schedule", ["epoch", "log", "manifold", [0.5, 1.7]])
def test_snapshots_are_taken_at_the_planned_steps(schedule):
    config = trial(record__schedule=schedule, optim__batch_size=200)
    found = recorded(train(config))
    assert tuple(moment.step for moment in found) == planned_steps(config)
    assert [moment.snapshot for moment in found] == list(range(len(found)))


def test_moments_between_snapshots_are_empty():
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
def test_what_is_recorded_of_the_training_set_is_what_was_asked(record, metrics, splits):
    for moment in recorded(train(trial(record__train=record))):
        assert set(moment.metrics) == metrics
        assert set(moment.log_probs) == splits


def test_recording_changes_nothing_in_training():
    rarely, often = trial(record__train="none"), trial(record__schedule="log")
    *_, first = train(rarely)
    *_, second = train(often)
    assert same_weights(first.state()["model"], second.state()["model"])
    assert np.array_equal(first.log_probs["test"], second.log_probs["test"])


def test_predictions_and_metrics_are_those_of_the_clean_data_in_evaluation_mode():
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
        model = build_model(config.data, config.model, 0.5, seed=0).double().eval()
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


def test_log_probabilities_beyond_float16_are_clipped_not_infinite():
    config = trial(model__name=f"{__name__}:certain", model__widths=None)
    found = next(train(config)).log_probs["test"]
    assert np.array_equal(found[0], np.array([-65504.0] * 9 + [0.0], dtype=np.float16))


# --- one step -------------------------------------------------------------------------------


def test_a_step_is_the_textbooks():
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


def test_each_epoch_trains_on_every_sample_once_in_another_order():
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


def test_augmentation_moves_what_is_trained_on_and_nothing_else():
    name = f"{__name__}:spy"
    list(train(trial(model__name=name, model__widths=None)))
    plain = Spy.batches
    list(train(trial(model__name=name, model__widths=None, augment__name="shift")))
    assert not torch.equal(torch.cat(plain), torch.cat(Spy.batches))
    assert torch.cat(plain).min() == torch.cat(Spy.batches).min()  # black comes in, not grey


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(1, 1437), (2, 718), (359, 4), (500, 3), (1437, 1), (1436, 1)]
)
def test_a_single_left_over_sample_makes_no_step(batch_size, steps):
    assert steps_per_epoch(trial(optim__batch_size=batch_size)) == steps


def test_training_goes_past_a_single_left_over_sample():
    assert [moment.step for moment in train(trial(optim__batch_size=1436))] == [0, 1, 2]


# --- randomness -----------------------------------------------------------------------------


def test_the_same_trial_twice_gives_the_same_bits():
    config = trial(regularize__dropout=0.2, augment__name="shift")
    torch.manual_seed(1)
    first = list(train(config))
    torch.manual_seed(2)
    assert all(itertools.starmap(same, zip(first, train(config), strict=True)))


@pytest.mark.parametrize("init", ["torch", "kaiming", "xavier", "normal"])
def test_networks_start_from_their_seed(init):
    starts = [weights(next(train(trial(init__name=init, seed=seed)))) for seed in (0, 0, 1)]
    assert same_weights(starts[0], starts[1])
    assert not torch.equal(starts[0]["1.weight"], starts[2]["1.weight"])


def test_building_a_network_leaves_the_global_generator_alone():
    config, before = trial(), torch.get_rng_state()
    draw_weights(build_model(config.data, config.model, 0.0, seed=5), config.init, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


class Masks(nn.Module):
    """A linear classifier that remembers its dropout masks."""

    seen: list = []  # noqa: RUF012

    def __init__(self, dropout):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(64, 10)

    def forward(self, x):
        if self.training:
            Masks.seen.append(self.dropout(torch.ones(len(x), 64)))
        return self.linear(x.flatten(1))


def masks(shape, n_classes, dropout=0.0):
    Masks.seen = []
    return Masks(dropout)


def test_dropout_of_a_step_does_not_depend_on_the_steps_before():
    config = trial(model__name=f"{__name__}:masks", model__widths=None, regularize__dropout=0.5)
    third = next(itertools.islice(train(config), 3, None))
    state = copy.deepcopy(third.state())
    list(train(config))
    whole = Masks.seen
    list(train(config, state=state))
    assert all(itertools.starmap(torch.equal, zip(whole[3:], Masks.seen, strict=True)))
    assert not torch.equal(whole[0], whole[1])


# --- resume ---------------------------------------------------------------------------------


# Every optimizer meets every schedule, augmentation and amount of dropout; models take turns.
RESUMED = [
    {
        "optim.name": optimizer,
        "optim.lr": 0.01,
        "optim.schedule.name": schedule,
        "optim.schedule.warmup_epochs": 0.5 * (row % 2),
        "augment.name": augment,
        "regularize.dropout": dropout,
        "model": ("fc", "cnn", "vit")[(row + column) % 3],
        "seed": 10 * row + column,
    }
    for row, optimizer in enumerate(OPTIMIZERS)
    for column, (schedule, augment, dropout) in enumerate(
        [
            ("constant", "none", 0.0),
            ("cosine", "shift", 0.0),
            ("cosine", "none", 0.3),
            ("constant", "shift", 0.3),
        ]
    )
]
SMALL = {
    "fc": {"model.widths": [16]},
    "cnn": {"model.widths": [4, 4]},
    "vit": {"model.patch": 4, "model.dim": 8, "model.heads": 2, "model.mlp": 8, "model.depth": 1},
}


@pytest.mark.parametrize("case", RESUMED, ids=lambda case: f"{case['optim.name']}-{case['seed']}")
def test_a_trial_resumed_at_any_step_gives_the_same_bits(case, tmp_path):
    case = dict(case)
    model = case.pop("model")
    config = trial(
        **{"model.widths": None, "model.name": model, **SMALL[model], **case},
        **{"optim.batch_size": 400, "record.schedule": "log", "regularize.weight_decay": 1e-3},
    )
    whole, paths = [], []
    for moment in train(config):
        whole.append(moment)
        paths.append(tmp_path / f"{moment.step}.pt")
        checkpoint.save(paths[-1], moment.state())
    random = np.random.default_rng(config.seed)
    for step in {0, *random.choice(len(whole), 2, replace=False).tolist()}:
        again = list(train(config, state=checkpoint.load(paths[step])))
        assert all(itertools.starmap(same, zip(whole[step + 1 :], again, strict=True)))
        if again:
            checkpoint.save(tmp_path / "again.pt", again[-1].state())
            first, second = checkpoint.load(paths[-1]), checkpoint.load(tmp_path / "again.pt")
            assert same_weights(first["model"], second["model"])


def test_a_finished_trial_has_nothing_to_resume():
    *_, last = train(trial())
    assert list(train(trial(), state=last.state())) == []


def test_a_state_can_be_resumed_from_twice():
    config = trial(optim__name="adam")
    state = copy.deepcopy(next(itertools.islice(train(config), 2, None)).state())
    first, second = (list(train(config, state=state)) for _ in range(2))
    assert all(itertools.starmap(same, zip(first, second, strict=True)))


def test_another_trials_state_is_refused():
    state = next(train(trial(seed=1))).state()
    with pytest.raises(CheckpointError, match="the checkpoint is of trial `t"):
        train(trial(seed=2), state=state)


def test_a_state_of_another_network_is_refused():
    state = next(train(trial(model__widths=[8]))).state()
    state["trial_id"] = trial().trial_id
    with pytest.raises(CheckpointError, match="does not fit the network") as caught:
        train(trial(), state=state)
    assert caught.value.exit_code == 5


# --- divergence -----------------------------------------------------------------------------


def exploding(**changes):
    """Finite for a while, then not."""
    return trial(
        optim__lr=1e30, epochs=5, model__norm="none", record__train="predictions", **changes
    )


def test_a_diverged_trial_ends_there_and_records_nothing_that_is_not_finite():
    moments = list(train(exploding()))
    assert [moment.diverged for moment in moments] == [False] * (len(moments) - 1) + [True]
    last = moments[-1]
    assert last.step < 15
    assert (last.snapshot, dict(last.metrics), dict(last.log_probs)) == (None, {}, {})
    for moment in recorded(moments):
        assert all(np.isfinite(probs).all() for probs in moment.log_probs.values())
        assert all(math.isfinite(value) for value in moment.metrics.values())


def test_divergence_is_seen_at_an_epochs_end_when_nothing_is_recorded_there():
    *_, last = train(exploding(record__schedule=[5]))
    assert last.diverged
    assert last.epoch in (1.0, 2.0)


def test_a_diverging_trial_resumed_anywhere_ends_the_same():
    config = exploding(record__schedule=[5])
    moments, states = [], []
    for moment in train(config):
        moments.append(moment)
        states.append(copy.deepcopy(moment.state()))
    for step, state in enumerate(states):
        again = list(train(config, state=state))
        assert all(itertools.starmap(same, zip(moments[step + 1 :], again, strict=True)))
    assert states[-1]["diverged"] is True
    assert states[0]["diverged"] is False


def test_a_network_that_starts_non_finite_has_diverged_before_training():
    (only,) = train(trial(init__name="normal", init__std=1e38, model__norm="none"))
    assert (only.step, only.snapshot, only.diverged) == (0, None, True)


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


def test_every_axis_takes_a_plug_in_by_its_import_path():
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


def test_errors_of_building_come_before_the_first_moment():
    with pytest.raises(ConfigError, match=r"model.widths: `\[0\]`"):
        train(trial(model__widths=[0]))
