"""Which axis values do not go together, when a trial of a grid is not valid.

An axis value has a part in an error when another value of that axis alone would make the trial
valid, all others unchanged, or when it sets the very key that the error names. Two such values or
more are a combination that the grid can leave out; a single one is just wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.axes import Axis
from sweeper.combinations import Combination
from sweeper.errors import ConfigError, SweeperError
from sweeper.grid_keys import shown

Outcome = Callable[[Mapping[Axis, Any]], SweeperError | None]
_MOST_TRIED = 20  # values of an axis, evenly spaced: each is a whole trial checked


@dataclass(frozen=True)
class _Part:
    """One axis value that has a part in an error, and the values in whose place there is none."""

    axis: Axis
    value: Any
    cures: tuple[Any, ...]

    def setting(self, key: str) -> tuple[str, Any]:
        """What to call the value by, and to know it by: the error's key, else a name, else any.

        Of a case's keys, one that no cure has with the same value, and rather one that all have.
        """
        given = self.axis.settings(self.value)
        cures = [self.axis.settings(cure) for cure in self.cures]

        def unfit(own: str) -> tuple[bool, ...]:
            shared = any(own in cure and cure[own] == given[own] for cure in cures)
            lacking = any(own not in cure for cure in cures)
            return shared, lacking, own != key, not own.endswith(".name")

        own = min(given, key=unfit)
        return own, given[own]


def blamed(error: ConfigError, trial: Combination, outcome: Outcome) -> ConfigError | None:
    """The error by the axis values at fault, with the rule that leaves them out as its hint.

    Parameters
    ----------
    outcome : the error, or None, of the trial with given values of some axes.

    Returns
    -------
    None, when the fault lies with one value, or with none that could be told.
    """
    parts = _parts(error, trial, outcome)
    settings = [part.setting(error.where) for part in parts if part.axis.settings(part.value)]
    if len(settings) < 2:
        return None
    names = " with ".join(f"`{key}={shown(value)}`" for key, value in settings)
    hint = _when(parts, error.where) or _exclude(settings)
    return ConfigError(f"{names}: {error.where}", error.found, error.allowed, hint)


def _parts(error: ConfigError, trial: Combination, outcome: Outcome) -> list[_Part]:
    chosen = dict(zip(trial.axes, trial.values, strict=True))
    cures: dict[Axis, tuple[Any, ...]] = {}
    others: dict[Axis, tuple[Any, ...]] = {}  # that only put another error in this one's place
    for axis, own in chosen.items():
        tried = axis.values[:: math.ceil(len(axis.values) / _MOST_TRIED)]
        found = [(other, outcome(chosen | {axis: other})) for other in tried if other != own]
        cures[axis] = tuple(value for value, after in found if after is None)
        others[axis] = tuple(
            value
            for value, after in found
            if isinstance(after, ConfigError) and after.where != error.where
        )
    helpful = cures if any(cures.values()) else others
    return [
        _Part(axis, value, helpful[axis])
        for axis, value in chosen.items()
        if helpful[axis] or error.where in axis.settings(value)
    ]


def _exclude(settings: list[tuple[str, Any]]) -> str:
    rule = " and ".join(f"{key} == {value!r}" for key, value in settings)
    return f"under `exclude:`, `- {rule}` leaves these trials out"


def _when(parts: list[_Part], key: str) -> str:
    """The rule for an axis none of whose values goes with the other part."""
    hopeless = [part for part in parts if not part.cures and part.axis.label == key]
    partners = [part for part in parts if part.cures]
    if not hopeless or len(partners) != 1 or len(partners[0].axis.values) > _MOST_TRIED:
        return ""
    name, _ = partners[0].setting(key)
    settings = [partners[0].axis.settings(cure) for cure in partners[0].cures]
    cures = list(dict.fromkeys(repr(given[name]) for given in settings if name in given))
    condition = f"{name} == {cures[0]}" if len(cures) == 1 else f"{name} in [{', '.join(cures)}]"
    return (
        f'under `when:`, `- {{if: "{condition}", axes: {{{key}: ...}}}}` '
        "has the axis only where it fits"
        if cures
        else ""
    )
