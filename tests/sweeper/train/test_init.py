"""Initialisations."""

import math

import pytest
import torch
from torch import nn

from sweeper.errors import ConfigError
from sweeper.train.init import kaiming, normal, torch_default, xavier


class Everything(nn.Module):
    """One layer of each kind that is drawn, and one that is not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(300, 200)
        self.convolution = nn.Conv2d(40, 60, 3)
        self.attention = nn.MultiheadAttention(120, 4)
        self.norm = nn.LayerNorm(50)
        self.token = nn.Parameter(torch.full((5,), 7.0))


def drawn(init, seed=0, **options):
    model = Everything()
    init(model, torch.Generator().manual_seed(seed), **options)
    return model


# name of the weight: fan in, fan out
FANS = {
    "linear.weight": (300, 200),
    "convolution.weight": (40 * 9, 60 * 9),
    "attention.in_proj_weight": (120, 360),
    "attention.out_proj.weight": (120, 120),
}


@pytest.mark.parametrize(
    ("init", "options", "variance"),
    [
        (kaiming, {}, lambda fan_in, fan_out: 2 / fan_in),
        (xavier, {}, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        (normal, {"std": 0.3}, lambda fan_in, fan_out: 0.09),
    ],
)
def test_weights_have_the_variance_of_the_formula(init, options, variance):
    weights = dict(drawn(init, **options).named_parameters())
    for name, fans in FANS.items():
        weight = weights[name].detach().double()
        expected, n = variance(*fans), weight.numel()
        assert float(weight.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / n))
        assert abs(float(weight.mean())) < 5 * math.sqrt(expected / n)


def test_xavier_is_uniform_and_kaiming_is_not():
    bound = math.sqrt(6 / 500)
    assert float(drawn(xavier).linear.weight.detach().abs().max()) <= bound
    assert float(drawn(kaiming).linear.weight.detach().abs().max()) > bound


@pytest.mark.parametrize("init", [kaiming, xavier, normal])
def test_biases_are_zeroed_and_norms_and_tokens_stay(init):
    model = drawn(init)
    biases = [
        model.linear.bias,
        model.convolution.bias,
        model.attention.in_proj_bias,
        model.attention.out_proj.bias,
    ]
    assert all(not bias.any() for bias in biases)
    assert torch.equal(model.norm.weight, torch.ones(50))
    assert torch.equal(model.token, torch.full((5,), 7.0))


@pytest.mark.parametrize("init", [kaiming, xavier, normal])
def test_weights_follow_from_the_generator_alone(init):
    first, again, other = drawn(init, 1), drawn(init, 1), drawn(init, 2)
    for name in FANS:
        weight = first.get_parameter(name)
        assert torch.equal(weight, again.get_parameter(name))
        assert not torch.equal(weight, other.get_parameter(name))


def test_torch_default_leaves_what_the_constructor_drew():
    torch.manual_seed(0)
    expected = Everything().state_dict()
    torch.manual_seed(0)
    found = drawn(torch_default).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_attention_with_separate_weights_is_drawn_too():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, bias=False)
    normal(attention, torch.Generator().manual_seed(0), std=0.0)
    assert not any(parameter.any() for parameter in attention.parameters())


def test_a_negative_deviation_is_refused():
    with pytest.raises(ConfigError, match=r"std: `-0.1`; a number at least 0"):
        drawn(normal, std=-0.1)


@pytest.mark.parametrize("init", [kaiming, xavier, normal])
def test_a_model_without_layers_to_draw_is_refused(init):
    with pytest.raises(ConfigError, match="no linear, convolutional or attention layer"):
        init(nn.LayerNorm(3), torch.Generator())
