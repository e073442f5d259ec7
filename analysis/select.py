"""Which trials and snapshots an analysis is of, in what order, and what it leaves out."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sweeper.errors import AnalysisError
from sweeper.store import Store
from sweeper.store.where import holds

ROWS = ("trial_id", "snapshot", "step", "epoch", "accuracy", "loss")
UNTRAINED = 0.1  # final training error above which a network has not learnt its training set

_NOTHING_LEFT = {  # what to do about trials that are left out for a reason, the likeliest first
    "incomplete": "`sweeper resume DIR` completes them",
    "untrained": "without `--exclude-untrained` they are analysed",
    "not selected": "`--where` has to hold for some of them",
}


@dataclass(frozen=True)
class Selection:
    """Snapshots of one store, in the order of every artifact's rows.

    Attributes
    ----------
    rows : one row a snapshot with the columns `ROWS`: `trial_id`, `snapshot` (its index in the
        trial), `step`, `epoch`, test `accuracy` in [0, 1] and `loss` in nats; trials sorted by
        id, snapshots in order.
    trials : all trials of the store, as `Store.trials` gives them, and a column `left_out`: None
        for those that are analysed, else why not.
    where, exclude_untrained, split : what was asked.
    """

    rows: pd.DataFrame
    trials: pd.DataFrame
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


def select(
    store: Store, where: str | None = None, exclude_untrained: bool = False, split: str = "test"
) -> Selection:
    """The snapshots of all complete trials for which `where` holds.

    Parameters
    ----------
    where : an expression over configuration fields, final metrics, `trial_id` and `state`, such
        as ``model.name == 'vit' and seed < 45``.
    exclude_untrained : leave out trials whose final training error exceeds 0.1.
    split : the samples whose predictions are compared, `test` or `train`.

    Raises
    ------
    AnalysisError : nothing is left, or the trials differ in sample set or class names.
    ExpressionError : `where` is no expression, is neither true nor false for a trial, or names
        what trials do not have.
    MissingStoreError : a trial has no predictions of that split.
    """
    trials = store.trials().sort_index()
    if trials.empty:
        raise AnalysisError(
            store.location, "no trials", "at least one", "`sweeper launch GRID` runs some"
        )
    trials["left_out"] = pd.Series(None, index=trials.index, dtype=object)
    if where is not None:
        rows = trials.drop(columns="left_out").reset_index().to_dict("records")
        chosen = pd.Series(holds(rows, where), index=trials.index, dtype=bool)
        _leave_out(trials, ~chosen, "not selected")
    for state in ("incomplete", "diverged"):
        _leave_out(trials, trials["state"] == state, state)
    if exclude_untrained:
        _leave_out(trials, _untrained(trials), "untrained")
    kept = list(trials.index[trials["left_out"].isna()])
    if not kept:
        raise _nothing_left(store, trials)
    _check_comparable(store, kept, split)
    rows = pd.concat([_rows(store, trial_id) for trial_id in kept], ignore_index=True)
    return Selection(rows, trials, where, exclude_untrained, split)


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


def _nothing_left(store: Store, trials: pd.DataFrame) -> AnalysisError:
    counts = trials["left_out"].value_counts()
    found = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    hint = next((hint for reason, hint in _NOTHING_LEFT.items() if reason in counts), "")
    return AnalysisError(
        store.location,
        f"nothing to analyse: {found} of {len(trials)} trials",
        "at least one complete trial",
        hint,
    )


def _check_comparable(store: Store, kept: Sequence[str], split: str) -> None:
    """Refuse trials whose predictions are not of the same samples and classes."""
    for what, value in (
        ("sample set", lambda trial_id: store.sample_set(split, trial_id)),
        ("class names", store.class_names),
    ):
        found: dict[typing.Hashable, list[str]] = {}
        for trial_id in kept:
            found.setdefault(value(trial_id), []).append(trial_id)
        if len(found) > 1:
            raise AnalysisError(
                store.location, _differing(what, found), f"one {what}", "select with `--where`"
            )


def _differing(what: str, found: Mapping[typing.Hashable, list[str]]) -> str:
    groups = [f"`{_short(key)}` ({_named(ids)})" for key, ids in found.items()]
    return f"trials differ in {what}: {', '.join(groups)}"


def _short(key: typing.Hashable) -> str:
    text = ", ".join(key) if isinstance(key, tuple) else str(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(trial_ids: Sequence[str] | pd.Index[str]) -> str:
    """`trial t1, t2, t3 and 4 more`."""
    more = f" and {len(trial_ids) - 3} more" if len(trial_ids) > 3 else ""
    return f"trial {', '.join(trial_ids[:3])}{more}"


def _rows(store: Store, trial_id: str) -> pd.DataFrame:
    table = store.snapshots(trial_id).rename(
        columns={"test_accuracy": "accuracy", "test_loss": "loss"}
    )
    table.insert(0, "trial_id", trial_id)
    return table[list(ROWS)]
