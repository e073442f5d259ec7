"""Optimizers."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.registry import BUILT_IN, entry
from sweeper.sections import OptimConfig, RegularizeConfig
from sweeper.train import optim
from sweeper.train.build import build_optimizer
from sweeper.train.optim import (
    adagrad,
    adam,
    adamw,
    clip_gradients,
    rmsprop,
    sgd,
    sgd_momentum,
    sgd_nesterov,
)

LR, DECAY = 0.1, 0.01

# --- the papers' formulas ---------------------------------------------------------------------


def steps(build, n_steps=3, **options):
    """The weights after each step on the gradients 1, 2, 3, … of a weight that starts at 1."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = build([weight], LR, DECAY, **options)
    found = []
    for step in range(n_steps):
        weight.grad = torch.full((1,), step + 1.0, dtype=torch.float64)
        optimizer.step()
        found.append(weight.item())
    return found


def by_hand_sgd(momentum, nesterov, n_steps=3):
    weight, velocity, found = 1.0, 0.0, []
    for step in range(n_steps):
        gradient = step + 1.0 + DECAY * weight
        velocity = momentum * velocity + gradient
        weight -= LR * (gradient + momentum * velocity if nesterov else velocity)
        found.append(weight)
    return found


def by_hand_adam(betas, eps, decoupled, n_steps=3):
    weight, mean, square, found = 1.0, 0.0, 0.0, []
    for step in range(1, n_steps + 1):
        gradient = float(step)
        if decoupled:
            weight *= 1 - LR * DECAY
        else:
            gradient += DECAY * weight
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        corrected = math.sqrt(square / (1 - betas[1] ** step)) + eps
        weight -= LR * mean / (1 - betas[0] ** step) / corrected
        found.append(weight)
    return found


def by_hand_rmsprop(alpha, eps, momentum, n_steps=3):
    weight, square, velocity, found = 1.0, 0.0, 0.0, []
    for step in range(n_steps):
        gradient = step + 1.0 + DECAY * weight
        square = alpha * square + (1 - alpha) * gradient**2
        velocity = momentum * velocity + gradient / (math.sqrt(square) + eps)
        weight -= LR * velocity
        found.append(weight)
    return found


def by_hand_adagrad(eps, n_steps=3):
    weight, total, found = 1.0, 0.0, []
    for step in range(n_steps):
        gradient = step + 1.0 + DECAY * weight
        total += gradient**2
        weight -= LR * gradient / (math.sqrt(total) + eps)
        found.append(weight)
    return found


@pytest.mark.parametrize(
    ("build", "options", "expected"),
    [
        (sgd, {}, by_hand_sgd(0.0, nesterov=False)),
        (sgd, {"momentum": 0.5}, by_hand_sgd(0.5, nesterov=False)),
        (sgd_momentum, {}, by_hand_sgd(0.9, nesterov=False)),
        (sgd_nesterov, {}, by_hand_sgd(0.9, nesterov=True)),
        (adam, {}, by_hand_adam((0.9, 0.999), 1e-8, decoupled=False)),
        (adam, {"betas": (0.5, 0.9), "eps": 1.0}, by_hand_adam((0.5, 0.9), 1.0, decoupled=False)),
        (adamw, {}, by_hand_adam((0.9, 0.999), 1e-8, decoupled=True)),
        (rmsprop, {}, by_hand_rmsprop(0.99, 1e-8, 0.0)),
        (
            rmsprop,
            {"alpha": 0.5, "eps": 0.1, "momentum": 0.8},
            by_hand_rmsprop(0.5, 0.1, 0.8),
        ),
        (adagrad, {}, by_hand_adagrad(1e-10)),
        (adagrad, {"eps": 0.5}, by_hand_adagrad(0.5)),
    ],
)
def test_steps_are_those_of_the_papers_formulas(build, options, expected):
    assert steps(build, **options) == pytest.approx(expected, rel=1e-12)


# --- torch's own classes ----------------------------------------------------------------------

