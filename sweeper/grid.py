"""From a grid to its trials: pure, deterministic and ordered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.axes import Axis, Zip
from sweeper.blame import blamed
from sweeper.coerce import coerce
from sweeper.combinations import Combination, Combinations, scope
from sweeper.config import Flat, TrialConfig, default_values, named_sections
from sweeper.errors import ConfigError, ExpressionError, GridError, SweeperError, nearest
from sweeper.expression import Expression
from sweeper.grid_file import Grid, load_grid, text_of
from sweeper.registry import BUILT_IN

__all__ = ["Expansion", "Grid", "Trial", "expand", "load_grid", "text_of"]


@dataclass(frozen=True)
class Trial:
    """One configuration of a grid and its content id."""

    trial_id: str
    config: TrialConfig


@dataclass(frozen=True)
class Held:
    """What a `when` did: the combinations it held for, and how many more there are for it."""

    condition: str
    n_combinations: int
    n_added: int


@dataclass(frozen=True)
class Expansion:
    """A grid's trials in order, the last axis fastest, and how they came about.

    `n_product` is the number of trials, plus those each rule removed, plus duplicates; it is also
    the product of the axes that stand under no `when`, plus what each `when` added.
    """

    name: str
    trials: tuple[Trial, ...]
    # Label, with the condition it has, and values: mappings where it has cases.
    axes: tuple[tuple[str, Sequence[Any]], ...]
    zips: tuple[Zip, ...]
    whens: tuple[Held, ...]
    excluded: tuple[tuple[str, int], ...]  # rule, number of trials it was the first to remove
    n_product: int
    n_duplicates: int  # folded into an earlier trial of the same identity


def _anything(config: TrialConfig) -> None:
    """A check that all trials pass."""


def expand(
    grid: Grid,
    *,
    max_trials: int = 100_000,
    allow_empty_exclude: bool = False,
    check: Callable[[TrialConfig], None] = _anything,
) -> Expansion:
    """All trials of a grid.

    For every combination: base and axes, the axes of each `when` that holds, then `derive` in file
    order, then `exclude`, and only then validation, so that a rule can remove what would not be
    valid. Expressions see the values, the defaults of fields and options, and None for what only
    other trials have.

    Parameters
    ----------
    allow_empty_exclude : accept an `exclude` that removes nothing and a `when` that never holds.
    check : raises a ConfigError for a valid configuration that still cannot be trained.

    Raises
    ------
    SweeperError : too many trials or none, an invalid trial, an expression that fails, or a rule
        that does nothing; the path comes first. Axis values that do not go together are named.
    """
    try:
        expander = _Expander(grid, check, max_trials)
        expander.run()
        expander.check_outcome(allow_empty_exclude)
    except SweeperError as error:
        raise error.within(str(grid.path)) from error
    combinations = expander.combinations
    return Expansion(
        name=grid.name,
        trials=tuple(Trial(trial_id, made) for trial_id, made in expander.trials.items()),
        axes=tuple(_shown_axes(grid)),
        zips=grid.zips + tuple(pair for when in grid.whens for pair in when.zips),
        whens=tuple(
            Held(when.condition.text, n_held, n_added)
            for when, n_held, n_added in zip(
                grid.whens, combinations.n_held, combinations.n_added, strict=True
            )
        ),
        excluded=expander.excluded,
        n_product=combinations.n_product,
        n_duplicates=expander.n_duplicates,
    )


def _shown_axes(grid: Grid) -> Iterator[tuple[str, Sequence[Any]]]:
    yield from ((axis.label, axis.values) for axis in grid.axes)
    for when in grid.whens:
        for axis in when.axes:
            yield f"{axis.label}, when {when.condition.text}", axis.values


class _Expander:
    """Goes through a grid's combinations once, keeping trials and counting the rest."""

    def __init__(self, grid: Grid, check: Callable[[TrialConfig], None], max_trials: int) -> None:
        self.grid, self.check = grid, check
        self.n_duplicates = 0
        self.removed = [0] * len(grid.exclude)
        self.trials: dict[str, TrialConfig] = {}
        self.absent: Flat = dict.fromkeys(_check_names(grid))
        self.combinations = Combinations(grid, self.absent, max_trials)

    @property
    def excluded(self) -> tuple[tuple[str, int], ...]:
        rules = (rule.text for rule in self.grid.exclude)
        return tuple(zip(rules, self.removed, strict=True))

    def run(self) -> None:
        if self.grid.whens and self.combinations.may_exceed:
            for _ in Combinations(self.grid, self.absent, self.combinations.limit):
                pass  # refuse what is too many before any trial is made
        for found in self.combinations:
            try:
                self._add(found)
            except ConfigError as error:
                blame = blamed(error, found, self._outcome)
                raise blame or error.within(str(found)) from error
            except SweeperError as error:
                raise error.within(str(found)) from error

    def _add(self, found: Combination) -> None:
        flat = self.grid.base | found.given
        if self.grid.derive or self.grid.exclude:
            seen = _derive(self.grid.derive, flat, self.absent)
            for i, rule in enumerate(self.grid.exclude):
                if rule.holds(seen):
                    self.removed[i] += 1
                    return
        self._keep(_config(flat))

    def _keep(self, made: TrialConfig) -> None:
        known = self.trials.setdefault(made.trial_id, made)
        if known.identity != made.identity:
            found = f"two configurations have the id `{made.trial_id}`"
            raise GridError("trial", found, "ids are unique", "change either, for example its seed")
        if known is made:
            self.check(made)
        else:
            self.n_duplicates += 1

    def _outcome(self, chosen: Mapping[Axis, Any]) -> SweeperError | None:
        """What is wrong with the trial of these axis values, were it not excluded."""
        try:
            flat = self.grid.base | self.combinations.settled(chosen).given
            _derive(self.grid.derive, flat, self.absent)
            self.check(_config(flat))
        except SweeperError as error:
            return error
        return None

    def check_outcome(self, allow_empty_exclude: bool) -> None:
        n_product, hint = self.combinations.n_product, "--allow-empty-exclude, if this is meant"
        if not self.trials:
            raise GridError("exclude", f"0 of {n_product:,} trials left", "a sweep has some")
        if allow_empty_exclude:
            return
        for i, when in enumerate(self.grid.whens):
            if not self.combinations.n_held[i]:
                found = f"`{when.condition.text}` holds for no combination of the axes before it"
                raise GridError(f"when[{i}]", found, "every condition holds for some", hint)
        for i, (text, n_removed) in enumerate(self.excluded):
            if not n_removed:
                found = f"`{text}` removes no trial that the rules before it left"
                raise GridError(f"exclude[{i}]", found, "every rule removes some", hint)


