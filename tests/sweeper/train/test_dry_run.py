"""What is refused before anything is trained."""

import time

import pytest
import torch
from torch import nn

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.train import check


def trial(**changes):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd"}
    flat |= {"optim.lr": 0.1, "epochs": 1}
    return TrialConfig.from_flat(flat | changes)


def raising(shape, n_classes):
    raise RuntimeError("first line\nsecond line")


def not_a_model(shape, n_classes):
    return 3


def too_narrow(shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes - 1))


class Untrained(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 10)


def untrained(shape, n_classes):
    return Untrained()


class Computed(nn.Linear):
    """A layer that has, as old weight norm leaves it, a tensor computed from its parameters."""

    def __init__(self):
        super().__init__(64, 10)
        self.computed = self.weight * 2

    def forward(self, x):
        return super().forward(x.flatten(1))


def computed(shape, n_classes):
    return Computed()


def unshaped(shape, n_classes):
    return nn.Identity()


def not_an_optimizer(params, lr, weight_decay):
    return params


def refusing(params, lr, weight_decay, nu=0.5):
    raise ConfigError("nu", f"`{nu}`", "1 is needed")


def endless(progress):
    return float("nan")


def nothing(progress):
    return None


def cropping(x, generator):
    return x[..., 1:]


def broken_init(model, generator):
    model.no_such_layer  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.batch_size": 1438}, "optim.batch_size: `1438`; at most the 1437 training samples"),
        ({"model.widths": [0]}, r"model.widths: `\[0\]`; whole numbers at least 1"),
        ({"model.name": "vit", "model.patch": 3}, "model.patch: `3`; a divisor"),
        ({"model.name": "vit", "model.heads": 5}, "model.heads: `5`; a divisor"),
        (
            {"model.name": ":computed", "regularize.ema": 0.9},
            "regularize.ema: `0.9`, but the network cannot be copied: Only Tensors created",
        ),
        ({"channels_last": True}, "channels_last: `true`, but model `fc` has no filters"),
        ({"model.name": "cnn", "model.widths": []}, r"model.widths: `\[\]`"),
        ({"optim.momentum": 1.5}, "optim.momentum: `1.5`; a number at least 0 and below 1"),
        ({"optim.name": "adam", "optim.eps": -1}, "optim.eps: `-1.0`"),
        ({"augment.name": "shift", "augment.pixels": 8}, "augment.pixels: `8`"),
        ({"init.name": "normal", "init.std": -1}, "init.std: `-1.0`"),
        ({"optim.batch_size": 1}, "model.name: model `fc` raised ValueError: Expected more than 1"),
        ({"model.name": ":raising"}, "model.name: .* raised RuntimeError: first line$"),
        ({"model.name": ":not_a_model"}, "model.name: .* returned a int; a `torch.nn.Module`"),
        ({"model.name": ":too_narrow"}, r"gives `\(2, 9\)` for 2 samples; logits of shape \(2, 10"),
        ({"model.name": ":unshaped"}, r"gives `\(2, 1, 8, 8\)`"),
        ({"model.name": ":untrained"}, "has nothing to train"),
        ({"optim.name": ":not_an_optimizer"}, "optim.name: .* returned a list; a `torch.optim"),
        ({"optim.name": ":refusing"}, "optim.nu: `0.5`; 1 is needed"),
        ({"optim.schedule.name": ":endless"}, "optim.schedule.name: .* gives nan at progress 0"),
        ({"optim.schedule.name": ":nothing"}, "optim.schedule.name: .* raised TypeError"),
        ({"augment.name": ":cropping"}, r"augment.name: .* makes `\(2, 1, 8, 7\)` of a batch"),
        ({"init.name": ":broken_init"}, "init.name: .* raised AttributeError"),
        ({"model.name": "vit", "model.dim": 10**12}, "model.name: model `vit` raised RuntimeError"),
    ],
)
def test_a_trial_that_cannot_be_trained_is_refused_by_its_key(changes, message):
    changes = {
        key: __name__ + value if isinstance(value, str) and value[0] == ":" else value
        for key, value in changes.items()
    }
    with pytest.raises(ConfigError, match=message):
        check(trial(**changes))


@pytest.mark.parametrize("model", ["fc", "cnn", "vit"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-nesterov", "adam", "adamw"])
def test_the_built_ins_pass(model, optimizer):
    changes = {"model.name": model, "optim.name": optimizer, "optim.schedule.name": "cosine"}
    check(trial(**changes, **{"augment.name": "shift", "init.name": "kaiming"}))


def test_checking_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    check(trial(**{"model.name": "vit", "regularize.dropout": 0.123}))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_augmentation_that_makes_another_size_is_told_the_right_one():
    with pytest.raises(ConfigError, match=r"makes `\(2, 1, 224, 224\)`") as caught:
        check(trial(**{"augment.name": "resized-crop-flip"}))
    assert caught.value.hint == "`augment.size: 8`"
    check(trial(**{"augment.name": "resized-crop-flip", "augment.size": 8}))


n_built = 0


def counted(shape, n_classes):
    global n_built
    n_built += 1
    raise RuntimeError("too slow to fail twice")


def test_a_network_that_is_refused_is_built_once():
    """To name the values at fault, many trials of one network are checked."""
    for seed in range(5):
        with pytest.raises(ConfigError, match="too slow to fail twice") as caught:
            check(trial(**{"model.name": f"{__name__}:counted", "seed": seed}))
        assert caught.value.where == "model.name"
    assert n_built == 1


def test_trials_that_share_their_parts_are_checked_at_little_cost():
    trials = [trial(seed=seed) for seed in range(200)]
    check(trials[0])
    start = time.process_time()
    for config in trials:
        check(config)
    assert (time.process_time() - start) / len(trials) < 1e-3
