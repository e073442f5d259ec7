"""Reuse the distances of an earlier matrix, of which a new one has some of the rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.distance import distance_of
from analysis.tiles import Array, Distances, Tile, Tiling
from sweeper.errors import AnalysisError, StoreError

_SAME = ("split", "n_samples", "n_classes", "coefficient_floor", "probability_floor")


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier matrix, finished or not, and where in it the rows of a new one are.

    Attributes
    ----------
    path : the folder of the earlier matrix.
    there : (M,) the row of the earlier matrix that each row of the new one is, or −1. Rows are in
        one order everywhere, so what is above the diagonal here is above it there.
    sound : the tiles of the earlier matrix that are finished and undamaged, of those that matter.
    """

    path: Path
    there: Array
    sound: frozenset[Tile]

    def __reduce__(self) -> tuple[Any, ...]:
        # No open matrix, and a path that other processes, in other folders, find as well.
        return Earlier, (self.path.absolute(), self.there, self.sound)

    @functools.cached_property
    def _matrix(self) -> Distances:
        return Distances(self.path)

    def reusable(self, tiling: Tiling) -> frozenset[Tile]:
        """The tiles of the new matrix whose pairs of earlier rows, one at least, are all here."""
        tile, needed = self._matrix.tiling.tile, []
        for index in range(tiling.n):
            there = self.there[tiling.span(index)]
            needed.append(np.unique(there[there >= 0] // tile).tolist())
        return frozenset(
            (i, j)
            for i, j in tiling.upper()
            if needed[i] and needed[j]
            if all((a, b) in self.sound for a in needed[i] for b in needed[j] if a <= b)
        )

    def copy(self, rows: slice, columns: slice, into: Array) -> None:
        """Fill in the pairs that are here, of (n_rows, n_columns)."""
        tile = self._matrix.tiling.tile
        for p, i in self._by_tile(rows):
            for q, j in self._by_tile(columns):
                values = self._matrix.tile((i, j)) if i <= j else self._matrix.tile((j, i)).T
                here = np.ix_(self.there[rows][p] % tile, self.there[columns][q] % tile)
                into[np.ix_(p, q)] = values[here]

    def copy_references(self, rows: slice, into: Array) -> None:
        """Fill in the references of the rows that are here, of (2, n_rows)."""
        for p, i in self._by_tile(rows):
            there = self.there[rows][p] % self._matrix.tiling.tile
            into[:, p] = self._matrix.references_of(i)[:, there]

    def _by_tile(self, span: slice) -> Iterator[tuple[Array, int]]:
        """Places within a span whose rows are of one tile of the earlier matrix, and of which."""
        places = np.flatnonzero(self.there[span] >= 0)
        tiles = self.there[span][places] // self._matrix.tiling.tile
        for index in np.unique(tiles):
            yield places[tiles == index], int(index)


def earlier_of(paths: Sequence[Path], about: Mapping[str, Any]) -> Earlier | None:
    """The one of some matrices that has most of what one about this needs; None if none has any."""
    found = [earlier for path in paths if (earlier := _earlier(path, about)) is not None]
    return max(found, key=lambda earlier: len(earlier.sound), default=None)


def _earlier(path: Path, about: Mapping[str, Any]) -> Earlier | None:
    try:
        D = Distances(path)
    except (AnalysisError, StoreError):
        return None
    there = _places(D.about, about) if _is_like(D.about, about) else None
    if there is None:
        return None
    rows = np.unique(there[there >= 0] // D.tiling.tile).tolist()
    tiles = itertools.combinations_with_replacement(rows, 2)
    sound = frozenset(tile for tile in tiles if D.is_sound(tile))
    return Earlier(path, there, sound) if sound else None


def _is_like(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether distances of equal predictions are equal, and rows are named."""
    if not all("snapshots" in about.get("inputs", ()) for about in (old, new)):
        return False
    return distance_of(old) == distance_of(new) and all(
        old[part].get(name) == new[part].get(name)
        for part, names in (
            ("inputs", ["sample_set"]),
            ("parameters", _SAME),
            ("versions", ["sweeper"]),
        )
        for name in names
    )


def _places(old: Mapping[str, Any], new: Mapping[str, Any]) -> Array:
    """Where in an old matrix each row of a new one is, or −1."""
    starts = {trial_id: start for trial_id, start, _ in _trials(old)}
    digests, digests_now = old["inputs"]["digests"], new["inputs"]["digests"]
    found = []
    for trial_id, _, n in _trials(new):
        is_same = digests.get(trial_id) == digests_now[trial_id]
        found.append(starts[trial_id] + np.arange(n) if is_same else np.full(n, -1))
    return np.concatenate(found)


def _trials(about: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Each trial with its first row and how many it has, in order of the rows."""
    start = 0
    for trial_id, n in sorted(about["inputs"]["snapshots"].items()):
        yield trial_id, start, n
        start += n
