"""Which axis values a group of trials has in common that other trials do not have. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_MOST_VALUES = 60  # that a group is compared by: each takes one bit of an int64
_MOST_TERMS = 3  # up to which the smallest conjunction is looked for

Values = Mapping[str, Any]


class Axes:
    """The values that vary among the trials of a plan.

    Parameters
    ----------
    ids : the trials.
    configs : the flat configuration of each; a name that one lacks is None there, a list a tuple.
    """

    def __init__(self, ids: Sequence[str], configs: Iterable[Mapping[str, Any]]) -> None:
        self._rows = {trial: row for row, trial in enumerate(ids)}
        columns: dict[str, _Column] = {}
        for row, config in enumerate(configs):
            for name, value in config.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = _Column()
                column.add(row, value)
        coded = {name: column.codes(len(ids)) for name, column in columns.items()}
        self.names = [name for name, codes in coded.items() if codes.any()]
        self._known = [columns[name].known for name in self.names]
        empty = np.zeros((len(ids), 0), np.int32)
        self._codes = np.stack([coded[n] for n in self.names], axis=1) if self.names else empty

    def shared(self, trials: Sequence[str]) -> Values:
        """What all of these trials have alike, and not all trials have."""
        codes = self._codes[self._of(trials)]
        alike = np.flatnonzero((codes == codes[:1]).all(axis=0))[:_MOST_VALUES]
        return {self.names[i]: self._known[i][codes[0, i]] for i in alike}

    def tell_apart(self, trials: Sequence[str], others: Sequence[str]) -> tuple[Values, int]:
        """The fewest of the shared values that leave out all `others` that can be left out.

        Returns
        -------
        values, n_others : none where there is nobody to leave out; the number of `others` that
            have all that the trials share.
        """
        shared = self.shared(trials)
        names = list(shared)
        patterns, counts = self._patterns(shared, others)
        n_others = _n_with(patterns, counts, range(len(names)))
        for chosen in _conjunctions(len(names)):
            if _n_with(patterns, counts, chosen) == n_others:
                return {names[i]: shared[names[i]] for i in chosen}, n_others
        chosen = tuple(range(len(names)))
        for i in reversed(range(len(names))):
            fewer = tuple(j for j in chosen if j != i)
            chosen = fewer if _n_with(patterns, counts, fewer) == n_others else chosen
        return {names[i]: shared[names[i]] for i in chosen}, n_others

    def n_with(self, values: Values, trials: Sequence[str]) -> int:
        """How many of the trials have all of these values."""
        return int(self._has(values, trials).all(axis=1).sum())

    def _of(self, trials: Sequence[str]) -> Any:
        return np.fromiter((self._rows[trial] for trial in trials), np.intp, len(trials))

    def _has(self, values: Values, trials: Sequence[str]) -> Any:
        """Which trial has which value, (n_trials, n_values) bool."""
        columns = [self.names.index(name) for name in values]
        pairs = zip(columns, values.values(), strict=True)
        codes = [self._known[i].index(value) for i, value in pairs]
        return self._codes[self._of(trials)][:, columns] == np.array(codes, np.int32)

    def _patterns(self, values: Values, trials: Sequence[str]) -> tuple[Any, Any]:
        """The different sets of these values that the trials have, as bits, and how many each."""
        bits = np.left_shift(1, np.arange(len(values), dtype=np.int64))
        return np.unique(self._has(values, trials) @ bits, return_counts=True)


class _Column:
    """One name's values as small numbers, in the order in which they came."""

    def __init__(self) -> None:
        self._seen: dict[Any, int] = {}
        self._codes: list[int] = []

    @property
    def known(self) -> list[Any]:
        return list(self._seen)

    def add(self, row: int, value: Any) -> None:
        key = tuple(value) if isinstance(value, list) else value
        self._pad(row)
        self._codes.append(self._seen.setdefault(key, len(self._seen)))

    def codes(self, n_rows: int) -> Any:
        self._pad(n_rows)
        return np.array(self._codes, np.int32)

    def _pad(self, n_rows: int) -> None:
        """Trials that lack the name have None."""
        n_missing = n_rows - len(self._codes)
        if n_missing > 0:
            self._codes += [self._seen.setdefault(None, len(self._seen))] * n_missing


def _conjunctions(n_values: int) -> Iterator[tuple[int, ...]]:
    for n_terms in range(_MOST_TERMS + 1):
        yield from itertools.combinations(range(n_values), n_terms)


def _n_with(patterns: Any, counts: Any, chosen: Iterable[int]) -> int:
    wanted = np.int64(sum(1 << i for i in chosen))
    return int(counts[(patterns & wanted) == wanted].sum())


# --- in words -------------------------------------------------------------------------------


def in_words(
    axes: Axes, trials: Sequence[str], ended: Sequence[str], unended: Sequence[str]
) -> str:
    """Which trials are affected, as a clause.

    Parameters
    ----------
    trials : those that are.
    ended : the others that had their chance, and ended otherwise.
    unended : the others, of which nothing is known yet.
    """
    if len(trials) == 1:
        values, _ = axes.tell_apart(trials, [*ended, *unended])
        return terms(values) or "the only trial"
    if not ended and unended:
        return _so_far(axes, trials, unended)
    values, n_against = axes.tell_apart(trials, ended)
    n_unended = axes.n_with(values, unended)
    named = f" with {terms(values)}" if values else ""
    if n_against:
        alone = "" if values else ": no value that they share tells them apart"
        return (
            f"{len(trials):,} of the {len(trials) + n_against:,} trials{named} that have run{alone}"
        )
    if n_unended:
        return f"all {len(trials):,} trials{named} that have run; {n_unended:,} are still to run"
    return f"every trial{named} fails so"


def _so_far(axes: Axes, trials: Sequence[str], unended: Sequence[str]) -> str:
    """The same where all that have run are affected: what tells them from those still to run."""
    values, n_alike = axes.tell_apart(trials, unended)
    if not values:
        return f"all {len(trials):,} trials that have run; {n_alike:,} are still to run"
    if n_alike:
        named = f"{len(trials):,} of the {len(trials) + n_alike:,} with {terms(values)}"
        return f"{named}; the others have not run"
    return f"all {len(trials):,} with {terms(values)}; the others have not run"


def terms(values: Values) -> str:
    """Values as one reads them: `model.name=vit and optim.batch_size=1000`."""
    return " and ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)
