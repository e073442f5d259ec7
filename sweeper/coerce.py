"""A value from a file as the type and range that a field declares, or an error in words."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from sweeper.errors import ConfigError, nearest


def coerce(key: str, value: Any, kind: Any) -> Any:
    """`value` as an instance of the annotation `kind`.

    Whole floats become ints and ints become floats where that loses nothing; lists become
    tuples. Booleans are never numbers, and NaN and infinities are refused.

    Raises
    ------
    ConfigError : naming `key`, what was found, and what is allowed.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return value
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(item) for item in arguments}:
            return value
    elif origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return coerce(key, value, option)
            except ConfigError:
                continue
    elif origin in (tuple, list):
        kinds = _items(arguments, value)
        if kinds is not None:
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(coerce(f"{key}[{i}]", item, inner) for i, (item, inner) in pairs)
    elif kind in (bool, str, types.NoneType):
        if isinstance(value, kind):
            return value
    elif kind is int and _is_number(value) and value == int(value):
        return int(value)
    elif kind is float and _is_number(value):
        return float(value) + 0.0  # -0.0 is 0.0
    words, hint = in_words(kind), ""
    if isinstance(value, str) and origin is typing.Literal:
        hint = nearest(value, arguments)
    elif isinstance(value, list) and "a list" not in words:
        hint = "several values are an axis: they go under `axes`, those of a case under its own"
    raise ConfigError(key, f"`{_shown(value)}`", f"{words} is needed", hint)


def _items(arguments: tuple[Any, ...], value: Any) -> list[Any] | None:
    """The type of each item of a list, None when `value` is no list of that length."""
    if not isinstance(value, (list, tuple)):
        return None
    if len(arguments) == 1 or arguments[1:] == (Ellipsis,):
        return [arguments[0]] * len(value)
    return list(arguments) if len(arguments) == len(value) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def in_words(kind: Any) -> str:
    """The annotation in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{item}`" for item in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(in_words(item) for item in arguments)
    if origin in (tuple, list):
        fixed = origin is tuple and Ellipsis not in arguments
        length = f" of {len(arguments)}" if fixed and len(arguments) > 1 else ""
        return f"a list{length}, each item {in_words(arguments[0])},"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a name"}
    return names.get(kind, "null" if kind is types.NoneType else str(kind))


def in_range(key: str, value: Any, bounds: Mapping[str, float]) -> Any:
    """`value`, if it keeps the bounds `at_least`, `at_most`, `above` and `below`, or is None.

    Raises
    ------
    ConfigError : naming `key`, what was found, and the bounds.
    """
    checks = {
        "at_least": lambda bound: value >= bound,
        "at_most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if value is None or all(checks[name](bound) for name, bound in bounds.items()):
        return value
    words = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
    raise ConfigError(key, f"`{_shown(value)}`", f"a number {words} is needed")
