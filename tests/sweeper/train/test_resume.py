"""Randomness, resume and divergence: what must not depend on the past."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.errors import CheckpointError
from sweeper.registry import BUILT_IN
from sweeper.train import checkpoint
from sweeper.train.build import build_model, draw_weights
from sweeper.train.loop import train
from tests.pairs import pairwise


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


# --- randomness -----------------------------------------------------------------------------


def test_the_same_trial_twice_gives_the_same_bits(trial):
    config = trial(regularize__dropout=0.2, augment__name="shift")
    torch.manual_seed(1)
    first = list(train(config))
    torch.manual_seed(2)
    assert all(itertools.starmap(same, zip(first, train(config), strict=True)))


@pytest.mark.parametrize("init", ["torch", "kaiming", "xavier", "normal"])
def test_networks_start_from_their_seed(trial, init):
    starts = [weights(next(train(trial(init__name=init, seed=seed)))) for seed in (0, 0, 1)]
    assert same_weights(starts[0], starts[1])
    assert not torch.equal(starts[0]["1.weight"], starts[2]["1.weight"])


def test_building_a_network_leaves_the_global_generator_alone(trial):
    config, before = trial(), torch.get_rng_state()
    draw_weights(
        build_model(config.data, config.model, config.regularize, seed=5), config.init, seed=5
    )
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


def test_dropout_of_a_step_does_not_depend_on_the_steps_before(trial):
    config = trial(model__name=f"{__name__}:masks", model__widths=None, regularize__dropout=0.5)
    third = next(itertools.islice(train(config), 3, None))
    state = copy.deepcopy(third.state())
    list(train(config))
    whole = Masks.seen
    list(train(config, state=state))
    assert all(itertools.starmap(torch.equal, zip(whole[3:], Masks.seen, strict=True)))
    assert not torch.equal(whole[0], whole[1])


# --- resume ---------------------------------------------------------------------------------


# Every two values of different axes meet in some trial.
NETWORKS = {
    "fc": {"model.widths": [16]},
    "cnn": {"model.widths": [4, 4]},
    "vit": {"model.patch": 4, "model.dim": 8, "model.heads": 2, "model.mlp": 8, "model.depth": 1},
}
RESUMED = pairwise(
    {
        "optim.name": [*BUILT_IN["optim"], "torch/NAdam", "torch/Rprop", "torch/ASGD"],
        "optim.schedule.name": [*BUILT_IN["schedule"]],
        "optim.schedule.warmup_epochs": [0.0, 0.5],
        "optim.clip": [None, 0.5],
        "regularize.decay": ["all", "weights"],
        "augment.name": ["none", "shift", "full"],
        "model.name": [*NETWORKS],
        "regularize": [
            {},
            {"regularize.dropout": 0.3},
            {"regularize.mixup": 0.4},
            {"regularize.cutmix": 1.0, "regularize.mixup": 0.2},
            {"regularize.label_smoothing": 0.1},
        ],
        "regularize.ema": [0.0, 0.9],
        "init.corner": [
            {},
            {"init.corner.fit": "random-labels"},
            {"init.corner.fit": "subset", "init.corner.samples": 30},
        ],
        "precision": ["float32", "bf16", "fp16"],
        "channels_last": [False, True],
        "data.label_noise": [0.0, 0.2],
    }
)


def flat_of(case):
    flat = dict(case)
    flat |= flat.pop("regularize") | NETWORKS[flat["model.name"]]
    corner = flat.pop("init.corner")
    if corner:
        flat |= corner | {"init.corner.epochs": 1, "init.corner.accuracy": 0}
    if flat["optim.name"] != "torch/Rprop":  # it has none
        flat["regularize.weight_decay"] = 1e-3
    return flat


@pytest.mark.parametrize("row", range(len(RESUMED)))
def test_a_trial_resumed_at_any_step_gives_the_same_bits(trial, row, tmp_path):
    config = trial(
        **{"model.widths": None, "optim.lr": 0.01, "seed": row, **flat_of(RESUMED[row])},
        **{"optim.batch_size": 400, "record.schedule": "log", "record.train": "none"},
    )
    whole, paths = [], []
    for moment in train(config):
        whole.append(moment)
        paths.append(tmp_path / f"{moment.step}.pt")
        paths[-1].write_bytes(checkpoint.to_bytes(moment.state()))
    assert not whole[-1].diverged
    random = np.random.default_rng(config.seed)
    for step in {0, *random.choice(len(whole), 2, replace=False).tolist()}:
        again = list(train(config, state=checkpoint.load(paths[step])))
        assert all(itertools.starmap(same, zip(whole[step + 1 :], again, strict=True)))
        if again:
            (tmp_path / "again.pt").write_bytes(checkpoint.to_bytes(again[-1].state()))
            first, second = checkpoint.load(paths[-1]), checkpoint.load(tmp_path / "again.pt")
            assert same_weights(first["model"], second["model"])


def test_a_finished_trial_has_nothing_to_resume(trial):
    *_, last = train(trial())
    assert list(train(trial(), state=last.state())) == []


def test_a_state_can_be_resumed_from_twice(trial):
    config = trial(optim__name="adam")
    state = copy.deepcopy(next(itertools.islice(train(config), 2, None)).state())
    first, second = (list(train(config, state=state)) for _ in range(2))
    assert all(itertools.starmap(same, zip(first, second, strict=True)))


def test_another_trials_state_is_refused(trial):
    state = next(train(trial(seed=1))).state()
    with pytest.raises(CheckpointError, match="the checkpoint is of trial `t"):
        train(trial(seed=2), state=state)


def test_a_state_of_another_network_is_refused(trial):
    state = next(train(trial(model__widths=[8]))).state()
    state["trial_id"] = trial().trial_id
    with pytest.raises(CheckpointError, match="does not fit the network") as caught:
        train(trial(), state=state)
    assert caught.value.exit_code == 5


class Asleep(nn.Module):
    """A linear classifier with dropout that its constructor left in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5).eval(), nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(self.dropout(x.flatten(1)))


