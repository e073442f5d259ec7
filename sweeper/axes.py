"""The axes of a grid file, read: plain values, cases, cases within cases, and zips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.config import Flat
from sweeper.errors import GridError, SweeperError, nearest
from sweeper.grid_keys import (
    absolute,
    all_sections,
    check_key,
    check_value,
    flat_of,
    leaves,
    mapping_at,
    shown,
)

_MAX_RANGE = 10**15  # the bounds of a `range`, in magnitude
_MAX_CASES = 100_000  # of one axis, nested and zipped ones written out
_RANGE = "{range: [first, end]} or {range: [first, end, step]}"


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of the product: plain values of the key `label`, or cases that set `keys`.

    Cases within cases are written out, and a zip is one axis whose cases set all its keys.
    An axis equals itself alone: two conditions may each have one of the same label.
    """

    label: str
    values: Sequence[Any]
    keys: frozenset[str]
    plain: frozenset[str]  # those of `keys` that stand by themselves, which the base must not set
    has_cases: bool = False

    def settings(self, value: Any) -> Flat:
        """What one of the axis's values sets, by dotted name."""
        return dict(value) if self.has_cases else {self.label: value}


@dataclass(frozen=True)
class Zip:
    """Axes that advance together: `n_values` combinations of the `n_product` they would have."""

    labels: tuple[str, ...]
    n_values: int

    @property
    def n_product(self) -> int:
        """The combinations there would be without the zip."""
        return int(self.n_values ** len(self.labels))


def read_axes(document: Mapping[Any, Any]) -> tuple[tuple[Axis, ...], tuple[Zip, ...]]:
    """The axes under `axes` of a grid or of a `when`, those under `zip` made one each.

    Raises
    ------
    SweeperError : what stands there describes no axes, or sets a key twice.
    """
    axes = [_axis(label, given) for label, given in mapping_at(document, "axes").items()]
    zips = []
    for labels in _zipped_labels(document.get("zip"), [axis.label for axis in axes]):
        members = [axis for axis in axes if axis.label in labels]
        # The zip stands where the first of its axes stands.
        axes[axes.index(members[0])] = _zipped(members)
        axes = [axis for axis in axes if axis not in members]
        zips.append(Zip(tuple(axis.label for axis in members), len(members[0].values)))
    check_distinct(axes)
    return tuple(axes), tuple(zips)


def check_distinct(axes: Sequence[Axis]) -> None:
    """Refuse a key that two axes of one product set."""
    source: dict[str, str] = {}
    for axis in axes:
        for key in sorted(axis.keys):
            if key in source:
                found = f"`{key}` is set by axis `{source[key]}` and axis `{axis.label}`"
                raise GridError("axes", found, "one axis")
            source[key] = axis.label


def _axis(label: Any, given: Any) -> Axis:
    """One entry of `axes`."""
    if not isinstance(label, str):
        raise GridError(f"axes: {label}", "a label that is not a name", "labels are dotted names")
    try:
        return _read_axis(label, given)
    except SweeperError as error:
        raise error.within("axes") from error


def _read_axis(label: str, given: Any) -> Axis:
    values = _range(label, given["range"]) if _is_range(given) else given
    if not isinstance(values, (list, range)):
        raise GridError(label, f"`{shown(given)}`", f"a list, {_RANGE}")
    if not values:
        raise GridError(label, "no values", "an axis has at least one")
    if _has_cases(values):
        return _axis_of_cases(label, list(values))
    check_key(label)
    check_value(label, values)
    return Axis(label, values, frozenset({label}), frozenset({label}))


def _has_cases(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(value, dict) for value in values[:1])


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


# --- cases ------------------------------------------------------------------------------------


