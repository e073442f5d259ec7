"""Optimizers and learning rates."""

import math

import pytest
import torch
from torch import nn

from sweeper.errors import ConfigError
from sweeper.sections import ScheduleConfig
from sweeper.train.lr import lr_factor
from sweeper.train.optim import adam, adamw, sgd, sgd_nesterov

LR, DECAY = 0.1, 0.01


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


@pytest.mark.parametrize(
    ("build", "options", "expected"),
    [
        (sgd, {}, by_hand_sgd(0.0, nesterov=False)),
        (sgd, {"momentum": 0.5}, by_hand_sgd(0.5, nesterov=False)),
        (sgd_nesterov, {}, by_hand_sgd(0.9, nesterov=True)),
        (adam, {}, by_hand_adam((0.9, 0.999), 1e-8, decoupled=False)),
        (adam, {"betas": (0.5, 0.9), "eps": 1.0}, by_hand_adam((0.5, 0.9), 1.0, decoupled=False)),
        (adamw, {}, by_hand_adam((0.9, 0.999), 1e-8, decoupled=True)),
    ],
)
def test_steps_are_those_of_the_papers_formulas(build, options, expected):
    assert steps(build, **options) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("build", "options", "reference"),
    [
        (sgd, {"momentum": 0.7}, torch.optim.SGD),
        (sgd_nesterov, {"momentum": 0.7}, torch.optim.SGD),
        (adam, {}, torch.optim.Adam),
        (adamw, {}, torch.optim.AdamW),
    ],
)
def test_steps_are_torchs_own(build, options, reference):
    extra = options | ({"nesterov": True} if build is sgd_nesterov else {})

    def unfused(params, lr, weight_decay):
        return reference(params, lr=lr, weight_decay=weight_decay, foreach=False, **extra)

    assert steps(build, **options) == pytest.approx(steps(unfused), rel=1e-12)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (sgd, {"momentum": -0.1}, "momentum: `-0.1`; a number at least 0 and below 1"),
        (sgd, {"momentum": 1.0}, "momentum: `1.0`"),
        (sgd_nesterov, {"momentum": 0.0}, "momentum: `0.0`; a number above 0 and below 1"),
        (adam, {"betas": (0.9,)}, r"betas: `\[0.9\]`; two numbers"),
        (adam, {"betas": (0.9, 1.0)}, "betas: `1.0`"),
        (adamw, {"eps": 0.0}, "eps: `0.0`; a number above 0"),
    ],
)
def test_options_out_of_range_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        steps(build, **options)


def factors(schedule, n_steps=40, steps_per_epoch=10):
    return [lr_factor(schedule, step, steps_per_epoch, n_steps) for step in range(n_steps)]


def test_cosine_follows_its_closed_form_at_every_step():
    expected = [0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert factors(ScheduleConfig(name="cosine")) == pytest.approx(expected, rel=1e-15)


def test_cosine_is_torchs_own_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert factors(ScheduleConfig(name="cosine")) == pytest.approx(expected, abs=1e-12)


def test_warmup_is_a_line_to_the_schedules_first_value():
    found = factors(ScheduleConfig(name="cosine", warmup_epochs=0.9))
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    expected = [0.5 * (1 + math.cos(math.pi * step / 31)) for step in range(31)]
    assert found[9:] == pytest.approx(expected)


def test_warmup_may_last_the_whole_training():
    found = factors(ScheduleConfig(warmup_epochs=4.0))
    assert found == pytest.approx([(step + 1) / 41 for step in range(40)])


def test_constant_is_one():
    assert factors(ScheduleConfig()) == [1.0] * 40


def growing(progress, top=math.inf):
    return top if progress == 1 else 1.0


def test_a_factor_that_is_not_finite_is_refused():
    schedule = ScheduleConfig(name=f"{__name__}:growing", options=(("top", math.inf),))
    with pytest.raises(ConfigError, match=r"optim.schedule.name: .* gives inf at progress 1;"):
        lr_factor(schedule, 40, 10, 40)
