"""From a grid to its trials: pure, deterministic and ordered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.coerce import coerce
from sweeper.config import Flat, TrialConfig, default_values, named_sections
from sweeper.errors import ExpressionError, GridError, SweeperError, nearest
from sweeper.expression import Expression
from sweeper.grid_file import Axis, Grid, load_grid, shown, text_of
from sweeper.registry import BUILT_IN

__all__ = ["Axis", "Expansion", "Grid", "Trial", "expand", "load_grid", "text_of"]


@dataclass(frozen=True)
class Trial:
    """One configuration of a grid and its content id."""

    trial_id: str
    config: TrialConfig


@dataclass(frozen=True)
class Expansion:
    """A grid's trials in order, the last axis fastest, and how they came about.

    `n_product` is the number of trials, plus those each rule removed, plus duplicates.
    """

    name: str
    trials: tuple[Trial, ...]
    axes: tuple[tuple[str, Sequence[Any]], ...]  # label, values (mappings where it has cases)
    excluded: tuple[tuple[str, int], ...]  # rule, number of trials it was the first to remove
    n_product: int
    n_duplicates: int  # folded into an earlier trial of the same identity


def expand(
    grid: Grid, *, max_trials: int = 100_000, allow_empty_exclude: bool = False
) -> Expansion:
    """All trials of a grid.

    For every combination: base and axes, then `derive` in file order, then `exclude`, and only
    then validation, so that a rule can remove what would not be valid. Expressions see the
    values, the defaults of fields and options, and None for what only other trials have.

    Raises
    ------
    SweeperError : too many trials or none, an invalid trial, an expression that fails, or a rule
        that removes nothing; the path comes first.
    """
    try:
        expander = _Expander(grid)
        expander.run(max_trials)
        expander.check_outcome(allow_empty_exclude)
    except SweeperError as error:
        raise error.within(str(grid.path)) from error
    return Expansion(
        name=grid.name,
        trials=tuple(Trial(trial_id, made) for trial_id, made in expander.trials.items()),
        axes=tuple((axis.label, axis.values) for axis in grid.axes),
        excluded=expander.excluded,
        n_product=expander.n_product,
        n_duplicates=expander.n_duplicates,
    )


class _Expander:
    """Goes through the product of a grid's axes once, keeping trials and counting the rest."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.n_product = math.prod(len(axis.values) for axis in grid.axes)
        self.n_duplicates = 0
        self.removed = [0] * len(grid.exclude)
        self.trials: dict[str, TrialConfig] = {}
        self.absent: Flat = {}  # every name in use: None, unless a trial has it

    @property
    def excluded(self) -> tuple[tuple[str, int], ...]:
        rules = (rule.text for rule in self.grid.exclude)
        return tuple(zip(rules, self.removed, strict=True))

    def run(self, max_trials: int) -> None:
        if self.n_product > max_trials:
            found = f"{self.n_product:,} trials before `exclude`"
            hint = "--max-trials allows more"
            raise GridError("axes", found, f"at most {max_trials:,}", hint)
        self.absent = dict.fromkeys(_check_names(self.grid))
        for values in itertools.product(*(axis.values for axis in self.grid.axes)):
            try:
                self._add(values)
            except SweeperError as error:
                raise error.within(_label(self.grid.axes, values)) from error

    def _add(self, values: Sequence[Any]) -> None:
        flat = dict(self.grid.base)
        for axis, value in zip(self.grid.axes, values, strict=True):
            flat |= axis.settings(value)
        if self.grid.derive or self.grid.exclude:
            scope = _derive(self.grid.derive, flat, self.absent)
            for i, rule in enumerate(self.grid.exclude):
                if rule.holds(scope):
                    self.removed[i] += 1
                    return
        self._keep(
            TrialConfig.from_flat({k: v for k, v in flat.items() if not k.startswith("let.")})
        )

    def _keep(self, made: TrialConfig) -> None:
        known = self.trials.setdefault(made.trial_id, made)
        if known.identity != made.identity:
            found = f"two configurations have the id `{made.trial_id}`"
            raise GridError("trial", found, "ids are unique", "change either, for example its seed")
        self.n_duplicates += known is not made

    def check_outcome(self, allow_empty_exclude: bool) -> None:
        if not self.trials:
            raise GridError("exclude", f"0 of {self.n_product:,} trials left", "a sweep has some")
        for i, (text, n_removed) in enumerate(self.excluded):
            if not n_removed and not allow_empty_exclude:
                found = f"`{text}` removes no trial that the rules before it left"
                hint = "--allow-empty-exclude, if this is meant"
                raise GridError(f"exclude[{i}]", found, "every rule removes some", hint)


def _label(axes: Sequence[Axis], values: Sequence[Any]) -> str:
    """The axis values that make one trial, for errors about it."""
    given = (f"{axis.label}={shown(value)}" for axis, value in zip(axes, values, strict=True))
    return f"trial `{', '.join(given)}`" if axes else "its only trial"


def _scope(flat: Flat, absent: Flat) -> Flat:
    return absent | default_values(flat) | flat


def _derive(rules: Mapping[str, Expression], flat: Flat, absent: Flat) -> Flat:
    """Add the derived values to `flat`, and give the scope that rules see."""
    scope = _scope(flat, absent)
    for key, expression in rules.items():
        value = expression(scope)
        # 12 significant digits: 0.1 * 3 and 0.3 are one learning rate, and one id.
        flat[key] = float(f"{value:.12g}") if isinstance(value, float) else value
        scope[key] = flat[key]
        if key.removesuffix(".name") in named_sections():
            coerce(key, value, str)
            scope = _scope(flat, absent)
    return scope


# --- which names there are --------------------------------------------------------------------


def _check_names(grid: Grid) -> set[str]:
    """The names that expressions use, each of which some trial has by then."""
    known = _names(grid)
    used: set[str] = set()
    for key, expression in grid.derive.items():
        _check_known(f"derive: {key}", expression, known, grid.derive)
        known.add(key)
        used |= expression.names
    for i, rule in enumerate(grid.exclude):
        _check_known(f"exclude[{i}]", rule, known, ())
        used |= rule.names
    return used


def _check_known(
    where: str, expression: Expression, known: set[str], derived: Mapping[str, Any] | tuple[()]
) -> None:
    for name in sorted(expression.names - known):
        later = "`derive` goes in file order" if name in derived else ""
        quotes = "" if "." in name else f"a string needs quotes: '{name}'"
        hint = later or nearest(name, known) or quotes
        found = f"`{expression.text}`: unknown name `{name}`"
        raise ExpressionError(where, found, "names are what some trial of the grid has", hint)


def _names(grid: Grid) -> set[str]:
    """What some trial has before `derive`: values, fields, and options of the entries named."""
    known = set(grid.base).union(*(axis.keys for axis in grid.axes)) | set(default_values({}))
    for section in named_sections():
        key = f"{section}.name"
        for name in _values(grid, key):
            known |= set(default_values({key: coerce(key, name, str)}))
        if key in grid.derive:
            for name in BUILT_IN[section.rpartition(".")[2]]:
                known |= set(default_values({key: name}))
    return known


def _values(grid: Grid, key: str) -> Iterator[Any]:
    """All values that the base and the axes give a key."""
    if key in grid.base:
        yield grid.base[key]
    for axis in grid.axes:
        if key in axis.keys:
            settings = (axis.settings(value) for value in axis.values)
            yield from (given[key] for given in settings if key in given)
