"""One way to name a piece of a trial: a built-in's name, or `package.module:function`.

A built-in is nothing but a short name for an import path, so what is true of ours is true of
yours. An entry is a function; the keyword parameters after its leading arguments are its options,
and their annotations and defaults are the options' types and defaults.

==========  ======================================  ==========================================
axis        leading arguments                       returns
==========  ======================================  ==========================================
data        none                                    `sweeper.train.data.DataSet`
model       shape, n_classes                        `torch.nn.Module`, logits of a batch
optim       params, lr, weight_decay                `torch.optim.Optimizer`
schedule    progress in [0, 1]                      factor on the learning rate
augment     x (batch, *shape), generator            x of the same shape
init        model, generator                        None; changes the model in place
==========  ======================================  ==========================================

Some keywords are no options but are supplied where the function has them: a model's `dropout` and
`stochastic_depth` from `regularize`, a data set's `image_size` and `seed` from `data`.

`torchvision/resnet18`, `timm/…` and `torch/NAdam` name what those libraries have. `external/NAME`
is what somebody else trained with, on any axis but `data`: it describes a trial that is imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from sweeper.errors import ConfigError, nearest

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "data": {
        "cifar10": "sweeper.train.sources.small:cifar10",
        "cifar100": "sweeper.train.sources.small:cifar100",
        "digits": "sweeper.train.sources.digits:digits",
        "fashion_mnist": "sweeper.train.sources.small:fashion_mnist",
        "image_folder": "sweeper.train.sources.folder:image_folder",
        "imagenet": "sweeper.train.sources.folder:imagenet",
        "mnist": "sweeper.train.sources.small:mnist",
        "svhn": "sweeper.train.sources.small:svhn",
        "synthetic": "sweeper.train.sources.synthetic:synthetic",
    },
    "model": {
        "allcnn": "sweeper.train.models.allcnn:allcnn",
        "cnn": "sweeper.train.models.cnn:cnn",
        "convmixer": "sweeper.train.models.convmixer:convmixer",
        "fc": "sweeper.train.models.fc:fc",
        "residual": "sweeper.train.models.residual:residual",
        "vit": "sweeper.train.models.vit:vit",
        "wrn": "sweeper.train.models.wrn:wrn",
        "wrn-10-4-8": "sweeper.train.models.wrn:wrn_10_4_8",
        "wrn-16-4-64": "sweeper.train.models.wrn:wrn_16_4_64",
    },
    "optim": {
        "adagrad": "sweeper.train.optim:adagrad",
        "adam": "sweeper.train.optim:adam",
        "adamw": "sweeper.train.optim:adamw",
        "rmsprop": "sweeper.train.optim:rmsprop",
        "sgd": "sweeper.train.optim:sgd",
        "sgd-momentum": "sweeper.train.optim:sgd_momentum",
        "sgd-nesterov": "sweeper.train.optim:sgd_nesterov",
    },
    "schedule": {
        "constant": "sweeper.train.lr:constant",
        "cosine": "sweeper.train.lr:cosine",
        "linear": "sweeper.train.lr:linear",
        "one-cycle": "sweeper.train.lr:one_cycle",
        "step": "sweeper.train.lr:step",
    },
    "augment": {
        "color-jitter": "sweeper.train.colour:color_jitter",
        "crop-flip": "sweeper.train.augment:crop_flip",
        "cutout": "sweeper.train.augment:cutout",
        "flip": "sweeper.train.augment:flip",
        "full": "sweeper.train.augment:full",
        "none": "sweeper.train.augment:none",
        "randaugment": "sweeper.train.policies:randaugment",
        "resized-crop-flip": "sweeper.train.augment:resized_crop_flip",
        "shift": "sweeper.train.augment:shift",
        "trivialaugment": "sweeper.train.policies:trivialaugment",
    },
    "init": {
        "checkpoint": "sweeper.train.init:checkpoint",
        "kaiming": "sweeper.train.init:kaiming",
        "normal": "sweeper.train.init:normal",
        "orthogonal": "sweeper.train.init:orthogonal",
        "perturbed": "sweeper.train.init:perturbed",
        "torch": "sweeper.train.init:torch_default",
        "uniform": "sweeper.train.init:uniform",
        "xavier": "sweeper.train.init:xavier",
    },
}

# `prefix/name`: everything of another library, by its name there. Each is a function from that
# name to an entry's function.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "model": {
        "timm": "sweeper.train.models.timm:timm_model",
        "torchvision": "sweeper.train.models.torchvision:torchvision_model",
    },
    "optim": {"torch": "sweeper.train.optim:torch_optimizer"},
}

_LEADING = {"data": 0, "model": 2, "optim": 3, "schedule": 1, "augment": 2, "init": 2}
_SUPPLIED = {
    "data": frozenset({"image_size", "seed"}),
    "model": frozenset({"dropout", "stochastic_depth"}),
}


@dataclass(frozen=True)
class Entry:
    """A named function of one axis and the options it takes."""

    axis: str
    name: str
    build: Callable[..., Any]
    defaults: Mapping[str, Any]
    types: Mapping[str, Any]
    supplied: frozenset[str]


def is_plug_in(name: str) -> bool:
    """Whether `name` is an import path rather than a built-in's name."""
    return ":" in name


