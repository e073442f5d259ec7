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

A model that takes a keyword `dropout` is given `regularize.dropout`; it is not an option.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.errors import ConfigError, nearest

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "data": {"digits": "sweeper.train.data:digits"},
    "model": {
        "cnn": "sweeper.train.models.cnn:cnn",
        "fc": "sweeper.train.models.fc:fc",
        "vit": "sweeper.train.models.vit:vit",
    },
    "optim": {
        "adam": "sweeper.train.optim:adam",
        "adamw": "sweeper.train.optim:adamw",
        "sgd": "sweeper.train.optim:sgd",
        "sgd-nesterov": "sweeper.train.optim:sgd_nesterov",
    },
    "schedule": {
        "constant": "sweeper.train.optim:constant",
        "cosine": "sweeper.train.optim:cosine",
    },
    "augment": {
        "none": "sweeper.train.augment:none",
        "shift": "sweeper.train.augment:shift",
    },
    "init": {
        "kaiming": "sweeper.train.init:kaiming",
        "normal": "sweeper.train.init:normal",
        "torch": "sweeper.train.init:torch_default",
        "xavier": "sweeper.train.init:xavier",
    },
}

_LEADING = {"data": 0, "model": 2, "optim": 3, "schedule": 1, "augment": 2, "init": 2}
_SUPPLIED = {"model": frozenset({"dropout"})}


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
    known = BUILT_IN[axis]
    if name not in known and not is_plug_in(name):
        raise ConfigError(
            "name",
            f"unknown {axis} `{name}`",
            f"known: {', '.join(known)}, or an import path `package.module:function`",
            nearest(name, known),
        )
    build = _load(axis, known.get(name, name))
    defaults, types = _options(axis, name, build)
    supplied = _SUPPLIED.get(axis, frozenset()) & frozenset(defaults)
    options = {key: value for key, value in defaults.items() if key not in supplied}
    return Entry(axis, name, build, options, types, supplied)


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
    types = {key: hints.get(key, type(value)) for key, value in defaults.items()}
    return defaults, types
