"""A grid file, read: keys dotted, expressions compiled, structure checked, nothing expanded.

A grid has a `name`, a `base` that all trials share, `axes` whose product is taken, `derive` for
values computed from others and `exclude` for combinations left out. Names that start with `let.`
are variables of the grid: expressions see them, trials and their ids do not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config import Flat, check_keys, schema, sections
from sweeper.errors import GridError, SweeperError, nearest
from sweeper.expression import Expression, parse
from sweeper.yaml_file import dump_mapping, load_mapping, read_text

KEYS = ("name", "base", "axes", "derive", "exclude")
NOT_YET = ("zip", "when")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it becomes a folder's name
_MAX_RANGE = 10**15  # the bounds of a `range`, in magnitude
_RANGE = "{range: [first, end]} or {range: [first, end, step]}"


@dataclass(frozen=True)
class Axis:
    """One axis of the product: plain values of the key `label`, or cases that set `keys`."""

    label: str
    values: Sequence[Any]
    keys: frozenset[str]
    has_cases: bool = False

    def settings(self, value: Any) -> Flat:
        """What one of the axis's values sets, by dotted name."""
        return dict(value) if self.has_cases else {self.label: value}


@dataclass(frozen=True)
class Grid:
    """A grid file, parsed: keys dotted, `--set` merged into the base, expressions compiled."""

    path: Path
    name: str
    base: Flat
    axes: tuple[Axis, ...]
    derive: Mapping[str, Expression]
    exclude: tuple[Expression, ...]


