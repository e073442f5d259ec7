"""Optimizers.

Those that PyTorch has as one kernel a step, on CPU and GPU alike, run as that; the others as a few
kernels for all parameters together.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from sweeper.errors import ConfigError, nearest

Params = Iterable[nn.Parameter] | Iterable[dict[str, Any]]

_DECAYED = (
    *(nn.Linear, nn.MultiheadAttention),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_REFUSED: Mapping[str, str] = {
    "LBFGS": "evaluates the loss several times a step, which the training loop does not offer",
    "Muon": "takes matrices alone, and a network has biases, norms or convolutions besides",
    "SparseAdam": "takes sparse gradients alone, and those of a network are dense",
}
# How a class computes, not what: not part of a trial.
_SWITCHES = frozenset({"capturable", "differentiable", "foreach", "fused", "maximize"})


def sgd(params: Params, lr: float, weight_decay: float, momentum: float = 0.0) -> Optimizer:
    """Stochastic gradient descent with heavy-ball momentum; weight decay is added to the gradient.

    Raises
    ------
    ConfigError : `momentum` is not in [0, 1).
    """
    _in_unit("momentum", momentum)
    return SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def sgd_momentum(
    params: Params, lr: float, weight_decay: float, momentum: float = 0.9
) -> Optimizer:
    """`sgd` that has momentum unless told otherwise.

    Raises
    ------
    ConfigError : `momentum` is not in (0, 1).
    """
    _in_unit("momentum", momentum, zero_too=False)
    return sgd(params, lr, weight_decay, momentum)


def sgd_nesterov(
    params: Params, lr: float, weight_decay: float, momentum: float = 0.9
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
    params: Params,
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
    params: Params,
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


def rmsprop(
    params: Params,
    lr: float,
    weight_decay: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> Optimizer:
    """The gradient over the root of a running mean of its square (Tieleman & Hinton, 2012).

    Lecture 6.5 of "Neural Networks for Machine Learning"; `alpha` is the mean's decay a step.
    Weight decay is added to the gradient, momentum is of the quotients.

    Raises
    ------
    ConfigError : `alpha` or `momentum` is not in [0, 1), or `eps` is not above 0.
    """
    _in_unit("alpha", alpha)
    _in_unit("momentum", momentum)
    _above_zero("eps", eps)
    return RMSprop(
        params,
        lr=lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        foreach=True,
    )


def adagrad(params: Params, lr: float, weight_decay: float, eps: float = 1e-10) -> Optimizer:
    """The gradient over the root of the sum of its squares so far; weight decay is added to it.

    Duchi, Hazan & Singer, JMLR 12, 2011, with the diagonal of G alone.

    Raises
    ------
    ConfigError : `eps` is not above 0.
    """
    _above_zero("eps", eps)
    given: list[Any] = list(params)
    return Adagrad(given, lr=lr, eps=eps, weight_decay=weight_decay, **_switched(Adagrad, given))


def torch_optimizer(name: str) -> Callable[..., Optimizer]:
    """The entry `torch/name`: the class of that name in `torch.optim`.

    Its options are the class's own, with their defaults, but for those that only choose how it
    computes. `regularize.weight_decay` takes the place of the class's default.

    PyTorch's Adafactor, its ASGD, and its NAdam after a resume read numbers back from a GPU at
    every step, and so wait for it; the others do not.

    Raises
    ------
    ConfigError : there is no such class, or it cannot train a network in steps.
    """
    known = {key: found for key, found in vars(torch.optim).items() if _is_optimizer(found)}
    if name in _REFUSED:
        raise ConfigError("name", f"`torch/{name}` {_REFUSED[name]}", "another optimizer")
    if name not in known:
        usable = [f"torch/{key}" for key in sorted(known) if key not in _REFUSED]
        spelt = {key.lower(): key for key in known}.get(name.lower(), name)
        raise ConfigError(
            "name",
            f"`torch.optim` has no optimizer `{name}`",
            f"known: {', '.join(usable)}",
            nearest(f"torch/{spelt}", usable),
        )
    return _entry_of(name, known[name])


def _is_optimizer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer


def _entry_of(name: str, kind: type[Any]) -> Callable[..., Optimizer]:
    """A function with the signature of an entry, which the registry reads the options off."""
    parameters, hints = inspect.signature(kind).parameters, typing.get_type_hints(kind.__init__)
    options = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=parameters[key].default,
            annotation=_without_tensors(hints[key]),
        )
        for key in sorted(parameters.keys() - {"params", "lr", "weight_decay"} - _SWITCHES)
    ]

    def build(params: Params, lr: float, weight_decay: float, **given: Any) -> Optimizer:
        if "weight_decay" in parameters:
            given["weight_decay"] = weight_decay
        elif weight_decay:
            found = f"`torch/{name}` has no weight decay"
            raise ConfigError("name", found, "`regularize.weight_decay` must be 0")
        listed: list[Any] = list(params)
        return kind(listed, lr=lr, **given, **_switched(kind, listed))

    leading = list(inspect.signature(build).parameters.values())[:3]
    build.__signature__ = inspect.Signature([*leading, *options])  # type: ignore[attr-defined]
    build.__annotations__ = {option.name: option.annotation for option in options}
    return build


def _switched(kind: type[Any], params: list[Any]) -> dict[str, bool]:
    """How the class computes fastest: all of a step in one kernel, or each operation at once."""
    known = inspect.signature(kind).parameters
    if "fused" in known and not (kind is Adagrad and _lacks_fused_adagrad(params)):
        return {"fused": True}
    return {"foreach": True} if "foreach" in known else {}


def _lacks_fused_adagrad(params: list[Any]) -> bool:
    """Whether these are on a GPU, and this PyTorch fuses Adagrad on a CPU alone, as 2.11 does."""
    weights = [w for given in params for w in (given["params"] if type(given) is dict else [given])]
    return any(weight.is_cuda and _refuses_fused_adagrad(weight.device) for weight in weights)


@functools.cache
def _refuses_fused_adagrad(device: torch.device) -> bool:
    # PyTorch says so in the first step alone, and the kernel of 2.11 is registered, but not used.
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        Adagrad([probe], fused=True).step()
    except RuntimeError:
        return True
    return False


def _without_tensors(annotation: Any) -> Any:
    """The annotation less the tensors that may stand in the place of a number."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    kept = tuple(_without_tensors(item) for item in arguments if item is not Tensor)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[kept]  # noqa: UP007 - of a tuple
    return origin[kept] if origin is tuple else annotation


