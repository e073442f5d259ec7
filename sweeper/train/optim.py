"""Optimizers, and the learning rate as a pure function of the step.

The optimizers are PyTorch's fused ones: one kernel a step on CPU and GPU alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sweeper.errors import ConfigError
from sweeper.registry import entry
from sweeper.sections import ScheduleConfig
from sweeper.train.plug_in import naming


def sgd(
    params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.0
) -> Optimizer:
    """Stochastic gradient descent with heavy-ball momentum; weight decay is added to the gradient.

    Raises
    ------
    ConfigError : `momentum` is not in [0, 1).
    """
    _in_unit("momentum", momentum)
    return SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def sgd_nesterov(
    params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.9
) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum, in the form of Sutskever et al. (2013).

    Raises
    ------
    ConfigError : `momentum` is not in (0, 1).
    """
    _in_unit("momentum", momentum, zero_too=False)
    return SGD(
        params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True, fused=True
    )


def adam(
    params: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, ...] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam (Kingma & Ba, ICLR 2015, arXiv:1412.6980); weight decay is added to the gradient.

    Raises
    ------
    ConfigError : `betas` is not two numbers in [0, 1), or `eps` is not above 0.
    """
    pair = _adam_options(betas, eps)
    return Adam(params, lr=lr, betas=pair, eps=eps, weight_decay=weight_decay, fused=True)


def adamw(
    params: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, ...] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam with weight decay apart from the gradient (Loshchilov & Hutter, ICLR 2019).

    arXiv:1711.05101; the weights shrink by lr · weight_decay a step, lr as scheduled.

    Raises
    ------
    ConfigError : `betas` is not two numbers in [0, 1), or `eps` is not above 0.
    """
    pair = _adam_options(betas, eps)
    return AdamW(params, lr=lr, betas=pair, eps=eps, weight_decay=weight_decay, fused=True)


def _adam_options(betas: tuple[float, ...], eps: float) -> tuple[float, float]:
    if len(betas) != 2:
        raise ConfigError("betas", f"`{list(betas)}`", "two numbers are needed")
    for beta in betas:
        _in_unit("betas", beta)
    if not eps > 0:
        raise ConfigError("eps", f"`{eps}`", "a number above 0 is needed")
    return betas[0], betas[1]


def _in_unit(option: str, value: float, *, zero_too: bool = True) -> None:
    if not (0 < value < 1 or (zero_too and value == 0)):
        allowed = f"a number {'at least' if zero_too else 'above'} 0 and below 1 is needed"
        raise ConfigError(option, f"`{value}`", allowed)


# --- learning rate --------------------------------------------------------------------------


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """(1 + cos(π · progress)) / 2: from 1 to 0 (Loshchilov & Hutter, ICLR 2017, Eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def lr_factor(schedule: ScheduleConfig, step: int, steps_per_epoch: int, n_steps: int) -> float:
    """The factor on the learning rate of optimizer step `step`, counted from 0.

    With w the steps of warm-up: (step + 1)/(w + 1) during it, a line from 0 just before the
    first step to 1 at the first step after it; then the schedule at (step − w)/(n_steps − w).

    Raises
    ------
    ConfigError : the schedule fails, or its factor is not a finite number at least 0.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return schedule_factor(schedule, (step - warmup) / (n_steps - warmup))


def schedule_factor(schedule: ScheduleConfig, progress: float) -> float:
    """The schedule's factor at `progress` in [0, 1], checked."""
    with naming("schedule", schedule.name):
        build = entry("schedule", schedule.name).build
        factor = float(build(progress, **dict(schedule.options)))
    if not (math.isfinite(factor) and factor >= 0):
        raise ConfigError(
            "optim.schedule.name",
            f"schedule `{schedule.name}` gives {factor} at progress {progress:.6g}",
            "a finite number at least 0 is needed",
        )
    return factor
