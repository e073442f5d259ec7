"""Optimizers.

They are PyTorch's fused ones: one kernel a step on CPU and GPU alike.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sweeper.errors import ConfigError


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
