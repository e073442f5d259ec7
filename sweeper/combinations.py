"""What a grid combines: the product of its axes and, where a `when` holds, of the axes it adds.

A `when` sees what its combination has so far: the base, the axes, the axes of earlier `when`s, and
the defaults of fields and options. `derive` comes after all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.axes import Axis
from sweeper.config import Flat, default_values
from sweeper.errors import GridError, SweeperError
from sweeper.grid_file import Grid, When
from sweeper.grid_keys import shown


@dataclass(frozen=True, slots=True)
class Combination:
    """One value of each axis that a trial has, and what these set by dotted name."""

    axes: tuple[Axis, ...]
    values: tuple[Any, ...]
    given: Flat

    def __str__(self) -> str:
        """The axis values that make the trial, for errors about it."""
        pairs = zip(self.axes, self.values, strict=True)
        text = ", ".join(f"{axis.label}={shown(value)}" for axis, value in pairs)
        return f"trial `{text}`" if text else "its only trial"


class Combinations:
    """Goes through a grid's combinations in order, the last axis fastest.

    Parameters
    ----------
    absent : every name that an expression uses: None, unless a combination has it.
    limit : more combinations are an error, found before any product is made.
    """

    def __init__(self, grid: Grid, absent: Flat, limit: int) -> None:
        self.grid, self.absent, self.limit = grid, absent, limit
        self.n_axes = math.prod(len(axis.values) for axis in grid.axes)
        self.n_product = 0  # so far
        self.n_held = [0] * len(grid.whens)  # combinations for which the condition held
        self.n_added = [0] * len(grid.whens)  # combinations that there are more for it
        # What another `when` or a case may set as well: only a combination can tell.
        self._contested = [
            when.keys & frozenset[str]().union(*(axis.keys for axis in grid.axes), *earlier)
            for when, earlier in zip(grid.whens, _heads(grid.whens), strict=True)
        ]

    def __iter__(self) -> Iterator[Combination]:
        """All combinations; the counts are complete at the end.

        Raises
        ------
        SweeperError : more than `limit`, a condition that fails, or a key set twice.
        """
        self._check_size(self.n_axes)
        for values in itertools.product(*(axis.values for axis in self.grid.axes)):
            given: Flat = {}
            for axis, value in zip(self.grid.axes, values, strict=True):
                given |= axis.settings(value)
            found = Combination(self.grid.axes, values, given)
            if self.grid.whens:
                yield from self._grown(found, 0)
            else:
                self.n_product += 1
                yield found

    @property
    def may_exceed(self) -> bool:
        """Whether there could be more than `limit`, if every condition held everywhere."""
        most = math.prod(when.n_combinations for when in self.grid.whens)
        return self.n_axes * most > self.limit

    def settled(self, chosen: Mapping[Axis, Any]) -> Combination:
        """The combination with these values, and the first of every axis that has none there."""
        found = Combination((), (), {})
        for i in range(-1, len(self.grid.whens)):
            if i < 0 or self._holds(i, found):
                axes = self.grid.whens[i].axes if i >= 0 else self.grid.axes
                values = tuple(chosen.get(axis, axis.values[0]) for axis in axes)
                found = self._with(found, i, axes, values)
        return found

    def _grown(self, found: Combination, i: int) -> Iterator[Combination]:
        """A combination and, for each `when` from the `i`th that holds, the product with it."""
        while i < len(self.grid.whens) and not self._holds(i, found):
            i += 1
        if i == len(self.grid.whens):
            self.n_product += 1
            self._check_size(self.n_product)
            yield found
            return
        when = self.grid.whens[i]
        self._check_size(self.n_product + when.n_combinations)
        self.n_held[i] += 1
        self.n_added[i] += when.n_combinations - 1
        for values in itertools.product(*(axis.values for axis in when.axes)):
            yield from self._grown(self._with(found, i, when.axes, values), i + 1)

    def _holds(self, i: int, found: Combination) -> bool:
        try:
            return self.grid.whens[i].condition.holds(
                scope(self.absent, self.grid.base | found.given)
            )
        except SweeperError as error:
            raise error.within(str(found)) from error

    def _with(
        self, found: Combination, i: int, axes: tuple[Axis, ...], values: tuple[Any, ...]
    ) -> Combination:
        """The combination with the values of further axes, those of `when[i]`."""
        more: Flat = {}
        for axis, value in zip(axes, values, strict=True):
            more |= axis.settings(value)
        grown = Combination(found.axes + axes, found.values + values, found.given | more)
        if i >= 0 and self._contested[i]:
            for key in sorted(self._contested[i] & found.given.keys() & more.keys()):
                pairs = zip(found.axes, found.values, strict=True)
                other = next(axis.label for axis, value in pairs if key in axis.settings(value))
                where = f"{grown}: when[{i}]: {key}"
                raise GridError(where, f"also set by axis `{other}`", "one of the two")
        return grown

    def _check_size(self, n_combinations: int) -> None:
        if n_combinations > self.limit:
            many = f"{self.limit:,}"
            found = f"more than {many}" if self.grid.whens else f"{n_combinations:,}"
            hint = "--max-trials allows more"
            raise GridError("axes", f"{found} trials before `exclude`", f"at most {many}", hint)


def scope(absent: Flat, flat: Flat) -> Flat:
    """What expressions see: the values, the defaults, and None for what other trials have."""
    return absent | default_values(flat) | flat


def _heads(whens: Sequence[When]) -> list[list[frozenset[str]]]:
    """For each `when`, what those before it set."""
    return [[when.keys for when in whens[:i]] for i in range(len(whens))]
