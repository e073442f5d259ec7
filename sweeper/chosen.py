"""Which trials a command is about: `--where`, `--id` and `--state`, alike wherever they are.

What is asked for is the trials that satisfy all three; several `--id`, or several `--state`, are
alternatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sweeper.errors import ExpressionError, SweeperError, nearest
from sweeper.expression import parse
from sweeper.status.states import STATES

Where = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="EXPR", help="Only trials for which this holds: `model.name == 'vit'`."
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="TRIAL", help="Only this trial, by the beginning of its id."),
]
States = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help=f"Only trials that are {', '.join(STATES)}."),
]


@dataclass(frozen=True)
class Selectors:
    """What was asked for; false when that is every trial."""

    where: str | None = None
    ids: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, where: str | None, ids: Iterable[str] | None, states: Iterable[str] | None
    ) -> Selectors:
        """What the three options say.

        Raises
        ------
        SweeperError : there is no such state. ExpressionError : `where` is no expression.
        """
        asked = cls(where, tuple(ids or ()), tuple(states or ()))
        if where is not None:
            parse(where, "--where")
        for state in asked.states:
            if state not in STATES:
                known = f"one of {', '.join(STATES)}"
                hint = nearest(state, STATES) or "`sweeper status DIR` shows how many are in each"
                raise SweeperError("--state", f"unknown state `{state}`", known, hint)
        return asked

    def __bool__(self) -> bool:
        return self.where is not None or bool(self.ids or self.states)

    def __str__(self) -> str:
        where = [] if self.where is None else [f"--where {self.where}"]
        ids, states = (f"--id {id_}" for id_ in self.ids), (f"--state {s}" for s in self.states)
        return " ".join([*where, *ids, *states])


def chosen(
    asked: Selectors,
    ids: Sequence[str],
    configs: Callable[[], Iterable[Mapping[str, Any] | None]],
    states: Callable[[], Mapping[str, str]],
) -> list[str]:
    """The ids of the trials that are asked for, in their order.

    Parameters
    ----------
    ids : all trials, in order.
    configs : gives the flat configuration of each, in the same order; called for `--where` alone.
        One that is None is not known, and is taken.
    states : gives the state of each by id (see `states_of`); called for `--state` alone.

    Raises
    ------
    SweeperError : an id is none of these trials' or the beginning of several, or none is chosen.
    ExpressionError : `--where` names what trials do not have, or is not true or false of one.
    """
    left: Collection[str] = ids
    if asked.ids:
        left = {find_trial(text, ids, "--id") for text in asked.ids}
    if asked.states:
        found = states()
        left = {trial for trial in left if found.get(trial) in asked.states}
    if asked.where is not None:
        left = set(left).intersection(_holding(asked.where, ids, configs()))
    if asked and not left:
        hint = "`sweeper status DIR` shows how many trials are in each state"
        raise SweeperError(str(asked), f"none of {len(ids):,} trials", "at least one", hint)
    return [trial for trial in ids if trial in left] if asked else list(ids)


def find_trial(text: str, ids: Collection[str], where: str) -> str:
    """The one trial whose id is, or begins with, a text.

    Raises
    ------
    SweeperError : there is none, or several.
    """
    found = [text] if text in ids else [trial for trial in ids if trial.startswith(text)]
    if len(found) == 1 and text:
        return found[0]
    allowed = "an id, or a beginning that one id alone has"
    if found:
        first = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise SweeperError(where, f"`{text}` begins {len(found):,} ids", allowed, f"these: {first}")
    near = [trial for trial in ids if trial[:3] == text[:3]] if len(ids) > 1000 else ids
    hint = nearest(text, near) or "`sweeper failures` and the names of the logs show ids"
    raise SweeperError(where, f"no trial `{text}`", allowed, hint)


def _holding(
    where: str, ids: Sequence[str], configs: Iterable[Mapping[str, Any] | None]
) -> Iterator[str]:
    """The trials for which an expression holds; what one lacks and another has is None."""
    from sweeper.store.where import holds

    names, known = parse(where, "--where").names, dict[str, None]()
    rows, of_rows = [], []
    for trial, config in zip(ids, configs, strict=True):
        if config is None:
            yield trial
            continue
        known.update(dict.fromkeys(config))
        rows.append({name: config.get(name) for name in names})
        of_rows.append(trial)
    for name in sorted(names - known.keys()) if rows else ():
        quote = f"a string needs quotes: '{name}'" if "." not in name else ""
        hint = nearest(name, known) or quote
        raise ExpressionError("--where", f"`{where}`: unknown name `{name}`", hint=hint)
    yield from itertools.compress(of_rows, holds(rows, where))
