"""The matrix that InPCA decomposes, as something to multiply by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.upper import Float64, Matrix, Progress, Upper
from sweeper.errors import AnalysisError

ASYMMETRY = 1e-9  # of the largest distance
STRIP = 64  # rows of a tile at once, which a processor's own cache holds
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class _Part:
    """What a tile adds to what the first reading tells."""

    largest: float
    asymmetry: float
    where: tuple[int, int]
    squares: float


class Centred:
    """S = √w W √w with W = −½ J D Jᵀ, J = I − 1wᵀ/Ω and Ω = Σw; with equal weights, W itself.

    The product with a block of vectors is one reading of D, of which only the tiles on and above
    the diagonal are read. The first reading also tells what follows; W is never formed.

    Attributes
    ----------
    weights, root : (M,) float64, w and √w.
    row_means : (M,) float64, r = D w / Ω, and `mean`, that of r.
    heights : (M,) float64, the diagonal of W: r − ½ mean.
    largest : the largest |D|.
    squares : Σᵢⱼ wᵢwⱼ Dᵢⱼ².
    frobenius_norm : ‖S‖_F, from ¼ (squares − 2Ω Σᵢ wᵢrᵢ² + Ω² mean²).
    rounding : of `frobenius_norm`², an upper bound.

    Raises
    ------
    AnalysisError : D is not square, or the weights do not fit; at the first product: D has a NaN
        or an infinity, is not symmetric, or its diagonal is not zero, or all points coincide.
    """

    row_means: Float64
    heights: Float64
    mean: float
    largest: float
    squares: float
    frobenius_norm: float
    rounding: float

    def __init__(
        self,
        D: Matrix,
        weights: Float64 | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.upper = Upper(D, progress)
        self.M = self.upper.M
        self.weights = np.ones(self.M) if weights is None else _checked(weights, self.M)
        self.root = np.sqrt(self.weights)
        self.total = float(self.weights.sum())
        self._is_known = False

    def product(self, X: Float64, passes: int = 1) -> Float64:
        """W √w X, (M, b) float64; times √w it is S X.

        Parameters
        ----------
        X : (M, b).
        passes : see `Upper.each`.
        """
        scaled = self.root[:, None] * X
        centred = scaled - self.weights[:, None] * (scaled.sum(axis=0) / self.total)
        if not self._is_known:
            return self._centre(self._first(centred, passes))
        product = np.zeros(centred.shape)
        for rows, columns, parts in self.upper.each(
            lambda rows, columns, block: _products(rows, columns, block, centred), passes
        ):
            _add(product, rows, columns, parts)
        return self._centre(product)

    def survey(self) -> None:
        """Read D once, for what it tells, where no product is wanted."""
        self.product(np.empty((self.M, 0)))

    def dense(self) -> Float64:
        """W itself."""
        D = np.empty((self.M, self.M))
        for rows, columns, block in self.upper.each(lambda rows, columns, block: block):
            D[rows, columns], D[columns, rows] = block, block.T
        D -= self.row_means[:, None] + self.row_means[None, :] - self.mean
        return D * -0.5

    def _centre(self, product: Float64) -> Float64:
        return np.asarray(-0.5 * (product - self.weights @ product / self.total))

    def _first(self, X: Float64, passes: int) -> Float64:
        """D X, and what the first reading tells."""
        X = np.column_stack([X, self.weights])
        product, found = np.zeros(X.shape), []

        def work(rows: slice, columns: slice, block: Float64) -> tuple[tuple[Float64, ...], _Part]:
            return _products(rows, columns, block, X), self._part(rows, columns, block)

        for rows, columns, (parts, part) in self.upper.each(work, passes):
            _add(product, rows, columns, parts)
            found.append(part)
        self._tell(found, product[:, -1] / self.total)
        return product[:, :-1]

    def _part(self, rows: slice, columns: slice, block: Float64) -> _Part:
        w, v = self.weights[rows], self.weights[columns]
        strips = (slice(i, i + STRIP) for i in range(0, len(block), STRIP))
        weighted = sum(float(w[s] @ np.square(block[s]) @ v) for s in strips)
        if not math.isfinite(weighted):
            _check_finite(rows, columns, block)
        off = np.abs(np.diagonal(block)) if rows == columns else np.zeros(1)
        i = j = int(off.argmax())
        asymmetry = float(off[i])
        if not self.upper.is_symmetric:
            mirrored = self.upper.mirrored(rows, columns)
            _check_finite(columns, rows, mirrored.T)
            off = np.abs(block - mirrored)
            if off.max() > asymmetry:
                i, j = map(int, np.unravel_index(int(off.argmax()), off.shape))
                asymmetry = float(off[i, j])
        return _Part(
            largest=float(max(block.max(), -block.min())),
            asymmetry=asymmetry,
            where=(rows.start + i, columns.start + j),
            squares=weighted * (1 if rows == columns else 2),
        )

    def _tell(self, found: list[_Part], row_means: Float64) -> None:
        self.largest = max(part.largest for part in found)
        worst = max(found, key=lambda part: part.asymmetry)
        if worst.asymmetry > ASYMMETRY * self.largest:
            raise _asymmetric(worst)
        w, omega = self.weights, self.total
        # np.sum adds in pairs, so that the rounding of many terms stays that of a few
        self.row_means, self.mean = row_means, float(np.sum(w * row_means)) / omega
        self.heights = row_means - self.mean / 2
        self.squares = math.fsum(part.squares for part in found)
        terms = (
            self.squares,
            -2 * omega * float(np.sum(w * np.square(row_means))),
            (omega * self.mean) ** 2,
        )
        self.frobenius_norm = math.sqrt(max(sum(terms), 0.0)) / 2
        # BLAS may add the terms of a tile one after another, twice; then come the tiles of a row.
        tiling = self.upper.tiling
        additions = 2 * tiling.tile + self.M // tiling.tile + 64
        self.rounding = additions * _EPS * sum(map(abs, terms)) / 4
        if self.frobenius_norm <= omega * _EPS * self.largest:
            raise AnalysisError("D", "all snapshots coincide", "at least two different ones")
        self._is_known = True


def _products(rows: slice, columns: slice, block: Float64, X: Float64) -> tuple[Float64, ...]:
    """What a tile adds to D X for its rows and, unless it is of the diagonal, for its columns."""
    here = block @ X[columns]
    return (here,) if rows == columns else (here, block.T @ X[rows])


def _add(product: Float64, rows: slice, columns: slice, parts: tuple[Float64, ...]) -> None:
    for span, part in zip((rows, columns), parts, strict=False):
        product[span] += part


def _checked(weights: Float64, M: int) -> Float64:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (M,):
        raise AnalysisError("weights", f"shape `{w.shape}`", f"one for each of {M} snapshots")
    if not np.isfinite(w).all() or w.min() < 0 or np.count_nonzero(w) < 2:
        i = int(np.argmax(~np.isfinite(w) | (w < 0)))
        found = f"`{w[i]:g}` at {i}" if not w[i] >= 0 or w[i] == math.inf else "fewer than two > 0"
        raise AnalysisError("weights", found, "finite numbers ≥ 0, two or more of them > 0")
    return w


def _check_finite(rows: slice, columns: slice, block: Float64) -> None:
    if np.isfinite(block).all():
        return
    i, j = np.argwhere(~np.isfinite(block))[0]
    raise AnalysisError(
        f"D[{rows.start + i}, {columns.start + j}]",
        f"`{block[i, j]}`",
        "finite distances",
        "the two snapshots have disjoint support: use a kernel with a floor"
        if block[i, j] == math.inf
        else "",
    )


def _asymmetric(part: _Part) -> AnalysisError:
    i, j = part.where
    if i == j:
        found = f"`{part.asymmetry:.3g}` from zero"
        return AnalysisError(f"D[{i}, {i}]", found, "zero, a snapshot's distance to itself")
    found = f"differs from D[{j}, {i}] by `{part.asymmetry:.3g}`"
    return AnalysisError(f"D[{i}, {j}]", found, "a symmetric matrix")
