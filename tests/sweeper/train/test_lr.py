"""Learning rates."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)

from sweeper.errors import ConfigError
from sweeper.registry import BUILT_IN
from sweeper.sections import ScheduleConfig
from sweeper.train.lr import lr_factor, schedule_factor

N = 40


def schedule(name, warmup_epochs=0.0, **options):
    return ScheduleConfig(
        name=name, warmup_epochs=warmup_epochs, options=tuple(sorted(options.items()))
    )


def in_words(given):
    """The id of a case."""
    if not isinstance(given, ScheduleConfig):
        return ""
    return " ".join([given.name, *(f"{key}={value}" for key, value in given.options)])


def factors(found, n_steps=N, steps_per_epoch=10):
    return [lr_factor(found, step, steps_per_epoch, n_steps) for step in range(n_steps)]


def torchs_own(build):
    """The learning rates of N steps, at a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = build(optimizer)
    found = []
    for _ in range(N):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def one_cycle(optimizer, peak, start_div, final_div):
    """Torch's curve between our moments.

    Torch's first phase ends at step pct·T − 1 and its second at T − 1. So T = N + 1 puts the end
    where our progress is 1, and pct = (peak·N + 1)/T the top where it is `peak`.
    """
    return OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=N + 1,
        pct_start=(peak * N + 1) / (N + 1),
        div_factor=start_div,
        final_div_factor=final_div,
        cycle_momentum=False,
    )


# Torch's schedulers count to a last step whose rate is the end value. Ours would have it in the
# step after the last, so that T_max and total_iters are the number of steps.
@pytest.mark.parametrize(
    ("found", "build"),
    [
        (schedule("cosine"), lambda optimizer: CosineAnnealingLR(optimizer, T_max=N)),
        (schedule("linear"), lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=N)),
        (
            schedule("linear", final=0.25),
            lambda optimizer: LinearLR(optimizer, 1.0, 0.25, total_iters=N),
        ),
        (schedule("step"), lambda optimizer: MultiStepLR(optimizer, [N // 2, 3 * N // 4], 0.1)),
        (
            schedule("step", milestones=(0.1, 0.3, 0.9), gamma=0.3),
            lambda optimizer: MultiStepLR(optimizer, [4, 12, 36], 0.3),
        ),
        (
            schedule("step", milestones=(0.25, 0.5, 0.75), gamma=0.5),
            lambda optimizer: StepLR(optimizer, N // 4, 0.5),
        ),
        (schedule("one-cycle"), lambda optimizer: one_cycle(optimizer, 0.3, 25.0, 1e4)),
        (
            schedule("one-cycle", peak=0.5, start_div=10.0, final_div=7.0),
            lambda optimizer: one_cycle(optimizer, 0.5, 10.0, 7.0),
        ),
    ],
    ids=in_words,
)
def test_every_step_has_the_rate_of_torchs_own_scheduler(found, build):
    assert factors(found) == pytest.approx(torchs_own(build), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (schedule("constant"), {0.0: 1, 0.5: 1, 1.0: 1}),
        (schedule("cosine"), {0.0: 1, 1 / 3: 0.75, 0.5: 0.5, 1.0: 0}),
        (schedule("linear"), {0.0: 1, 0.25: 0.75, 1.0: 0}),
        (schedule("linear", final=2.0), {0.0: 1, 0.5: 1.5, 1.0: 2}),
        (schedule("step"), {0.0: 1, 0.4999: 1, 0.5: 0.1, 0.7499: 0.1, 0.75: 0.01, 1.0: 0.01}),
        (schedule("one-cycle"), {0.0: 0.04, 0.15: 0.52, 0.3: 1, 0.65: 0.500002, 1.0: 4e-6}),
    ],
    ids=in_words,
)
def test_a_schedule_has_its_values_at_known_moments(found, expected):
    values = [schedule_factor(found, progress) for progress in expected]
    assert values == pytest.approx(list(expected.values()), rel=1e-12, abs=1e-15)


def test_a_milestone_is_reached_at_the_first_step_that_is_not_before_it():
    for n_steps in range(1, 120):
        for tenths in range(1, 10):
            found = factors(schedule("step", milestones=(tenths / 10,)), n_steps)
            first = math.ceil(Fraction(tenths * n_steps, 10))
            assert found == [1.0] * first + [0.1] * (n_steps - first)


@pytest.mark.parametrize("name", sorted(BUILT_IN["schedule"]))
def test_warm_up_is_a_line_from_0_to_the_schedules_first_value(name):
    found = factors(schedule(name, warmup_epochs=0.9))
    first = schedule_factor(schedule(name), 0.0)
    assert found[:10] == pytest.approx([first * (step + 1) / 10 for step in range(10)], rel=1e-14)
    after = [schedule_factor(schedule(name), step / 31) for step in range(31)]
    assert found[9:] == after


def test_warm_up_may_last_the_whole_training():
    found = factors(ScheduleConfig(warmup_epochs=4.0))
    assert found == pytest.approx([(step + 1) / 41 for step in range(40)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"final": -0.1}, "optim.schedule.final: `-0.1`; a number at least 0"),
        ("step", {"milestones": ()}, r"optim.schedule.milestones: `\[\]`; ascending numbers"),
        ("step", {"milestones": (0.0, 0.5)}, "optim.schedule.milestones"),
        ("step", {"milestones": (0.5, 1.0)}, "optim.schedule.milestones"),
        ("step", {"milestones": (0.75, 0.5)}, r"milestones: `\[0.75, 0.5\]`"),
        ("step", {"milestones": (0.5, 0.5)}, "optim.schedule.milestones"),
        ("step", {"gamma": 0.0}, "optim.schedule.gamma: `0.0`; a number above 0"),
        ("one-cycle", {"peak": 0.0}, "optim.schedule.peak: `0.0`; a number above 0 and below 1"),
        ("one-cycle", {"peak": 1.0}, "optim.schedule.peak: `1.0`"),
        ("one-cycle", {"start_div": 0.5}, "optim.schedule.start_div: `0.5`; a number at least 1"),
        ("one-cycle", {"final_div": 0.0}, "optim.schedule.final_div: `0.0`"),
    ],
)
def test_options_out_of_range_are_refused_from_the_start(name, options, message):
    with pytest.raises(ConfigError, match=message):
        schedule_factor(schedule(name, **options), 0.0)


def growing(progress, top=math.inf):
    return top if progress == 1 else 1.0


def test_a_factor_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match=r"optim.schedule.name: .* gives inf at progress 1;"):
        lr_factor(schedule(f"{__name__}:growing", top=math.inf), 40, 10, 40)
