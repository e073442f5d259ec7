"""Several stores read as one: shards of a grid, sweeps of several grids, folders and buckets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.places import recorded
from sweeper.errors import AnalysisError, MissingStoreError, few
from sweeper.store import Store, open_store


@dataclass(frozen=True)
class Source:
    """One of the stores.

    Attributes
    ----------
    name : what the column `sweep` of a table of trials says of its trials.
    place : the sweep directory, folder or URL by which it was named.
    """

    name: str
    place: str
    store: Store


@dataclass(frozen=True)
class Union:
    """Stores, in the order in which they were named; of equal trials the first one's is read."""

    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """The names of all, shortened to `a, b, c and 4 more`."""
        return few([source.name for source in self.sources])

    @property
    def location(self) -> str:
        """Where this is, for messages."""
        first, *others = self.sources
        more = "1 more place" if len(others) == 1 else f"{len(others)} more places"
        return f"{first.place} and {more}" if others else first.store.location

    def source(self, name: str) -> Source:
        """The one of that name."""
        return next(source for source in self.sources if source.name == name)

    def copies(self) -> pd.DataFrame:
        """One row a trial and store that has it, sorted by trial id.

        Columns: those of `Store.trials`, `trial_id` among them, and `sweep`, its source's name;
        None or NaN where a trial has no such option. What is unfinished in one store and finished
        in another is left out.
        """
        rows = [
            row | {"sweep": source.name}
            for source in self.sources
            for row in source.store.trials().reset_index().to_dict("records")
        ]
        if not rows:
            return pd.DataFrame(columns=["trial_id", "state", "digest", "sweep"])
        rows.sort(key=lambda row: str(row["trial_id"]))
        table = pd.DataFrame.from_records(rows)
        finished = table["digest"].notna()
        again = table["trial_id"].isin(table.loc[finished, "trial_id"])
        return table[finished | ~again].reset_index(drop=True)


def open_union(
    places: Sequence[str | Path], say: Callable[[str], None] = lambda message: None
) -> Union:
    """Open the stores at these places, each once.

    Parameters
    ----------
    places : sweep directories, stores' folders or URLs, or folders of earlier analyses.
    say : is told of what is named twice.

    Raises
    ------
    MissingStoreError : a place holds no store. AnalysisError : nor does one that an earlier
        analysis was of. FormatVersionError, StoreURLError, UnavailableStoreError : as by
        `open_store`.
    """
    found: dict[str, tuple[str, Store]] = {}
    for place, store in (pair for given in places for pair in _opened(str(given))):
        key = store.location if "://" in store.location else os.path.realpath(store.location)
        if key in found:
            say(f"{place}: the same place as `{found[key][0]}`, taken once")
        found.setdefault(key, (place, store))
    names = _names([place for place, _ in found.values()])
    sources = (Source(name, *pair) for name, pair in zip(names, found.values(), strict=True))
    return Union(tuple(sources))


def _opened(place: str) -> Iterator[tuple[str, Store]]:
    """The store at a place, or those that an earlier analysis there was of."""
    try:
        pairs = [(place, open_store(place))]
    except MissingStoreError:
        earlier = [] if "://" in place else recorded(Path(place))
        if not earlier:
            raise
        pairs = [(inner, _open_recorded(inner, place)) for inner in earlier]
    yield from pairs


def _open_recorded(place: str, folder: str) -> Store:
    try:
        return open_store(place)
    except MissingStoreError as error:
        raise AnalysisError(
            folder,
            f"an analysis of `{place}`, where there is no store any more",
            "the places that the distances were computed from",
            f"bring it back, or `sweeper analyze all PLACE... --out {folder}` of what is there",
        ) from error


def _names(places: Sequence[str]) -> list[str]:
    """A name for each: the last part of its path, and so many before it as set them apart."""
    paths = [place if "://" in place else str(Path(place).resolve()) for place in places]
    for length in range(1, max(path.count("/") for path in paths) + 2):
        names = ["/".join(path.split("/")[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
