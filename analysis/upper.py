"""A symmetric matrix as its tiles on and above the diagonal, which threads read and work on."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from analysis.tiles import TILE, Distances, Tile, Tiling
from sweeper.errors import AnalysisError
from sweeper.processors import n_cores

Float64 = npt.NDArray[np.float64]
Progress = Callable[[float, int], None]  # how many are done, and of how many
T = TypeVar("T")

RESIDENT = 2 << 30  # bytes of float64 tiles that are kept in memory


class Matrix(Protocol):
    """A square matrix that can be read by blocks: an array, or `analysis.tiles.Distances`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, M)."""

    def __getitem__(self, key: Any, /) -> Any:
        """The block of two slices."""


class Upper:
    """The tiles on and above the diagonal of a symmetric matrix D.

    Where they fit into 2 GiB as float64 (M ≤ 23,170) they are read once and kept; else each pass
    reads them again, and four for each processor are in memory at a time.

    Parameters
    ----------
    D : (M, M); of what is not `Distances`, whose lower half is its upper one, only the upper half
        is used, see `mirrored`.
    progress : called with the number of tiles that were read and of those to be read by then.

    Raises
    ------
    AnalysisError : D is not square, or smaller than 2.
    """

    def __init__(self, D: Matrix, progress: Progress = lambda done, total: None) -> None:
        if len(D.shape) != 2 or D.shape[0] != D.shape[1] or D.shape[0] < 2:
            raise AnalysisError("D", f"shape `{tuple(D.shape)}`", "a square matrix of 2 or more")
        self.M = D.shape[0]
        self.fits = 4 * self.M**2 <= RESIDENT
        self.is_symmetric = isinstance(D, Distances)
        self._D, self._progress = D, progress
        self.tiling = D.tiling if isinstance(D, Distances) else Tiling(self.M, min(self.M, TILE))
        self._kept: dict[Tile, Float64] = {}
        self._n_read = 0
        self._blas = ThreadpoolController()

    def each(
        self, work: Callable[[slice, slice, Float64], T], passes: int = 1
    ) -> Iterator[tuple[slice, slice, T]]:
        """What `work` makes of each tile's rows, columns and float64 values, in order of rows.

        Tiles are read and worked on ahead of what is asked for, by two threads for each processor,
        so that one reads while one computes. BLAS has one thread in each, because a tile is too
        little for several.

        Parameters
        ----------
        passes : how many there will be at most, this one included, for `progress`.
        """

        def task(tile: Tile) -> T:
            return work(*self._spans(tile), self._read(tile))

        tiles = list(self.tiling.upper())
        total = self._n_read + passes * len(tiles)
        upcoming, n_threads = iter(tiles), 2 * n_cores()
        with (
            self._blas.limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(n_threads) as pool,
        ):
            ahead: deque[Future[T]] = deque()
            for tile in tiles:
                for following in itertools.islice(upcoming, 2 * n_threads - len(ahead)):
                    ahead.append(pool.submit(task, following))
                yield *self._spans(tile), ahead.popleft().result()
                if not self.fits:
                    self._n_read += 1
                    self._progress(self._n_read, total)

    def mirrored(self, rows: slice, columns: slice) -> Float64:
        """The block below the diagonal that should equal that of these rows and columns."""
        return np.asarray(self._D[columns, rows], dtype=np.float64).T

    def _spans(self, tile: Tile) -> tuple[slice, slice]:
        return self.tiling.span(tile[0]), self.tiling.span(tile[1])

    def _read(self, tile: Tile) -> Float64:
        if tile in self._kept:
            return self._kept[tile]
        D, spans = self._D, self._spans(tile)
        values = D.tile(tile) if isinstance(D, Distances) else D[spans]
        block = np.asarray(values, dtype=np.float64)
        if self.fits:
            self._kept[tile] = block
        return block