# The defaults are part of the ids of trials: a PyTorch that changes one renames them.
TORCH_DEFAULTS = {
    "ASGD": {"lambd": 1e-4, "alpha": 0.75, "t0": 1e6},
    "Adadelta": {"rho": 0.9, "eps": 1e-6},
    "Adafactor": {"beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0},
    "Adagrad": {"lr_decay": 0, "initial_accumulator_value": 0, "eps": 1e-10},
    "Adam": {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "amsgrad": False,
        "decoupled_weight_decay": False,
    },
    "AdamW": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "Adamax": {"betas": (0.9, 0.999), "eps": 1e-8},
    "NAdam": {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
    },
    "RAdam": {"betas": (0.9, 0.999), "eps": 1e-8, "decoupled_weight_decay": False},
    "RMSprop": {"alpha": 0.99, "eps": 1e-8, "momentum": 0, "centered": False},
    "Rprop": {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50)},
    "SGD": {"momentum": 0, "dampening": 0, "nesterov": False},
}
REFUSED = {"LBFGS", "Muon", "SparseAdam"}
IN_THIS_TORCH = sorted(
    name
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    if name not in {*REFUSED, "Optimizer"}
)
BUILT_IN_CLASS = {
    "adagrad": (torch.optim.Adagrad, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "sgd": (torch.optim.SGD, {}),
    "sgd-momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "sgd-nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
ALL = [
    *BUILT_IN_CLASS,
    *(f"torch/{name}" for name in IN_THIS_TORCH),
]
READING_BACK = {"torch/Adafactor", "torch/ASGD"}
# name: options of ours that are not the defaults
CHANGED = [
    ("sgd", {"momentum": 0.5}),
    ("sgd-nesterov", {"momentum": 0.5}),
    ("adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("adamw", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("rmsprop", {"alpha": 0.5, "eps": 1e-3, "momentum": 0.5}),
    ("adagrad", {"eps": 1e-3}),
    ("torch/SGD", {"momentum": 0.5, "dampening": 0.1}),
    ("torch/Adam", {"amsgrad": True, "eps": 1e-3}),
    ("torch/Adamax", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("torch/RAdam", {"betas": (0.5, 0.9), "decoupled_weight_decay": True}),
    ("torch/Adadelta", {"rho": 0.5, "eps": 1e-3}),
    ("torch/Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.2)}),
    ("torch/RMSprop", {"centered": True, "momentum": 0.5}),
    ("torch/NAdam", {"momentum_decay": 0.1, "decoupled_weight_decay": True}),
    ("torch/Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 1.0}),
    ("torch/Adafactor", {"eps": (0.5, 3.0), "d": 2.0, "beta2_decay": -0.5}),
    ("torch/ASGD", {"lambd": 0.1, "t0": 2.0}),
]


def takes_decay(name):
    return name != "torch/Rprop"


def weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        for shape in ((4, 3), (5,), (2, 3, 2, 2))
    ]


def take_steps(optimizer, first=0, n_steps=10):
    """Steps on gradients that follow from the step, the rate falling."""
    for step in range(first, first + n_steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / 20)
            for weight in group["params"]:
                shape, dtype = weight.shape, weight.dtype
                weight.grad = torch.randn(shape, generator=generator, dtype=dtype)
        optimizer.step()


def values(optimizer):
    return [weight.detach() for group in optimizer.param_groups for weight in group["params"]]


def ours(name, dtype=torch.float64, **options):
    decay = DECAY if takes_decay(name) else 0.0
    return entry("optim", name).build(weights(dtype), LR, decay, **options)


def torchs_own(name, options):
    kind, fixed = BUILT_IN_CLASS.get(name, (getattr(torch.optim, name[6:], None), {}))
    decay = {"weight_decay": DECAY} if takes_decay(name) else {}
    return kind(weights(), lr=LR, foreach=False, **{**fixed, **options, **decay})


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ALL), *CHANGED])
@pytest.mark.parametrize("n_steps", [1, 10])
def test_steps_are_torchs_own(name, options, n_steps):
    found, expected = ours(name, **options), torchs_own(name, options)
    take_steps(found, n_steps=n_steps)
    take_steps(expected, n_steps=n_steps)
    # ASGD's rate is a float32 where all parameters are stepped together.
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-7} if name == "torch/ASGD" else {"rtol": 1e-12, "atol": 1e-14}
    )
    for one, other, start in zip(values(found), values(expected), weights(), strict=True):
        assert not torch.equal(one, start)
        torch.testing.assert_close(one, other, **tolerance)


def test_every_built_in_is_compared_with_torch():
    assert BUILT_IN_CLASS.keys() == BUILT_IN["optim"].keys()


@pytest.mark.parametrize("name", sorted(TORCH_DEFAULTS))
def test_a_class_of_torch_has_its_own_options_and_defaults(name):
    assert dict(entry("optim", f"torch/{name}").defaults) == TORCH_DEFAULTS[name]