def _axis_of_cases(label: str, values: list[Any]) -> Axis:
    cases: list[Flat] = []
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            found = f"`{shown(value)}` among mappings"
            raise GridError(label, found, "an axis holds plain values or mappings, not both")
        try:
            cases += _written_out(label, value)
        except SweeperError as error:
            raise error.within(f"{label}[{i}]") from error
        _check_size(label, len(cases))
    return Axis(label, cases, frozenset[str]().union(*cases), frozenset(), has_cases=True)


def _written_out(label: str, case: dict[Any, Any]) -> Iterator[Flat]:
    """The cases that one case stands for: one for every combination of the `axes` within it."""
    nested = isinstance(case.get("axes"), dict)  # an option of that name is no mapping
    own = {key: value for key, value in case.items() if not (nested and key == "axes")}
    outer = flat_of((absolute(label, key), leaf) for key, leaf in leaves(own))
    inner = [
        _axis(_inner_label(label, key, values), values)
        for key, values in (case["axes"].items() if nested else ())
    ]
    check_distinct(inner)
    for axis in inner:
        if both := sorted(axis.keys & outer.keys()):
            found = f"`{both[0]}` is set by the case and by its axis `{axis.label}`"
            raise GridError("axes", found, "one of the two")
    _check_size(label, math.prod(len(axis.values) for axis in inner))
    for chosen in itertools.product(*(axis.values for axis in inner)):
        flat = dict(outer)
        for axis, value in zip(inner, chosen, strict=True):
            flat |= axis.settings(value)
        yield flat


def _inner_label(label: str, key: Any, values: Any) -> Any:
    """An inner axis's label: a key as in the case, or what holds its cases together."""
    if not isinstance(key, str):
        return key
    if not _has_cases(values):
        return absolute(label, key)
    within = f"{label}.{key}"
    return within if within in all_sections() or key not in all_sections() else key


def _check_size(label: str, n_cases: int) -> None:
    """Refuse more cases than one axis should hold in memory."""
    if n_cases > _MAX_CASES:
        hint = "an axis of many values belongs at the top of `axes`"
        raise GridError(label, f"{n_cases:,} cases", f"at most {_MAX_CASES:,} in an axis", hint)


# --- zip --------------------------------------------------------------------------------------


def _zipped_labels(given: Any, known: Sequence[str]) -> list[list[str]]:
    """The labels of each zip, every one that of an axis and used once."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise GridError("zip", f"`{shown(given)}`", "a list of lists of axes is needed")
    used: dict[str, int] = {}
    for i, labels in enumerate(given):
        where = f"zip[{i}]"
        if not isinstance(labels, list) or len(labels) < 2:
            allowed = "two axes or more, as in `[[optim.lr, epochs]]`"
            raise GridError(where, f"`{shown(labels)}`", allowed)
        for label in labels:
            if label not in known:
                hint = nearest(str(label), known) or "a `when` and a case have their own axes"
                allowed = f"the axes here are {', '.join(known) or 'none'}"
                raise GridError(where, f"no axis `{shown(label)}`", allowed, hint)
            if label in used:
                found = f"`{label}` is in zip[{used[label]}] already"
                raise GridError(where, found, "an axis is zipped once")
            used[label] = i
    return given


def _zipped(members: Sequence[Axis]) -> Axis:
    """One axis that gives all its members their values, the first together, and so on."""
    first = members[0]
    for axis in members[1:]:
        if len(axis.values) != len(first.values):
            found = f"`{first.label}` has {len(first.values):,} values, `{axis.label}` "
            raise GridError("zip", f"{found}{len(axis.values):,}", "axes of one length")
    label = " + ".join(axis.label for axis in members)
    _check_size(label, len(first.values))
    check_distinct(members)
    cases = []
    for values in zip(*(axis.values for axis in members), strict=True):
        flat: Flat = {}
        for axis, value in zip(members, values, strict=True):
            flat |= axis.settings(value)
        cases.append(flat)
    keys = frozenset[str]().union(*(axis.keys for axis in members))
    plain = frozenset[str]().union(*(axis.plain for axis in members))
    return Axis(label, cases, keys, plain, has_cases=True)