def parameter_groups(
    model: nn.Module, weight_decay: float, decay: str
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The parameters of a network, apart where weight decay is not for all of them.

    With `decay` `weights` it is for the weights of linear, convolutional and attention layers.
    Biases, parameters of norms, and what belongs to any other module, such as tokens and position
    embeddings, are in a second group whose weight decay is 0.

    Parameters
    ----------
    decay : `all` or `weights`.

    Returns
    -------
    groups : parameters in the order of `model.parameters()`, in groups if there are two.

    Raises
    ------
    ConfigError : there is no such layer, so that nothing would decay.
    """
    if decay == "all" or not weight_decay:
        return list(model.parameters())
    decayed = {id(parameter) for parameter in _weights(model)}
    if not decayed:
        raise ConfigError(
            "regularize.decay",
            f"`{decay}`, but the model has no linear, convolutional or attention layer",
            "`all`",
        )
    apart: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        apart[id(parameter) in decayed].append(parameter)
    groups: list[dict[str, Any]] = [{"params": apart[True]}]
    if apart[False]:
        groups.append({"params": apart[False], "weight_decay": 0.0})
    return groups


def _weights(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, _DECAYED):
            for name, parameter in module.named_parameters(recurse=False):
                # Attention may have biases of shape (1, 1, dim).
                if parameter.ndim >= 2 and not name.startswith("bias"):
                    yield parameter


def clip_gradients(params: Iterable[nn.Parameter], limit: float) -> None:
    """Scale all gradients by one factor, so that their norm together is at most `limit`.

    Pascanu, Mikolov & Bengio, ICML 2013, arXiv:1211.5063, Algorithm 1, except that 1e-6 is added
    to the norm. The factor is computed and applied on the device; a norm that is not finite
    makes it 0 or NaN, and is not looked at here.
    """
    nn.utils.clip_grad_norm_(list(params), limit, error_if_nonfinite=False)


def _adam_options(betas: tuple[float, ...], eps: float) -> tuple[float, float]:
    if len(betas) != 2:
        raise ConfigError("betas", f"`{list(betas)}`", "two numbers are needed")
    for beta in betas:
        _in_unit("betas", beta)
    _above_zero("eps", eps)
    return betas[0], betas[1]


def _above_zero(option: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(option, f"`{value}`", "a number above 0 is needed")


def _in_unit(option: str, value: float, *, zero_too: bool = True) -> None:
    if not (0 < value < 1 or (zero_too and value == 0)):
        allowed = f"a number {'at least' if zero_too else 'above'} 0 and below 1 is needed"
        raise ConfigError(option, f"`{value}`", allowed)