def is_external(name: str) -> bool:
    """Whether `name` is `external/NAME`: known by its predictions alone."""
    family, _, member = name.partition("/")
    return family == "external" and bool(member) and not is_plug_in(name)


@functools.cache
def source_hash(name: str) -> str:
    """SHA-256 of the source file of a plug-in's module, 16 hex digits.

    Raises
    ------
    ConfigError : the module has no source file.
    """
    module = importlib.import_module(name.partition(":")[0])
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"`{name}`", f"its module has no source file ({error})", "a Python source file"
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@functools.cache
def entry(axis: str, name: str) -> Entry:
    """The entry of that axis and name.

    Raises
    ------
    ConfigError : the name is unknown, cannot be imported, or is not a usable function.
    """
    if is_external(name) and axis != "data":
        return _external(axis, name)
    known, families = BUILT_IN[axis], FAMILIES.get(axis, {})
    family, _, member = name.partition("/")
    if family in families and not is_plug_in(name):
        build = _load(axis, families[family])(member)
    elif name in known or is_plug_in(name):
        build = _load(axis, known.get(name, name))
    else:
        others = [f"`{prefix}/NAME`" for prefix in families]
        raise ConfigError(
            "name",
            f"unknown {axis} `{name}`",
            f"known: {', '.join([*known, *others])}, or an import path `package.module:function`",
            nearest(name, known),
        )
    defaults, types = _options(axis, name, build)
    supplied = _SUPPLIED.get(axis, frozenset()) & frozenset(defaults)
    options = {key: value for key, value in defaults.items() if key not in supplied}
    return Entry(axis, name, build, options, types, supplied)


def _external(axis: str, name: str) -> Entry:
    """An entry without options that takes whatever is supplied, and refuses to be built."""

    def refuse(*_: Any, **__: Any) -> typing.NoReturn:
        raise ConfigError(
            "name",
            f"{axis} `{name}` was trained elsewhere",
            "what can be trained here",
            "`sweeper import` brings its predictions",
        )

    return Entry(axis, name, refuse, {}, {}, _SUPPLIED.get(axis, frozenset()))


def _load(axis: str, path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "name",
            f"cannot import {axis} `{path}`: {error}",
            "an import path is `package.module:function`",
            "the module must be importable from the directory in which `sweeper` is started",
        ) from error
    except Exception as error:  # a plug-in's own code may raise anything while it is imported
        raise ConfigError(
            "name", f"importing {axis} `{path}` raised {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError("name", f"{axis} `{path}` is not a function")
    return typing.cast("Callable[..., Any]", found)


def _options(
    axis: str, name: str, build: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults and types of the parameters after the leading ones."""
    try:
        parameters = list(inspect.signature(build).parameters.values())
        hints = typing.get_type_hints(build)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(
            "name",
            f"{axis} `{name}` cannot be inspected ({error})",
            "a Python function whose annotations can be resolved",
        ) from error
    leading = _LEADING[axis]
    if len(parameters) < leading:
        raise ConfigError(
            "name",
            f"{axis} `{name}` takes {len(parameters)} arguments",
            f"a {axis} takes at least {leading} (see sweeper/registry.py)",
        )
    defaults: dict[str, Any] = {}
    for parameter in parameters[leading:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            raise ConfigError(
                "name",
                f"option `{parameter.name}` of {axis} `{name}` has no default",
                "every option needs one: it is part of the trial's identity",
            )
        defaults[parameter.name] = parameter.default
    types = {key: _typed(hints.get(key, type(value)), value) for key, value in defaults.items()}
    return defaults, types


def _typed(annotation: Any, default: Any) -> Any:
    """The annotation; of a bare list or tuple, its items' type follows from the default."""
    if annotation not in (list, tuple):
        return annotation
    kinds = {type(item) for item in default} if isinstance(default, (list, tuple)) else set()
    return GenericAlias(tuple, (kinds.pop() if len(kinds) == 1 else Any, ...))
