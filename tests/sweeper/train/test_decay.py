"""Which of the weights decay."""

import itertools

import pytest
import torch
from torch import nn

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.sections import OptimConfig, RegularizeConfig
from sweeper.train.build import build_model, build_optimizer
from sweeper.train.optim import parameter_groups

LR, DECAY = 0.1, 0.01
AFFINE = {"allcnn", "cnn", "convmixer", "fc", "wrn-10-4-8"}  # networks whose norms may have weights


class Residual(nn.Module):
    """What wide residual networks are made of, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.activation = nn.PReLU(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.embedding = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 10)


def built(name, **options):
    flat = {"data.name": "digits", "model.name": name, "optim.name": "sgd", "optim.lr": 0.1}
    flat |= {f"model.{key}": value for key, value in options.items()}
    config = TrialConfig.from_flat(flat | {"epochs": 1})
    return build_model(config.data, config.model, config.regularize, seed=0)


def decayed(model):
    """The names of the parameters in the first group; the second holds all others."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, DECAY, "weights")
    found = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
    assert sorted(itertools.chain(*found)) == sorted(names.values())
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    return found[0]


def test_weights_of_layers_decay_and_nothing_else():
    assert decayed(Residual()) == [
        "first.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("name", ["allcnn", "cnn", "convmixer", "fc", "vit", "wrn-10-4-8"])
def test_of_our_networks_matrices_and_filters_decay_but_not_tokens_and_positions(name):
    model = built(name, **({"affine": True} if name in AFFINE else {}))
    kept = ("token", "position")
    expected = [
        key
        for key, parameter in model.named_parameters()
        if parameter.ndim >= 2 and not any(word in key for word in kept)
    ]
    assert decayed(model) == expected
    assert len(expected) < len(list(model.parameters()))


def test_a_vit_has_a_token_and_positions_that_a_rule_of_dimensions_alone_would_let_decay():
    names = [key for key, found in built("vit").named_parameters() if found.ndim >= 2]
    assert {key.rpartition(".")[2] for key in names} >= {"token", "positions"}


@pytest.mark.parametrize("name", ["sgd", "adamw", "torch/SGD", "torch/NAdam"])
def test_what_does_not_decay_stays_as_it_is_without_gradients(name):
    options = {"decoupled_weight_decay": True} if name == "torch/NAdam" else {}
    config = OptimConfig(name=name, lr=LR, options=tuple(options.items()))
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = build_optimizer(
        config, RegularizeConfig(weight_decay=DECAY, decay="weights"), model
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    names = decayed(model)
    for found, parameter in model.named_parameters():
        expected = torch.full_like(parameter, 1 - LR * DECAY if found in names else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=0)
        assert found in names or torch.equal(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("weight_decay", "decay"), [(DECAY, "all"), (0.0, "all"), (0.0, "weights")]
)
def test_without_exceptions_there_is_one_group_in_the_order_of_the_model(weight_decay, decay):
    model = Residual()
    regularize = RegularizeConfig(weight_decay=weight_decay, decay=decay)
    optimizer = build_optimizer(OptimConfig(name="adam", lr=LR), regularize, model)
    (group,) = optimizer.param_groups
    assert [id(found) for found in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["weight_decay"], group["initial_lr"]) == (weight_decay, LR)


def test_a_weight_that_two_layers_share_is_in_one_group():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[0].weight = model[1].weight
    assert decayed(model) == ["0.weight"]


def test_a_model_of_which_nothing_would_decay_is_refused():
    with pytest.raises(ConfigError, match=r"regularize.decay: `weights`, but the model has no"):
        parameter_groups(nn.LayerNorm(3), DECAY, "weights")
