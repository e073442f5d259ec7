"""A grid file, read: keys dotted, expressions compiled, structure checked, nothing expanded.

A grid has a `name`, a `base` that all trials share, `axes` whose product is taken, `zip` for axes
that advance together, `when` for axes under a condition, `derive` for values computed from others
and `exclude` for combinations left out. Names that start with `let.` are variables of the grid:
expressions see them, trials and their ids do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.axes import Axis, Zip, read_axes
from sweeper.config import Flat
from sweeper.errors import GridError, SweeperError, nearest
from sweeper.expression import Expression, parse
from sweeper.grid_keys import flat_of, leaves, mapping_at, shown
from sweeper.yaml_file import dump_mapping, load_mapping, read_text

KEYS = ("name", "base", "axes", "zip", "when", "derive", "exclude")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it becomes a folder's name
_WHEN_KEYS = ("if", "axes", "zip")


@dataclass(frozen=True)
class When:
    """Axes that only the combinations have for which `condition` holds."""

    condition: Expression
    axes: tuple[Axis, ...]
    zips: tuple[Zip, ...]

    @property
    def keys(self) -> frozenset[str]:
        """What its axes set."""
        return frozenset[str]().union(*(axis.keys for axis in self.axes))

    @property
    def n_combinations(self) -> int:
        """The size of its axes' product."""
        return math.prod(len(axis.values) for axis in self.axes)


@dataclass(frozen=True)
class Grid:
    """A grid file, parsed: keys dotted, `--set` merged into the base, expressions compiled."""

    path: Path
    name: str
    base: Flat
    axes: tuple[Axis, ...]
    zips: tuple[Zip, ...]
    whens: tuple[When, ...]
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
        (axes, zips), whens = read_axes(document), _whens(document.get("when"))
        derive = _derived(document)
        _check_one_source(axes, whens, derive, base, given)
        return Grid(
            path=path,
            name=_name(document.get("name")),
            base=base | given,
            axes=axes,
            zips=zips,
            whens=whens,
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


def _section(document: Mapping[Any, Any], key: str) -> Flat:
    """A top-level mapping by dotted names, each of which some trial could have."""
    try:
        return flat_of(leaves(mapping_at(document, key)))
    except SweeperError as error:
        raise error.within(key) from error


def _derived(document: Mapping[Any, Any]) -> dict[str, Expression]:
    # Expressions first: `{seed: max(a, b)}` is two keys to YAML, and the first says what is wrong.
    given = leaves(mapping_at(document, "derive"))
    parsed = {key: _expression(f"derive: {key}", text) for key, text in given}
    _section(document, "derive")
    return parsed


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


# --- when -------------------------------------------------------------------------------------


def _whens(given: Any) -> tuple[When, ...]:
    if given is not None and not isinstance(given, list):
        raise GridError("when", f"`{shown(given)}`", "a list of mappings is needed")
    return tuple(_when(f"when[{i}]", item) for i, item in enumerate(given or ()))


def _when(where: str, given: Any) -> When:
    if not isinstance(given, dict):
        raise GridError(where, f"`{shown(given)}`", "{if: an expression, axes: {...}} is needed")
    for key in given:
        if key not in _WHEN_KEYS:
            known = f"a `when` has the keys {', '.join(_WHEN_KEYS)}"
            raise GridError(f"{where}: {key}", "unknown key", known, nearest(str(key), _WHEN_KEYS))
    for key in ("if", "axes"):
        if not given.get(key):
            allowed = "a `when` has a condition `if` and the `axes` that it adds"
            raise GridError(f"{where}: {key}", "missing", allowed)
    condition = _expression(f"{where}: if", given["if"])
    try:
        axes, zips = read_axes(given)
    except SweeperError as error:
        raise error.within(where) from error
    return When(condition, axes, zips)


# --- one source for every value ---------------------------------------------------------------


def _check_one_source(
    axes: Sequence[Axis],
    whens: Sequence[When],
    derive: Mapping[str, Any],
    base: Flat,
    given: Flat,
) -> None:
    """Refuse a key with two sources; only a case or a `when` may override a value of the base.

    Whether a case and a `when`, or two of these, meet in one trial shows in the expansion.
    """
    plain = {key: f"axis `{axis.label}`" for axis in axes for key in axis.plain}
    varied = {key: f"axis `{axis.label}`" for axis in axes for key in axis.keys}
    later = {key: f"`when[{i}]`" for i, when in enumerate(whens) for key in when.keys}
    derived = dict.fromkeys(derive, "`derive`")
    for where, keys, taken in (
        *((f"when[{i}]", sorted(when.keys), plain) for i, when in enumerate(whens)),
        ("derive", derive, varied | later),
        ("--set", given, varied | later | derived),
        ("base", base, plain | derived),
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
