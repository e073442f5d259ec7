"""Colours that every figure and the report share; distinguishable with any colour vision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe & Ito's palette (jfly.uni-koeln.de/color) without its yellow, too pale on white, and three
# darker tones of Paul Tol's.
CATEGORIES = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#332288", "#882255", "#117733"),
)
# Viridis without its palest end, for values that are numbers.
SEQUENCE = ("#440154", "#414487", "#2A788E", "#22A884", "#7AD151")
INK, FAINT, GRID = "#1F2933", "#9AA5B1", "#DDE3EA"
SPACE_LIKE, TIME_LIKE = CATEGORIES[0], CATEGORIES[1]


def levels(values: Sequence[Any]) -> list[Any]:
    """The distinct values in order: numbers by size, the rest by name, None last."""
    distinct = {str(value): value for value in values}.values()

    def order(value: Any) -> tuple[int, float, str]:
        number = _is_number(value)
        return (0 if number else 1 if value is not None else 2, value if number else 0, str(value))

    return sorted(distinct, key=order)


def named(value: Any) -> str:
    """A value as a grid has it: a list in brackets, no value `none`."""
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else str(value)


def colours(distinct: Sequence[Any]) -> list[str]:
    """A colour for each of the distinct values: a sequence for numbers, else categories."""
    numeric = len(distinct) > 2 and all(_is_number(value) for value in distinct)
    if numeric or len(distinct) > len(CATEGORIES):
        return [_along(i / max(1, len(distinct) - 1)) for i in range(len(distinct))]
    return list(CATEGORIES[: len(distinct)])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _along(t: float) -> str:
    """The colour at t in [0, 1] of `SEQUENCE`."""
    position = t * (len(SEQUENCE) - 1)
    i = min(int(position), len(SEQUENCE) - 2)
    low, high = (bytes.fromhex(SEQUENCE[j][1:]) for j in (i, i + 1))
    mixed = (round(a + (b - a) * (position - i)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02X}" for channel in mixed)
