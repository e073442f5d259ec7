"""Calling a registry entry, ours or a user's, so that whatever it raises names its key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sweeper.errors import ConfigError, first_line
from sweeper.registry import entry
from sweeper.sections import Options

_SECTIONS = {"schedule": "optim.schedule"}


def call(axis: str, name: str, options: Options, *leading: Any, **supplied: Any) -> Any:
    """What the entry returns for its leading arguments, its options and what is supplied.

    Raises
    ------
    ConfigError : the entry raised; see `naming`.
    """
    with naming(axis, name):
        return entry(axis, name).build(*leading, **dict(options), **supplied)


@contextmanager
def naming(axis: str, name: str) -> Iterator[None]:
    """Turn any exception of an entry's code into a ConfigError that names the dotted key.

    A ConfigError of the entry itself names its option: `patch` becomes `model.patch`.
    """
    section = _SECTIONS.get(axis, axis)
    try:
        yield
    except ConfigError as error:
        where = f"{section}.{error.where}"
        raise ConfigError(where, error.found, error.allowed, error.hint) from error
    except Exception as error:  # a plug-in may raise anything
        reason = first_line(error)
        raise ConfigError(
            f"{section}.name", f"{axis} `{name}` raised {type(error).__name__}: {reason}"
        ) from error