def load_grid(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a grid file; each of `overrides` is `key=value` for its base, the value in YAML.

    Raises
    ------
    SweeperError : the file cannot be read or does not describe a grid; the path comes first.
    """
    try:
        document = load_mapping(read_text(path))
        _check_top(document)
        base, given = _section(document, "base"), _overrides(overrides)
        axes = tuple(_axis(label, values) for label, values in _mapping(document, "axes").items())
        derive = _derived(document)
        _check_one_source(axes, derive, base, given)
        return Grid(
            path=path,
            name=_name(document.get("name")),
            base=base | given,
            axes=axes,
            derive=derive,
            exclude=_rules(document.get("exclude")),
        )
    except SweeperError as error:
        raise error.within(str(path)) from error


def text_of(grid: Grid, overrides: Sequence[str]) -> str:
    """The grid as a file that gives the same trials: as written, or with `--set` in its base."""
    text = read_text(grid.path)
    if not overrides:
        return text
    document = {**load_mapping(text), "base": dict(grid.base)}
    note = f"# {grid.path.name} with --set {' '.join(overrides)}".replace("\n", " ")
    return f"{note}\n{dump_mapping(document)}"


def _check_top(document: Mapping[Any, Any]) -> None:
    known = f"a grid has the keys {', '.join(KEYS)}"
    for key in document:
        if key in NOT_YET:
            raise GridError(key, "not there yet in this version", known)
        if key not in KEYS:
            raise GridError(str(key), "unknown key", known, nearest(str(key), KEYS))


def _name(given: Any) -> str:
    if given is None:
        raise GridError("name", "missing", "every grid has a name")
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        allowed = "letters, digits and `. _ -`, a letter or digit first, at most 100 in all"
        hint = "" if isinstance(given, str) else "quotes make it a string"
        raise GridError("name", f"`{shown(given)}`", allowed, hint)
    return given


def _mapping(document: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    given = document.get(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise GridError(key, f"`{shown(given)}`", "a mapping is needed")
    return given


def _section(document: Mapping[Any, Any], key: str) -> Flat:
    """A top-level mapping by dotted names, each of which some trial could have."""
    try:
        return _flat(_leaves(_mapping(document, key), ""))
    except SweeperError as error:
        raise error.within(key) from error


def _derived(document: Mapping[Any, Any]) -> dict[str, Expression]:
    # Expressions first: `{seed: max(a, b)}` is two keys to YAML, and the first says what is wrong.
    leaves = list(_leaves(_mapping(document, "derive"), ""))
    parsed = {key: _expression(f"derive: {key}", text) for key, text in leaves}
    _section(document, "derive")
    return parsed


def _leaves(given: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    for key, value in given.items():
        if not isinstance(key, str):
            raise GridError(f"{prefix}{key}", "a key that is not a name", "keys are dotted names")
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _flat(leaves: Iterable[tuple[str, Any]]) -> Flat:
    flat: Flat = {}
    for key, value in leaves:
        if key in flat:
            raise GridError(key, "given twice", "each key once, nested or dotted")
        _check_key(key)
        _check_value(key, value)
        flat[key] = value
    return flat


def _check_key(key: str) -> None:
    if key in _all_sections():
        fields = [name for name in schema() if name.startswith(f"{key}.")]
        raise GridError(key, "a section, not a field", f"its fields are {', '.join(fields)}")
    if not (key.startswith("let.") and key.removeprefix("let.").isidentifier()):
        check_keys([key])


def _check_value(key: str, value: Any) -> None:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            raise GridError(key, "a mapping in a list", "plain values, and lists of them")
        _check_value(key, item)


@functools.cache
def _all_sections() -> frozenset[str]:
    """The dotted names of all sections, nested ones too."""
    return frozenset(name.rpartition(".")[0] for name in schema() if "." in name)


def _overrides(given: Sequence[str]) -> Flat:
    """What `--set` gives; a later one wins over an earlier."""
    flat: Flat = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals:
            raise GridError(f"--set {key}", "no value", "`key=value` is needed")
        try:
            loaded = load_mapping(f"value: {text}")
        except SweeperError as error:
            raise GridError(f"--set {key}", error.found, error.allowed, error.hint) from error
        if loaded.keys() != {"value"}:
            raise GridError(f"--set {key}", f"`{shown(text)}`", "one value is needed, in YAML")
        flat |= _section({"--set": {key.strip(): loaded["value"]}}, "--set")
    return flat


# --- axes -------------------------------------------------------------------------------------


def _axis(label: Any, given: Any) -> Axis:
    if not isinstance(label, str):
        raise GridError(f"axes: {label}", "a label that is not a name", "labels are dotted names")
    try:
        values = _range(label, given["range"]) if _is_range(given) else given
        if not isinstance(values, (list, range)):
            raise GridError(label, f"`{shown(given)}`", f"a list, {_RANGE}")
        if not values:
            raise GridError(label, "no values", "an axis has at least one")
        if any(isinstance(value, dict) for value in values[:1]):
            return _axis_of_cases(label, list(values))
        _check_key(label)
        _check_value(label, values)
    except SweeperError as error:
        raise error.within("axes") from error
    return Axis(label, values, frozenset({label}))


def _is_range(given: Any) -> bool:
    return isinstance(given, dict) and list(given) == ["range"]


def _range(label: str, given: Any) -> range:
    """The whole numbers of `[first, end]` or `[first, end, step]`, the end left out."""
    whole = isinstance(given, list) and all(type(item) is int for item in given)
    if not whole or len(given) not in (2, 3) or max(map(abs, given)) > _MAX_RANGE:
        raise GridError(label, f"range `{shown(given)}`", f"{_RANGE}, whole numbers up to 10^15")
    if given[2:] and given[2] < 1:
        raise GridError(label, f"range with step `{given[2]}`", "a step of at least 1")
    return range(*given)


def _axis_of_cases(label: str, values: list[Any]) -> Axis:
    cases = []
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            found = f"`{shown(value)}` among mappings"
            raise GridError(label, found, "an axis holds plain values or mappings, not both")
        try:
            cases.append(_flat((_absolute(label, key), leaf) for key, leaf in _leaves(value, "")))
        except SweeperError as error:
            raise error.within(f"{label}[{i}]") from error
    return Axis(label, cases, frozenset[str]().union(*cases), has_cases=True)


def _absolute(label: str, key: str) -> str:
    """A case's key: absolute if it says so itself, relative to the axis's section otherwise."""
    section = key.partition(".")[0]
    if key in schema() or section == "let" or ("." in key and section in sections()):
        return key
    if label in _all_sections():
        return f"{label}.{key}"
    allowed = f"`{label}` is no section, so keys here are whole, as in `optim.lr`"
    raise GridError(key, "unknown key", allowed, nearest(key, schema()))


def _check_one_source(
    axes: Sequence[Axis], derive: Mapping[str, Any], base: Flat, given: Flat
) -> None:
    """Refuse a key with two sources; only a case may override a value of the base."""
    source: dict[str, str] = {}
    for key, setter in [
        (key, f"axis `{axis.label}`") for axis in axes for key in sorted(axis.keys)
    ]:
        if key in source:
            raise GridError("axes", f"`{key}` is set by {source[key]} and {setter}", "one axis")
        source[key] = setter
    plain = {axis.label: source[axis.label] for axis in axes if not axis.has_cases}
    for where, keys, taken in (
        ("derive", derive, source),
        ("--set", given, source | dict.fromkeys(derive, "`derive`")),
        ("base", base, plain | dict.fromkeys(derive, "`derive`")),
    ):
        for key in keys:
            if key in taken:
                raise GridError(f"{where}: {key}", f"also set by {taken[key]}", "one of the two")


# --- expressions ------------------------------------------------------------------------------


def _expression(where: str, text: Any) -> Expression:
    if not isinstance(text, str):
        raise GridError(where, f"`{shown(text)}`", "an expression is needed")
    return parse(text, where)


def _rules(given: Any) -> tuple[Expression, ...]:
    if given is not None and not isinstance(given, list):
        raise GridError("exclude", f"`{shown(given)}`", "a list of expressions is needed")
    return tuple(_expression(f"exclude[{i}]", text) for i, text in enumerate(given or ()))


def shown(value: Any) -> str:
    """A value in an error's text, cut to one line's length."""
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
