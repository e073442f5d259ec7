"""The dotted keys of a grid file: nested mappings made flat, every key one a trial could have."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sweeper.config import Flat, check_keys, schema, sections
from sweeper.errors import GridError, nearest


def mapping_at(document: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    """The mapping that a document has under a key; empty without the key."""
    given = document.get(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise GridError(key, f"`{shown(given)}`", "a mapping is needed")
    return given


def leaves(given: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    for key, value in given.items():
        if not isinstance(key, str):
            raise GridError(f"{prefix}{key}", "a key that is not a name", "keys are dotted names")
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def flat_of(items: Iterable[tuple[str, Any]]) -> Flat:
    """The leaves as one mapping.

    Raises
    ------
    GridError : a key given twice, a key that no trial could have, or a mapping in a list.
    """
    flat: Flat = {}
    for key, value in items:
        if key in flat:
            raise GridError(key, "given twice", "each key once, nested or dotted")
        check_key(key)
        check_value(key, value)
        flat[key] = value
    return flat


def check_key(key: str) -> None:
    """Refuse a key that no trial could have and that is no variable of the grid."""
    if key in all_sections():
        fields = [name for name in schema() if name.startswith(f"{key}.")]
        hint = f"`{key}.name`, or cases such as `{{name: ...}}`" if f"{key}.name" in fields else ""
        raise GridError(key, "a section, not a field", f"its fields are {', '.join(fields)}", hint)
    if not (key.startswith("let.") and key.removeprefix("let.").isidentifier()):
        check_keys([key])


def check_value(key: str, value: Any) -> None:
    """Refuse a mapping inside a list."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            raise GridError(key, "a mapping in a list", "plain values, and lists of them")
        check_value(key, item)


@functools.cache
def all_sections() -> frozenset[str]:
    """The dotted names of all sections, nested ones too."""
    return frozenset(name.rpartition(".")[0] for name in schema() if "." in name)


def absolute(label: str, key: str) -> str:
    """A case's key: absolute if it says so itself, relative to the axis's section otherwise."""
    section, own = key.partition(".")[0], f"{label}.{key}"
    if key in schema() and own in schema():
        found = f"could be the trial's own `{key}` or `{own}`"
        allowed = f"`{own}` in full; the trial's own in another axis, or in `base`"
        raise GridError(key, found, allowed)
    if key in schema() or section == "let" or ("." in key and section in sections()):
        return key
    if label in all_sections():
        return own
    allowed = f"`{label}` is no section, so keys here are whole, as in `optim.lr`"
    raise GridError(key, "unknown key", allowed, nearest(key, schema()))


def shown(value: Any) -> str:
    """A value in an error's text, cut to one line's length."""
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
