"""What a trial costs, against counts by hand and against training it."""

import pytest
from torch import nn

from sweeper.config import TrialConfig
from sweeper.train import check, planned_steps, train
from sweeper.train.cost import cost_of
from sweeper.train.dry_run import forward_flops


def trial(**changes):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd"}
    flat |= {"optim.lr": 0.1, "optim.batch_size": 100, "epochs": 3}
    return TrialConfig.from_flat(flat | {k.replace("__", "."): v for k, v in changes.items()})


# --- the network ------------------------------------------------------------------------------


def test_a_fully_connected_network_is_counted_as_by_hand():
    # Digits: 64 inputs, 10 classes. A weight is a product and a sum for each sample.
    assert forward_flops(trial(model__widths=[32, 16])) == 2 * (64 * 32 + 32 * 16 + 16 * 10)
    assert forward_flops(trial(model__widths=[])) == 2 * 64 * 10


def test_a_convolutional_network_is_counted_as_by_hand():
    # 3×3 filters; 8×8 pixels of 1 channel to 4 channels, then with stride 2 to 4×4 of 6.
    by_hand = 2 * (64 * 4 * 1 * 9 + 16 * 6 * 4 * 9 + 6 * 10)
    assert forward_flops(trial(model__name="cnn", model__widths=[4, 6])) == by_hand
    assert forward_flops(trial(model__name="cnn", model__widths=[4, 6], channels_last=True)) == (
        by_hand
    )


def test_attention_is_counted_as_by_hand():
    dim, mlp, n_tokens, depth = 16, 24, 1 + 16, 3  # 8×8 pixels in patches of 2×2
    changes = {"dim": dim, "patch": 2, "depth": depth, "heads": 2, "mlp": mlp}
    config = trial(model__name="vit", **{f"model__{key}": item for key, item in changes.items()})
    layers = n_tokens * dim * (3 * dim + dim + 2 * mlp)
    products = 2 * n_tokens * n_tokens * dim
    ends = 16 * 4 * dim + dim * 10
    assert forward_flops(config) == 2 * (depth * (layers + products) + ends)


def test_regularization_by_chance_changes_no_count():
    plain = trial(model__name="vit")
    random = trial(model__name="vit", regularize__stochastic_depth=0.9, regularize__dropout=0.5)
    assert forward_flops(random) == forward_flops(plain)


class Looking(nn.Linear):
    """Looks at values, which only exist where they are computed."""

    def forward(self, x):
        return super().forward(x.flatten(1)) * (1 if x.sum() >= 0 else -1)


def looking(shape, n_classes):
    return Looking(64, n_classes)


def failing(shape, n_classes):
    raise RuntimeError("no network")


def test_where_operations_cannot_be_counted_parameters_are():
    assert forward_flops(trial(model__name=f"{__name__}:looking")) == 2 * (64 * 10 + 10)


def test_a_network_that_cannot_be_built_has_no_work_and_its_steps_all_the_same():
    cost = cost_of(trial(model__name=f"{__name__}:failing"))
    assert (cost.n_steps, cost.n_snapshots, cost.work) == (45, 4, 0)


n_built = 0


def counted(shape, n_classes):
    global n_built
    n_built += 1
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))


def test_operations_are_counted_on_the_pass_that_checks():
    trials = [trial(model__name=f"{__name__}:counted", seed=seed) for seed in range(5)]
    check(trials[0])
    before = n_built
    assert {cost_of(config).work for config in trials} == {cost_of(trials[0]).work}
    assert cost_of(trials[0]).work > 0
    assert n_built == before


# --- the trial --------------------------------------------------------------------------------

FLOPS = 2 * 64 * 10


def work_in_samples(**changes):
    return cost_of(trial(model__widths=[], **changes)).work / FLOPS


def test_training_counts_three_passes_and_each_snapshot_one():
    # 1,437 samples to train on and 360 to test, 3 epochs, recorded before them and after each.
    trained = 3 * 3 * 1437
    assert work_in_samples(record__train="none") == trained + 4 * 360
    assert work_in_samples(record__train="metrics") == trained + 4 * (360 + 1437)
    assert work_in_samples(record__train="predictions") == trained + 4 * (360 + 1437)
    assert work_in_samples(record__train="none", record__schedule=[0]) == trained + 2 * 360


def test_a_single_left_over_sample_is_not_trained_on():
    changes = {"data__subset": 101, "optim__batch_size": 50, "record__train": "none"}
    assert work_in_samples(**changes) == 3 * 3 * 100 + 4 * 360
    assert work_in_samples(**changes | {"data__subset": 102}) == 3 * 3 * 102 + 4 * 360


def test_a_corner_counts_too():
    corner = {"init__corner__fit": "subset", "init__corner__samples": 40, "init__corner__epochs": 7}
    plain = trial(record__schedule=[0], record__train="none")
    config = trial(record__schedule=[0], record__train="none", **corner)
    cost, without = cost_of(config), cost_of(plain)
    assert cost.n_steps == without.n_steps + 7
    assert cost.n_snapshots == len(planned_steps(config))
    n_more = 3 * 7 * 40 + 360 * (cost.n_snapshots - without.n_snapshots)
    assert cost.work - without.work == pytest.approx(forward_flops(config) * n_more)


n_seen = {True: 0, False: 0}


class Seeing(nn.Module):
    """Counts the samples that pass, in training and not."""

    def __init__(self, n_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))

    def forward(self, x):
        n_seen[self.training] += len(x)
        return self.layers(x)


def seeing(shape, n_classes):
    return Seeing(n_classes)


def test_the_work_is_that_of_the_passes_that_training_makes():
    corner = {"init__corner__fit": "random-labels", "init__corner__accuracy": 0.0}
    for changes in ({}, {"data__subset": 301}, {"init__corner__epochs": 2, **corner}):
        config = trial(model__name=f"{__name__}:seeing", record__schedule="log", **changes)
        cost = cost_of(config)
        n_seen.update({True: 0, False: 0})
        moments = list(train(config))
        assert cost.n_steps == moments[-1].step
        assert cost.n_snapshots == sum(moment.snapshot is not None for moment in moments)
        n_evaluated = n_seen[False] - (1437 if "init__corner__epochs" in changes else 0)
        assert cost.work == FLOPS * (3 * n_seen[True] + n_evaluated)
