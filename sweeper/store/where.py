"""Which trials an expression holds for: what `--where` means, to every command that has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeper.expression import parse

_IN_SHELL = "in a shell, put double quotes around the expression and single ones around its strings"


def holds(rows: Iterable[Mapping[str, Any]], where: str) -> list[bool]:
    """Whether the expression `where` is true of each row of a table of trials.

    Parameters
    ----------
    rows : one mapping a trial, all with the same names; None or NaN where one has no such option.

    Raises
    ------
    ExpressionError : `where` is no expression, is neither true nor false for a trial, or names
        what trials do not have.
    """
    expression = parse(where, "--where", quoting=_IN_SHELL)
    return [expression.holds({name: _plain(row[name]) for name in row}) for row in rows]


def _plain(value: Any) -> Any:
    """A table's cell as expressions know it: absent as None, whole as int, a tuple as a list."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