def asleep(shape, n_classes):
    return Asleep()


def test_a_part_of_a_network_left_in_evaluation_mode_makes_no_difference_to_a_resume(trial):
    config = trial(model__name=f"{__name__}:asleep", model__widths=None)
    states = []
    for whole in train(config):
        states.append(copy.deepcopy(whole.state()))
    *_, resumed = train(config, state=states[1])
    assert same(whole, resumed)


# --- divergence -----------------------------------------------------------------------------


@pytest.fixture
def exploding(trial):
    """A function of changes to a trial that is finite for a while, then not."""
    return lambda **changes: trial(
        optim__lr=1e30, epochs=5, model__norm="none", record__train="predictions", **changes
    )


def test_a_diverged_trial_ends_there_and_records_nothing_that_is_not_finite(exploding):
    moments = list(train(exploding()))
    assert [moment.diverged for moment in moments] == [False] * (len(moments) - 1) + [True]
    last = moments[-1]
    assert last.step < 15
    assert (last.snapshot, dict(last.metrics), dict(last.log_probs)) == (None, {}, {})
    for moment in recorded(moments):
        assert all(np.isfinite(probs).all() for probs in moment.log_probs.values())
        assert all(math.isfinite(value) for value in moment.metrics.values())


def test_divergence_is_seen_at_an_epochs_end_when_nothing_is_recorded_there(exploding):
    *_, last = train(exploding(record__schedule=[5]))
    assert last.diverged
    assert last.epoch in (1.0, 2.0)


def test_a_diverging_trial_resumed_anywhere_ends_the_same(exploding):
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


def test_a_network_that_starts_non_finite_has_diverged_before_training(trial):
    config = trial(init__name="normal", init__std=1e38, model__norm="none")
    (only,) = train(config)
    assert (only.step, only.snapshot, only.diverged) == (0, None, True)
    assert list(train(config, state=only.state())) == []
