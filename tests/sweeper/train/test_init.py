"""Initialisations."""

import copy
import hashlib
import math

import pytest
import torch
from torch import nn

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.train import checkpoint as checkpoints
from sweeper.train.build import build_model, draw_weights
from sweeper.train.init import (
    checkpoint,
    kaiming,
    normal,
    orthogonal,
    perturbed,
    torch_default,
    uniform,
    xavier,
)

DRAWING = [kaiming, xavier, normal, uniform, orthogonal]


class Everything(nn.Module):
    """One layer of each kind that is drawn, and one that is not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(300, 200)
        self.convolution = nn.Conv2d(40, 60, 3)
        self.attention = nn.MultiheadAttention(120, 4)
        self.norm = nn.LayerNorm(50)
        self.token = nn.Parameter(torch.full((5,), 7.0))


def drawn(init, seed=0, /, **options):
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
        (uniform, {"scale": 0.3}, lambda fan_in, fan_out: 0.03),
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


def test_uniform_weights_fill_their_interval():
    weight = drawn(uniform, scale=0.3).linear.weight.detach()
    assert 0.2999 < float(weight.abs().max()) <= 0.3
    counts = torch.histc(weight, bins=10, min=-0.3, max=0.3)
    expected = weight.numel() / 10
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_orthogonal_weights_have_singular_values_equal_to_the_gain(gain):
    weights = dict(drawn(orthogonal, gain=gain).named_parameters())
    for name in FANS:
        matrix = weights[name].detach().double().flatten(1)
        rows, columns = matrix.shape
        product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        expected = gain**2 * torch.eye(min(rows, columns), dtype=torch.float64)
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-5)


def test_orthogonal_weights_prefer_no_sign():
    signs = [float(drawn(orthogonal, seed).linear.weight[0, 0].detach()) > 0 for seed in range(30)]
    assert 5 <= sum(signs) <= 25


@pytest.mark.parametrize(
    ("init", "torchs_own"),
    [
        (kaiming, lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g)),
        (xavier, lambda w, g: nn.init.xavier_uniform_(w, generator=g)),
        (normal, lambda w, g: nn.init.normal_(w, std=0.05, generator=g)),
        (uniform, lambda w, g: nn.init.uniform_(w, -0.05, 0.05, generator=g)),
        (orthogonal, lambda w, g: nn.init.orthogonal_(w, generator=g)),
    ],
)
def test_layers_are_drawn_by_torchs_own_function_in_order_attention_last(init, torchs_own):
    found, expected = dict(drawn(init, 3).named_parameters()), Everything()
    generator = torch.Generator().manual_seed(3)
    order = [
        "linear.weight",
        "convolution.weight",
        "attention.out_proj.weight",
        "attention.in_proj_weight",
    ]
    for name in order:
        weight = expected.get_parameter(name)
        torchs_own(weight, generator)
        assert torch.equal(found[name], weight)


@pytest.mark.parametrize("init", DRAWING)
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


@pytest.mark.parametrize("init", DRAWING)
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


@pytest.mark.parametrize(
    ("init", "options", "message"),
    [
        (normal, {"std": -0.1}, "std: `-0.1`; a number at least 0"),
        (uniform, {"scale": -0.1}, "scale: `-0.1`; a number at least 0"),
        (orthogonal, {"gain": -1.0}, "gain: `-1.0`"),
        (perturbed, {"std": -1.0}, "std: `-1.0`"),
        (perturbed, {"seed": -1}, "seed: `-1`"),
    ],
)
def test_options_out_of_range_are_refused(init, options, message):
    with pytest.raises(ConfigError, match=message):
        drawn(init, **options)


@pytest.mark.parametrize("init", DRAWING)
def test_a_model_without_layers_to_draw_is_refused(init):
    with pytest.raises(ConfigError, match="no linear, convolutional or attention layer"):
        init(nn.LayerNorm(3), torch.Generator())


# --- a shared perturbation --------------------------------------------------------------------


def network(seed, init, /, **options):
    """A small convolutional network as a trial of that seed starts with it."""
    flat = {"data.name": "digits", "model.name": "cnn", "optim.name": "sgd", "optim.lr": 0.1}
    flat |= {"epochs": 1, "seed": seed, "init.name": init}
    config = TrialConfig.from_flat(flat | {f"init.{key}": value for key, value in options.items()})
    model = build_model(config.data, config.model, config.regularize, seed)
    draw_weights(model, config.init, seed)
    return dict(model.named_parameters())


def perturbation(seed, /, **options):
    """What is added to each parameter of a trial of that seed."""
    found, default = network(seed, "perturbed", **options), network(seed, "torch")
    return {name: (found[name] - default[name]).detach() for name in default}


def test_trials_of_any_seed_share_a_perturbation():
    first, other = perturbation(1, std=0.5, seed=7), perturbation(2, std=0.5, seed=7)
    for name, noise in first.items():
        torch.testing.assert_close(noise, other[name], rtol=0, atol=1e-6)
    again, default = network(1, "perturbed", seed=7), network(2, "perturbed", seed=7)
    assert not torch.equal(again["0.weight"], default["0.weight"])


def test_another_seed_is_another_perturbation():
    first, other = perturbation(1, seed=7), perturbation(1, seed=8)
    for name, noise in first.items():
        assert not torch.isclose(noise, other[name]).any()


def test_a_perturbation_is_normal_and_changes_biases_and_norms_too():
    noise = perturbation(3, std=0.5)
    assert all(values.ne(0).all() for values in noise.values())
    together = torch.cat([values.flatten() for values in noise.values()]).double()
    n = together.numel()
    assert abs(float(together.mean())) < 5 * 0.5 / math.sqrt(n)
    assert float(together.var()) == pytest.approx(0.25, rel=5 * math.sqrt(2 / n))
    within = float((together.abs() < 0.5).double().mean())
    assert within == pytest.approx(0.6827, abs=5 * 0.5 / math.sqrt(n))


def test_perturbing_by_nothing_is_the_default_bit_for_bit():
    found, default = network(4, "perturbed", std=0.0), network(4, "torch")
    assert all(torch.equal(found[name], default[name]) for name in default)


# --- from a file ------------------------------------------------------------------------------


def saved(tmp_path, content):
    """A file of that content and its SHA-256."""
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def loaded(options):
    model = Everything()
    checkpoint(model, torch.Generator(), **options)
    return model.state_dict()


def test_weights_and_buffers_come_back_from_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    options = saved(tmp_path, model.state_dict())
    found = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    checkpoint(found, torch.Generator(), **options)
    expected = model.state_dict()
    assert expected["1.num_batches_tracked"] == 1
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.state_dict().items())
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_weights_come_back_from_a_checkpoint_of_ours(tmp_path):
    expected, path = Everything().state_dict(), tmp_path / "checkpoint.pt"
    state = {"lineage": [], "state": {"step": 3, "model": expected}}
    path.write_bytes(checkpoints.to_bytes(state))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = loaded({"path": str(path), "sha256": digest[:12]})
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_without_its_content_named_is_refused_with_what_to_write(tmp_path):
    options = saved(tmp_path, Everything().state_dict())
    with pytest.raises(ConfigError, match="sha256: missing") as caught:
        loaded({"path": options["path"]})
    written = caught.value.hint.partition('init.sha256: "')[2].partition('"')[0]
    assert options["sha256"].startswith(written)
    loaded(options | {"sha256": written})


def test_a_file_of_other_content_is_refused(tmp_path):
    options = saved(tmp_path, Everything().state_dict())
    saved(tmp_path, drawn(normal).state_dict())
    with pytest.raises(ConfigError, match=rf"sha256: `{options['sha256']}`, but `.*` has `"):
        loaded(options)


@pytest.mark.parametrize("given", ["0" * 11, "0" * 65, "A" * 12, "0123456789zz", " " * 12])
def test_what_is_no_digest_is_refused(tmp_path, given):
    options = saved(tmp_path, Everything().state_dict())
    with pytest.raises(ConfigError, match=r"sha256: `.*`; 12 to 64 hex digits"):
        loaded(options | {"sha256": given})


def without(state):
    del state["norm.weight"]
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "path: `.*` has no `norm.weight`; the model needs it"),
        (lambda state: state | {"extra": torch.ones(2)}, "path: `.*` has `extra`; the model has"),
        (
            lambda state: state | {"linear.weight": torch.ones(2, 3), "norm.weight": torch.ones(1)},
            r"path: `linear.weight` in `.*` is `\(2, 3\)`; the model's has shape \(200, 300\)",
        ),
        (lambda state: state | {"token": 3}, "path: `token` in `.*` is `int`; the model's has"),
        (lambda state: [state], "path: `.*` is not a checkpoint: a list in the place"),
        (lambda state: {"state": state}, "path: `.*` has no `"),
        (lambda state: {"state": {"model": 3}}, "path: `.*` holds a int in the place of weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_first_that_does_not(tmp_path, change, message):
    before = Everything()
    options = saved(tmp_path, change(copy.deepcopy(before.state_dict())))
    with pytest.raises(ConfigError, match=message):
        checkpoint(before, torch.Generator(), **options)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="path: missing; the file that holds the weights"):
        loaded({})
    with pytest.raises(ConfigError, match=r"path: cannot read `.*none.pt`: No such file"):
        loaded({"path": str(tmp_path / "none.pt"), "sha256": "0" * 12})
    with pytest.raises(ConfigError, match=r"path: cannot read `.*`: Is a directory"):
        loaded({"path": str(tmp_path), "sha256": "0" * 12})
    other = tmp_path / "other.pt"
    other.write_bytes(b"not ours")
    digest = hashlib.sha256(b"not ours").hexdigest()
    with pytest.raises(ConfigError, match=r"path: `.*other.pt` is not a checkpoint") as caught:
        loaded({"path": str(other), "sha256": digest})
    assert "torch.save(model.state_dict(), path)" in caught.value.hint


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a file of weights was run",))


def test_no_code_in_a_file_of_weights_is_run(tmp_path):
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        loaded(saved(tmp_path, {"token": Bomb()}))
