"""Which trials and snapshots an analysis is of, in what order, and what it leaves out."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.copies import NOT_SELECTED, check_agreement, one_each, repeated
from analysis.places import to_record
from analysis.union import Source, Union
from sweeper.errors import AnalysisError, few
from sweeper.store import Store
from sweeper.store.objects import REQUESTS_AT_ONCE
from sweeper.store.where import holds

ROWS = ("trial_id", "snapshot", "step", "epoch", "accuracy", "loss")
UNTRAINED = 0.1  # final training error above which a network has not learnt its training set

_NOTHING_LEFT = {  # what to do about trials that are left out for a reason, the likeliest first
    "incomplete": "`sweeper resume DIR` completes them",
    "untrained": "without `--exclude-untrained` they are analysed",
    NOT_SELECTED: "`--where` has to hold for some of them",
}


@dataclass(frozen=True)
class Selection:
    """Snapshots of the trials of some stores, in the order of every artifact's rows.

    Attributes
    ----------
    rows : one row a snapshot with the columns `ROWS`: `trial_id`, `snapshot` (its index in the
        trial), `step`, `epoch`, test `accuracy` in [0, 1] and `loss` in nats; trials sorted by
        id, snapshots in order.
    trials : all trials, one row each as `Store.trials` gives it, and the columns `sweep`, the name
        of its source, and `left_out`: None for those that are analysed, else why not.
    union : the stores, and `homes`, which of them each trial that is analysed is read from.
    repeated : the analysed trials that other sources have as well, by the name of that source.
    where, exclude_untrained, split : what was asked.
    """

    rows: pd.DataFrame
    trials: pd.DataFrame
    union: Union
    homes: Mapping[str, Source]
    repeated: Mapping[str, Sequence[str]]
    where: str | None
    exclude_untrained: bool
    split: str

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each trial that is analysed."""
        kept = self.trials[self.trials["left_out"].isna()]
        return dict(zip(kept.index, kept["digest"], strict=True))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The trials that are not analysed, by reason."""
        reasons = self.trials["left_out"].dropna()
        return {str(reason): sorted(ids.index) for reason, ids in reasons.groupby(reasons)}

    @property
    def example(self) -> tuple[str, Store]:
        """A trial and its store: samples and classes are those of all, which `select` has seen."""
        trial_id, home = next(iter(self.homes.items()))
        return trial_id, home.store

    @property
    def locations(self) -> dict[str, str]:
        """The folder or URL of the store that each trial is read from, by trial id."""
        return {trial_id: home.store.location for trial_id, home in self.homes.items()}

    def places(self, folder: Path) -> list[dict[str, Any]]:
        """Where trials are, from a folder on: a record of JSON values for each source.

        `trials` counts the analysed ones that are read there, `repeated` those that are not,
        because an earlier source has them as well.
        """
        read = Counter(home.name for home in self.homes.values())
        return [
            {
                "place": to_record(source.place, folder),
                "trials": read[source.name],
                "repeated": len(self.repeated.get(source.name, ())),
            }
            for source in self.union.sources
        ]


def select(
    union: Union, where: str | None = None, exclude_untrained: bool = False, split: str = "test"
) -> Selection:
    """The snapshots of all complete trials for which `where` holds.

    Parameters
    ----------
    where : an expression over configuration fields, final metrics, `trial_id`, `state` and
        `sweep` (the name of the directory or prefix that a trial is read from), such as
        ``model.name == 'vit' and seed < 45``.
    exclude_untrained : leave out trials whose final training error exceeds 0.1.
    split : the samples whose predictions are compared, `test` or `train`.

    Raises
    ------
    AnalysisError : nothing is left, the trials differ in sample set or class names, or one has
        come out differently in two stores.
    ExpressionError : `where` is no expression, is neither true nor false for a trial, or names
        what trials do not have.
    MissingStoreError : a trial has no predictions of that split.
    """
    copies = union.copies()
    if copies.empty:
        raise AnalysisError(
            union.location, "no trials", "at least one", "`sweeper launch GRID` runs some"
        )
    chosen = holds(copies.to_dict("records"), where) if where is not None else True
    copies["left_out"] = pd.Series(None, index=copies.index, dtype=object)
    _leave_out(copies, ~pd.Series(chosen, index=copies.index, dtype=bool), NOT_SELECTED)
    for state in ("incomplete", "diverged"):
        _leave_out(copies, copies["state"] == state, state)
    check_agreement(copies, union)
    trials = one_each(copies)
    if exclude_untrained:
        _leave_out(trials, _untrained(trials), "untrained")
    kept = trials[trials["left_out"].isna()]
    if kept.empty:
        raise _nothing_left(union, trials)
    sources = {source.name: source for source in union.sources}
    homes = {str(trial_id): sources[name] for trial_id, name in kept["sweep"].items()}
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        rows = pd.concat(pool.map(_rows, homes, homes.values()), ignore_index=True)
    _check_comparable(union, homes, split)
    again = repeated(copies, kept)
    return Selection(rows, trials, union, homes, again, where, exclude_untrained, split)


def _leave_out(trials: pd.DataFrame, condition: pd.Series[bool], reason: str) -> None:
    """Give the reason to those that have none yet."""
    trials.loc[condition & trials["left_out"].isna(), "left_out"] = reason


def _untrained(trials: pd.DataFrame) -> pd.Series[bool]:
    complete = trials["left_out"].isna()
    known = trials.get("train_accuracy", pd.Series(index=trials.index, dtype=float))
    missing = trials.index[complete & known.isna()]
    if len(missing):
        raise AnalysisError(
            "--exclude-untrained",
            f"{_named(missing)} recorded no training accuracy",
            hint="`record.train: metrics` in the grid records it",
        )
    return 1 - known > UNTRAINED


def _nothing_left(union: Union, trials: pd.DataFrame) -> AnalysisError:
    counts = trials["left_out"].value_counts()
    found = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    hint = next((hint for reason, hint in _NOTHING_LEFT.items() if reason in counts), "")
    return AnalysisError(
        union.location,
        f"nothing to analyse: {found} of {len(trials)} trials",
        "at least one complete trial",
        hint,
    )


def _check_comparable(union: Union, homes: Mapping[str, Source], split: str) -> None:
    """Refuse trials whose predictions are not of the same samples and classes."""
    for what, value in (
        ("sample set", lambda store, trial_id: store.sample_set(split, trial_id)),
        ("class names", Store.class_names),
    ):
        found: dict[typing.Hashable, list[str]] = {}
        for trial_id, home in homes.items():
            found.setdefault(value(home.store, trial_id), []).append(trial_id)
        if len(found) > 1:
            differing, hint = _differing(what, found, homes), "select with `--where`"
            raise AnalysisError(union.location, differing, f"one {what}", hint)


def _differing(
    what: str, found: Mapping[typing.Hashable, list[str]], homes: Mapping[str, Source]
) -> str:
    groups = [f"`{_short(key)}` ({_named(ids)}{_of(ids, homes)})" for key, ids in found.items()]
    return f"trials differ in {what}: {', '.join(groups)}"


def _of(trial_ids: Sequence[str], homes: Mapping[str, Source]) -> str:
    """The first place that has one of the trials, where there are several places."""
    several = len({home.name for home in homes.values()}) > 1
    return f" in `{homes[trial_ids[0]].place}`" if several else ""


def _short(key: typing.Hashable) -> str:
    text = ", ".join(key) if isinstance(key, tuple) else str(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(trial_ids: Sequence[str] | pd.Index[str]) -> str:
    """`trial t1, t2, t3 and 4 more`."""
    return f"trial {few(list(trial_ids))}"


def _rows(trial_id: str, home: Source) -> pd.DataFrame:
    table = home.store.snapshots(trial_id).rename(
        columns={"test_accuracy": "accuracy", "test_loss": "loss"}
    )
    table.insert(0, "trial_id", trial_id)
    return table[list(ROWS)]
