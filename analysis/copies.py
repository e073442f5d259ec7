"""Trials that several stores have: whether they agree, and which of them is read."""

from __future__ import annotations

import pandas as pd

from analysis.union import Union
from sweeper.errors import AnalysisError

NOT_SELECTED = "not selected"
_WORSE = {"diverged": 1, "incomplete": 2, NOT_SELECTED: 3}  # than a trial that is analysed


def check_agreement(copies: pd.DataFrame, union: Union) -> None:
    """Refuse a trial that has come out differently in two of the selected stores.

    Parameters
    ----------
    copies : as `Union.copies`, with the column `left_out`.

    Raises
    ------
    AnalysisError : naming the first such trial, two of its places and their digests.
    """
    chosen = copies[copies["digest"].notna() & (copies["left_out"] != NOT_SELECTED)]
    distinct = chosen.drop_duplicates(["trial_id", "digest"])
    differing = distinct[distinct.duplicated("trial_id", keep=False)]
    if differing.empty:
        return
    n_trials = differing["trial_id"].nunique()
    first, second, *_ = differing.to_dict("records")
    places = [union.source(row["sweep"]).place for row in (first, second)]
    one = f"--where \"trial_id != '{first['trial_id']}' or sweep == '{first['sweep']}'\""
    raise AnalysisError(
        f"trial {first['trial_id']}",
        f"complete in `{places[0]}` with digest {first['digest'][:12]} and in `{places[1]}` with "
        f"digest {second['digest'][:12]}"
        + (f"; so are {n_trials - 1} more trials" if n_trials > 1 else ""),
        "one outcome a trial",
        f"`sweeper verify` of both finds damage; on GPUs repeated trials agree only to rounding, "
        f"and the choice is yours: name one of these places alone, or {one}",
    )


def one_each(copies: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, indexed by `trial_id` in order.

    A copy that is analysed counts before one that is left out, and among equals the first store's.
    """
    rank = copies["left_out"].map(_WORSE).fillna(0).sort_values(kind="stable")
    return copies.loc[rank.index].drop_duplicates("trial_id").set_index("trial_id").sort_index()


def repeated(copies: pd.DataFrame, analysed: pd.DataFrame) -> dict[str, list[str]]:
    """The trials that are analysed and are in other stores as well, by the name of such a store.

    Parameters
    ----------
    analysed : the rows of `one_each` that are analysed.
    """
    equal = copies[copies["left_out"].isna() & copies["trial_id"].isin(analysed.index)]
    others = equal[equal["sweep"].to_numpy() != analysed.loc[equal["trial_id"], "sweep"].to_numpy()]
    return {str(name): list(rows["trial_id"]) for name, rows in others.groupby("sweep")}