def test_options_of_a_class_of_torch_are_validated_as_ours_are():
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "torch/NAdam"}
    flat |= {"optim.lr": 0.1, "epochs": 1}
    made = TrialConfig.from_flat(flat | {"optim.betas": [0.5, 0.9]})
    assert dict(made.optim.options)["betas"] == (0.5, 0.9)
    for key, value in (("betas", [0.5]), ("eps", "a"), ("decoupled_weight_decay", 1)):
        with pytest.raises(ConfigError, match=f"optim.{key}: "):
            TrialConfig.from_flat(flat | {f"optim.{key}": value})
    for switch in ("foreach", "capturable", "maximize"):
        with pytest.raises(ConfigError, match=f"optim `torch/NAdam` has no option `{switch}`"):
            TrialConfig.from_flat(flat | {f"optim.{switch}": True})


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("LBFGS", "`torch/LBFGS` evaluates the loss several times", ""),
        ("SparseAdam", "`torch/SparseAdam` takes sparse gradients alone", ""),
        ("Muon", "`torch/Muon` takes matrices alone", ""),
        ("nadam", "has no optimizer `nadam`; known: .*torch/NAdam", "`torch/NAdam`"),
        ("Optimizer", "has no optimizer `Optimizer`", ""),
        ("lr_scheduler", "has no optimizer `lr_scheduler`", ""),
        ("", "has no optimizer ``", ""),
    ],
)
def test_a_class_that_cannot_train_a_network_is_refused(name, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        entry("optim", f"torch/{name}")
    assert caught.value.where == "name"
    assert hint in caught.value.hint


def test_weight_decay_of_a_class_that_has_none_is_refused():
    config = OptimConfig(name="torch/Rprop", lr=0.1)
    with pytest.raises(ConfigError, match=r"optim.name: `torch/Rprop` has no weight decay; `reg"):
        build_optimizer(config, RegularizeConfig(weight_decay=0.1), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (sgd, {"momentum": -0.1}, "momentum: `-0.1`; a number at least 0 and below 1"),
        (sgd, {"momentum": 1.0}, "momentum: `1.0`"),
        (sgd_momentum, {"momentum": 0.0}, "momentum: `0.0`; a number above 0 and below 1"),
        (sgd_nesterov, {"momentum": 0.0}, "momentum: `0.0`; a number above 0 and below 1"),
        (adam, {"betas": (0.9,)}, r"betas: `\[0.9\]`; two numbers"),
        (adam, {"betas": (0.9, 1.0)}, "betas: `1.0`"),
        (adamw, {"eps": 0.0}, "eps: `0.0`; a number above 0"),
        (rmsprop, {"alpha": 1.0}, "alpha: `1.0`"),
        (rmsprop, {"eps": 0.0}, "eps: `0.0`"),
        (rmsprop, {"momentum": 1.0}, "momentum: `1.0`"),
        (adagrad, {"eps": -1.0}, "eps: `-1.0`"),
    ],
)
def test_options_out_of_range_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        steps(build, **options)


@pytest.mark.parametrize("name", ALL)
def test_a_state_that_was_saved_goes_on_bit_for_bit(name):
    whole = ours(name, torch.float32)
    take_steps(whole)
    early = ours(name, torch.float32)
    take_steps(early, n_steps=4)
    buffer = io.BytesIO()
    torch.save(early.state_dict(), buffer)
    buffer.seek(0)
    later = ours(name, torch.float32)
    with torch.no_grad():
        for weight, saved in zip(values(later), values(early), strict=True):
            weight.copy_(saved)
    later.load_state_dict(copy.deepcopy(torch.load(buffer, weights_only=True)))
    take_steps(later, first=4, n_steps=6)
    for one, other in zip(values(later), values(whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in ALL if name not in READING_BACK])
def test_a_step_never_waits_for_the_gpu(name, without_waiting):
    found = [nn.Parameter(weight.detach().cuda()) for weight in weights(torch.float32)]
    decay = DECAY if takes_decay(name) else 0.0
    optimizer = entry("optim", name).build(found, LR, decay)
    for weight in found:
        weight.grad = torch.ones_like(weight)
    optimizer.step()  # makes its state
    with without_waiting():
        for _ in range(3):
            clip_gradients(found, 0.1)
            optimizer.step()


@pytest.mark.parametrize("name", ["adagrad", "torch/Adagrad"])
def test_adagrad_is_not_fused_where_pytorch_refuses_it(name, monkeypatch):
    found = [nn.Parameter(weight) for weight in weights(torch.float32)]
    assert entry("optim", name).build(found, LR, 0.0).defaults["fused"]

    def refusing(optimizer):
        raise RuntimeError("`fused=True` requires all the params to be …")

    monkeypatch.setattr(nn.Parameter, "is_cuda", True)
    monkeypatch.setattr(optim, "_refuses_fused_adagrad", optim._refuses_fused_adagrad.__wrapped__)
    monkeypatch.setattr(optim.Adagrad, "step", refusing)
    refused = entry("optim", name).build(found, LR, 0.0)
    assert refused.defaults["foreach"]
    assert not refused.defaults["fused"]