def _config(flat: Flat) -> TrialConfig:
    return TrialConfig.from_flat({k: v for k, v in flat.items() if not k.startswith("let.")})


def _derive(rules: Mapping[str, Expression], flat: Flat, absent: Flat) -> Flat:
    """Add the derived values to `flat`, and give the scope that rules see."""
    seen = scope(absent, flat)
    for key, expression in rules.items():
        value = expression(seen)
        # 12 significant digits: 0.1 * 3 and 0.3 are one learning rate, and one id.
        flat[key] = float(f"{value:.12g}") if isinstance(value, float) else value
        seen[key] = flat[key]
        if key.removesuffix(".name") in named_sections():
            coerce(key, value, str)
            seen = scope(absent, flat)
    return seen


# --- which names there are --------------------------------------------------------------------

_IN_ORDER = "`derive` goes in file order, after all axes"


def _check_names(grid: Grid) -> set[str]:
    """The names that expressions use, each of which some trial has by then.

    What is only set later is refused: its default would be seen, and not what the trial has.
    """
    used: set[str] = set()
    for i, when in enumerate(grid.whens):
        axes = [*grid.axes, *(axis for before in grid.whens[:i] for axis in before.axes)]
        later = dict.fromkeys(grid.derive, _IN_ORDER)
        for j in range(len(grid.whens) - 1, i, -1):
            later |= dict.fromkeys(grid.whens[j].keys, f"when[{j}] sets it: put that before")
        _check_known(f"when[{i}]: if", when.condition, _names(grid, axes, ()), later)
        used |= when.condition.names
    axes = [*grid.axes, *(axis for when in grid.whens for axis in when.axes)]
    known, later = _names(grid, axes, grid.derive), dict.fromkeys(grid.derive, _IN_ORDER)
    for key, expression in grid.derive.items():
        _check_known(f"derive: {key}", expression, known, later)
        known.add(key)
        del later[key]
        used |= expression.names
    for i, rule in enumerate(grid.exclude):
        _check_known(f"exclude[{i}]", rule, known, {})
        used |= rule.names
    return used


def _check_known(
    where: str, expression: Expression, known: set[str], later: Mapping[str, str]
) -> None:
    """Refuse a name that nothing has, or that has its value only later, which `later` explains."""
    for name in sorted(expression.names):
        if name in later:
            found = f"`{expression.text}`: `{name}` is set later"
            raise ExpressionError(where, found, "names are what is set before", later[name])
        if name not in known:
            quotes = "" if "." in name else f"a string needs quotes: '{name}'"
            found = f"`{expression.text}`: unknown name `{name}`"
            allowed = "names are what some trial of the grid has"
            raise ExpressionError(where, found, allowed, nearest(name, known) or quotes)


def _names(grid: Grid, axes: Sequence[Axis], derived: Collection[str]) -> set[str]:
    """What some trial has by these axes: values, fields, and options of the entries named."""
    known = set(grid.base).union(*(axis.keys for axis in axes)) | set(default_values({}))
    for section in named_sections():
        key = f"{section}.name"
        for name in _values(grid.base, axes, key):
            known |= set(default_values({key: coerce(key, name, str)}))
        if key in derived:
            for name in BUILT_IN[section.rpartition(".")[2]]:
                known |= set(default_values({key: name}))
    return known


def _values(base: Flat, axes: Sequence[Axis], key: str) -> Iterator[Any]:
    """All values that the base and the axes give a key."""
    if key in base:
        yield base[key]
    for axis in axes:
        if key in axis.keys:
            settings = (axis.settings(value) for value in axis.values)
            yield from (given[key] for given in settings if key in given)
