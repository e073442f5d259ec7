"""InPCA: coordinates from a matrix of distances, time-like axes included.

W = −½ L D L with L = I − 11ᵀ/M is symmetric and indefinite. Its eigenpairs of largest |λ|, of both
signs, give coordinates √|λ|·u whose signed squared differences sum to D: an axis with λ < 0 is
time-like, its differences count negatively. D is used as it is, unsquared, because the
Bhattacharyya distance is already a squared length (ds²/8 of Fisher's metric).

References: Quinn et al., PNAS 116(28), 2019, doi:10.1073/pnas.1817218116 (InPCA); Mao et al., PNAS
121(12), 2024, doi:10.1073/pnas.2310002121 (explained stress).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from sweeper.errors import AnalysisError

Float64 = npt.NDArray[np.float64]

COMPONENTS = 10
DENSE = 1024  # snapshots up to which all eigenpairs are computed, in 3 seconds at most
PAIRS = 64  # eigenpairs computed at least, so that the bound certifies the first ten or so
RESIDENT = 2 << 30  # bytes of float32 distances that are kept in memory
BLOCK = 64 << 20  # bytes read at once
ASYMMETRY = 1e-9  # of the largest distance
SLACK = 1e-13  # relative rounding of the streamed ‖W‖², allowed for in the bound


class Matrix(Protocol):
    """A square matrix that can be read by blocks: an array, or `analysis.tiles.Distances`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, M)."""

    def __getitem__(self, key: Any, /) -> Any:
        """The block of two slices."""


@dataclass(frozen=True)
class InPCA:
    """An embedding of M points in n_components signed axes.

    Attributes
    ----------
    coordinates : (M, n_components) float64, √|λ|·u; columns sum to 0; the entry of largest
        magnitude of each column is positive.
    eigenvalues : (n_components,) float64, sorted by |λ| descending; negative for time-like axes.
    explained_stress : (n_components,) float64, cumulative, χ_k = 1 − √(1 − Σ_{i≤k} λ_i²/‖W‖_F²).
    frobenius_norm : ‖W‖_F.
    bound : no eigenvalue that is not in `spectrum` exceeds it in magnitude; while it is below
        |λ_k|, the first k are proved to be the k largest.
    residuals : (n_components,) float64, ‖Wu − λu‖: each λ is that close to a true eigenvalue.
    spectrum : (n_pairs,) float64, all eigenvalues that were computed, the first n_components of
        them `eigenvalues`.
    row_means : (M,) float64, of D.
    """

    coordinates: Float64
    eigenvalues: Float64
    explained_stress: Float64
    frobenius_norm: float
    bound: float
    residuals: Float64
    spectrum: Float64
    row_means: Float64

    def project(self, d: npt.ArrayLike) -> Float64:
        """Place points that are not rows of D by their distances to all of its points.

        x = −½ (d − mean d − r + r̄) U sign(Λ)|Λ|^(−½), r the row means of D (Gower's formula with
        the sign of each axis). A point of D gets its own coordinates back; on an axis whose
        eigenvalue is zero to rounding, everything is at 0.

        Parameters
        ----------
        d : (M,) or (n, M) distances.

        Returns
        -------
        (n_components,) or (n, n_components) float64.

        Raises
        ------
        AnalysisError : the last axis is not M, or a distance is not finite.
        """
        distances = np.asarray(d, dtype=np.float64)
        if distances.ndim not in (1, 2) or distances.shape[-1] != len(self.coordinates):
            raise AnalysisError(
                "d", f"shape `{distances.shape}`", f"distances to {len(self.coordinates)} snapshots"
            )
        if not np.isfinite(distances).all():
            raise AnalysisError("d", "a distance that is not finite", "finite distances")
        centred = distances - distances.mean(axis=-1, keepdims=True)
        b = -0.5 * (centred - self.row_means + self.row_means.mean())
        zero = np.abs(self.eigenvalues) <= _rounding(self.spectrum, len(self.coordinates))
        inverse = np.where(zero, 0.0, 1 / np.where(zero, 1.0, self.eigenvalues))
        return np.asarray(b @ self.coordinates * inverse)


def explained_stress(eigenvalues: Float64, frobenius_norm: float) -> Float64:
    """χ_k = 1 − √(1 − Σ_{i≤k} λ_i²/‖W‖_F²) for k = 1 … n, (n,) float64 in [0, 1]."""
    explained = np.cumsum(np.square(eigenvalues)) / frobenius_norm**2
    return np.asarray(1 - np.sqrt(np.clip(1 - explained, 0.0, 1.0)))


def inpca(D: Matrix, n_components: int | None = None) -> InPCA:
    """Embed a symmetric matrix of distances.

    W is never formed: ARPACK (`which="LM"`) applies it as centre, multiply by D, centre. D is read
    in blocks of rows, and kept in memory as float32 up to 2 GiB if it is not an array already. Up
    to 1,024 points all eigenpairs are computed by LAPACK instead. Deterministic.

    Parameters
    ----------
    D : (M, M) symmetric and finite, an array or an object that gives ``D[i0:i1, j0:j1]``.
    n_components : axes to keep, 1 to M; by default 10, or M where there are fewer points.

    Raises
    ------
    AnalysisError : D is not square, not symmetric to 1e-9 of its largest entry, has a NaN or an
        infinity (named by their indices), or all its points coincide; or `n_components` is out of
        range.
    """
    operator = _Centred(D)
    M = operator.M
    n_components = min(COMPONENTS, M) if n_components is None else n_components
    if not 1 <= n_components <= M:
        raise AnalysisError(
            "n_components", f"`{n_components}`", f"1 to {M}, the number of snapshots"
        )
    if operator.frobenius_norm <= M * np.finfo(np.float64).eps * operator.largest:
        raise AnalysisError("D", "all snapshots coincide", "at least two different ones")
    dense = M <= DENSE or n_components > M // 4
    values, vectors = _all_pairs(operator) if dense else _largest_pairs(operator, n_components)
    order = np.argsort(-np.abs(values), kind="stable")
    spectrum, U = values[order], _signed(vectors[:, order[:n_components]])
    eigenvalues = spectrum[:n_components]
    rest = max(operator.frobenius_norm**2 - float(np.square(spectrum).sum()), 0.0)
    return InPCA(
        coordinates=U * np.sqrt(np.abs(eigenvalues)),
        eigenvalues=eigenvalues,
        explained_stress=explained_stress(eigenvalues, operator.frobenius_norm),
        frobenius_norm=operator.frobenius_norm,
        bound=0.0 if dense else math.sqrt(rest + SLACK * operator.frobenius_norm**2),
        residuals=np.linalg.norm(operator @ U - U * eigenvalues, axis=0),
        spectrum=spectrum,
        row_means=operator.row_means,
    )


class _Centred:
    """W = −½ L D L as something to multiply by, and what one reading of D tells about it."""

    def __init__(self, D: Matrix) -> None:
        if len(D.shape) != 2 or D.shape[0] != D.shape[1] or D.shape[0] < 2:
            raise AnalysisError("D", f"shape `{tuple(D.shape)}`", "a square matrix of 2 or more")
        self.M = D.shape[0]
        if not isinstance(D, np.ndarray) and 4 * self.M**2 <= RESIDENT:
            D = np.asarray(D[0 : self.M, 0 : self.M])
        self.D = D
        self._step = max(1, BLOCK // (8 * self.M))
        squares, self.largest, self.row_means = 0.0, 0.0, np.empty(self.M)
        for rows in self._row_blocks():
            block = self._block(rows)
            squares += float(np.square(block).sum())
            self.largest = max(self.largest, float(np.abs(block).max()))
            self.row_means[rows] = block.mean(axis=1)
            self._check_symmetric(rows, block)
        # ‖W‖² = ¼ (‖D‖² − 2M‖r‖² + M²g²), r the row means and g their mean
        means, grand = self.row_means, float(self.row_means.mean())
        centred = squares - 2 * self.M * float(means @ means) + (self.M * grand) ** 2
        self.frobenius_norm = math.sqrt(max(centred, 0.0)) / 2

    def _row_blocks(self) -> list[slice]:
        return [slice(i, min(i + self._step, self.M)) for i in range(0, self.M, self._step)]

    def _block(self, rows: slice) -> Float64:
        """A block of rows, refused unless finite."""
        block = np.asarray(self.D[rows, 0 : self.M], dtype=np.float64)
        if not np.isfinite(block).all():
            i, j = np.argwhere(~np.isfinite(block))[0]
            raise AnalysisError(
                f"D[{rows.start + i}, {j}]",
                f"`{block[i, j]}`",
                "finite distances",
                "the two snapshots have disjoint support: use a kernel with a floor"
                if block[i, j] == math.inf
                else "",
            )
        return block

    def _check_symmetric(self, rows: slice, block: Float64) -> None:
        mirrored = np.asarray(self.D[0 : self.M, rows], dtype=np.float64).T
        off = np.abs(block - mirrored)
        # NaN below the diagonal is reported by its own row
        i, j = np.unravel_index(int(np.nanargmax(off)), off.shape)
        if off[i, j] > ASYMMETRY * self.largest:
            here, there = f"D[{rows.start + i}, {j}]", f"D[{j}, {rows.start + i}]"
            raise AnalysisError(
                here,
                f"differs from {there} by `{off[i, j]:.3g}`",
                "a symmetric matrix",
            )

    def __matmul__(self, X: npt.NDArray[Any]) -> Float64:
        """W X for X of shape (M,) or (M, b)."""
        centred = X - X.mean(axis=0)
        product = np.empty(centred.shape)
        for rows in self._row_blocks():
            product[rows] = np.asarray(self.D[rows, 0 : self.M], dtype=np.float64) @ centred
        return np.asarray(-0.5 * (product - product.mean(axis=0)))

    def dense(self) -> Float64:
        """W itself."""
        D = np.concatenate([self._block(rows) for rows in self._row_blocks()])
        D -= self.row_means[:, None] + self.row_means[None, :] - self.row_means.mean()
        return D * -0.5


def _all_pairs(operator: _Centred) -> tuple[Float64, Float64]:
    values, vectors = np.linalg.eigh(operator.dense())
    return values, vectors


def _largest_pairs(operator: _Centred, n_components: int) -> tuple[Float64, Float64]:
    """At least `PAIRS` eigenpairs of largest magnitude, of both signs."""
    k = min(max(PAIRS, n_components + PAIRS // 4), operator.M - 2)
    W = LinearOperator(
        (operator.M, operator.M), matvec=lambda x: operator @ x, dtype=np.dtype(np.float64)
    )
    start = np.random.default_rng(0).standard_normal(operator.M)
    try:
        return eigsh(W, k=k, which="LM", v0=start - start.mean(), tol=0)  # type: ignore[no-any-return]
    except ArpackNoConvergence as error:
        raise AnalysisError(
            "D", f"{len(error.eigenvalues)} of {k} eigenpairs converged", "all of them"
        ) from error


def _signed(vectors: Float64) -> Float64:
    """Eigenvectors whose entry of largest magnitude is positive."""
    largest = np.abs(vectors).argmax(axis=0)
    return np.asarray(vectors * np.where(vectors[largest, range(vectors.shape[1])] < 0, -1.0, 1.0))


def _rounding(eigenvalues: Float64, M: int) -> float:
    return float(np.abs(eigenvalues[0])) * M * float(np.finfo(np.float64).eps)
