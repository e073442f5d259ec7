"""InPCA: coordinates from a matrix of distances, time-like axes included.

W = −½ L D L with L = I − 11ᵀ/M is symmetric and indefinite. Its eigenpairs of largest |λ|, of both
signs, give coordinates √|λ|·u whose signed squared differences sum to D: an axis with λ < 0 is
time-like, its differences count negatively. D is used as it is, unsquared, because the
Bhattacharyya distance is already a squared length (ds²/8 of Fisher's metric).

References: Quinn et al., PNAS 116(28), 2019, doi:10.1073/pnas.1817218116 (InPCA); Mao et al., PNAS
121(12), 2024, doi:10.1073/pnas.2310002121 (explained stress).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.centred import Centred
from analysis.eigenpairs import Pairs, largest_pairs
from analysis.explained import explained_frobenius, explained_l1, explained_stress
from analysis.upper import Float64, Matrix, Progress
from sweeper.errors import AnalysisError

COMPONENTS = 10


@dataclass(frozen=True)
class InPCA:
    """An embedding of M points in n_components signed axes.

    Attributes
    ----------
    coordinates : (M, n_components) float64, √|λ|·u, in each row divided by the root of its weight;
        their weighted mean is 0; the entry of largest magnitude of each column is positive.
    eigenvalues : (n_components,) float64, sorted by |λ| descending; negative for time-like axes.
    explained_stress, explained_frobenius, explained_l1 : (n_components,) float64, three measures of
        what the first k axes explain, see `analysis.explained`.
    time_like_share : Σ λ² over the negative eigenvalues of `spectrum`, relative to ‖W‖_F²; the
        share of all negative ones exceeds it by at most 1 − Σ spectrum²/‖W‖_F².
    frobenius_norm : ‖W‖_F.
    bound : no eigenvalue that is not in `spectrum` exceeds it in magnitude.
    n_certified : so many of the first components are proved to be the largest: their |λ| exceed
        `bound`, rounding and residuals included.
    residuals : (n_components,) float64, ‖Wu − λu‖: each λ is that close to a true eigenvalue.
    has_converged : whether all residuals are below 1e-9 of the largest |λ|; they are unless the
        matrix is too large for memory and ten readings of it are not enough.
    spectrum : (n_pairs,) float64, all eigenvalues that were computed, the first n_components of
        them `eigenvalues`.
    row_means : (M,) float64, of D, weighted.
    weights : (M,) float64.
    """

    coordinates: Float64
    eigenvalues: Float64
    explained_stress: Float64
    explained_frobenius: Float64
    explained_l1: Float64
    time_like_share: float
    frobenius_norm: float
    bound: float
    n_certified: int
    residuals: Float64
    has_converged: bool
    spectrum: Float64
    row_means: Float64
    weights: Float64

    def project(self, d: npt.ArrayLike) -> Float64:
        """Place points that are not rows of D by their distances to all of its points.

        x = −½ (d − mean d − r + r̄) diag(w) X Λ⁻¹, r the row means of D, all means weighted
        (Gower's formula with the sign of each axis). A point of D gets its own coordinates back;
        on an axis whose eigenvalue is zero to rounding, everything is at 0.

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
        distances, w = np.asarray(d, dtype=np.float64), self.weights
        if distances.ndim not in (1, 2) or distances.shape[-1] != len(self.coordinates):
            raise AnalysisError(
                "d", f"shape `{distances.shape}`", f"distances to {len(self.coordinates)} snapshots"
            )
        if not np.isfinite(distances).all():
            raise AnalysisError("d", "a distance that is not finite", "finite distances")
        from_mean = distances - self.row_means
        b = -0.5 * (from_mean - (from_mean @ w / w.sum())[..., None])
        return np.asarray(b @ (w[:, None] * self.coordinates) * _inverse(self.eigenvalues, len(w)))


def inpca(
    D: Matrix,
    n_components: int | None = None,
    weights: npt.ArrayLike | None = None,
    progress: Progress = lambda done, total: None,
) -> InPCA:
    """Embed a symmetric matrix of distances.

    W is never formed but for up to 1,024 points; see `analysis.eigenpairs` for how its eigenpairs
    are found. A matrix of more than 23,170 points, which does not fit into 2 GiB, is read from
    where it is, ten times at most; with M = 151,407 and n_components ≤ 25 the process has 2.4 GiB
    at its peak. Deterministic on one machine.

    Parameters
    ----------
    D : (M, M) symmetric, finite and zero on its diagonal: `analysis.tiles.Distances`, an array, or
        an object that gives ``D[i0:i1, j0:j1]``.
    n_components : axes to keep, 1 to M − 1, because W has no more; by default 10, or M − 1 where
        there are fewer.
    weights : (M,) ≥ 0; by default 1 each. A weight of 2 is that of two points at one place; with a
        weight of 0 a point is placed, but counts for nothing. The axes are those of
        diag(√w) W diag(√w), with W centred by the weighted mean; ‖W‖_F, eigenvalues and residuals
        are of that matrix.
    progress : called with the number of tiles that were read and of those to be read at most, where
        D does not fit into memory.

    Raises
    ------
    AnalysisError : D is not square, not symmetric to 1e-9 of its largest entry, not as close to
        zero on its diagonal, has a NaN or an infinity (named by their indices), or all its points
        coincide; `n_components` is out of range, or so many axes take more memory than is free; or
        the weights do not fit.
    """
    w = None if weights is None else np.asarray(weights, dtype=np.float64)
    S = Centred(D, w, progress)
    most = S.M - 1
    n = min(COMPONENTS, most) if n_components is None else n_components
    if not 1 <= n <= most:
        allowed = f"1 to {most}, fewer than the {S.M} snapshots"
        raise AnalysisError("n_components", f"`{n}`", allowed)
    pairs = largest_pairs(S, n)
    eigenvalues, coordinates = pairs.values[:n], _coordinates(S, pairs)
    negative = pairs.values[pairs.values < 0]
    return InPCA(
        coordinates=coordinates,
        eigenvalues=eigenvalues,
        explained_stress=explained_stress(eigenvalues, S.frobenius_norm),
        explained_frobenius=explained_frobenius(S, eigenvalues, coordinates),
        explained_l1=explained_l1(S, eigenvalues, coordinates),
        time_like_share=float(np.square(negative / S.frobenius_norm).sum()),
        frobenius_norm=S.frobenius_norm,
        bound=pairs.bound,
        n_certified=pairs.n_certified,
        residuals=pairs.residuals[:n],
        has_converged=pairs.has_converged,
        spectrum=pairs.values,
        row_means=S.row_means,
        weights=S.weights,
    )


def _coordinates(S: Centred, pairs: Pairs) -> Float64:
    """The rows of v √|λ| / √w; where w is little or zero, the same from W √w v = λ v/√w.

    Of the largest λ₁ and a mean weight w̄, rounding grows by √(w̄/w) in the first and |λ₁/λ| in the
    second.
    """
    n = pairs.vectors.shape[1]
    values, root = pairs.values[:n], S.root[:, None]
    weighted = pairs.vectors / np.where(root > 0, root, 1.0)
    placed = pairs.products * _inverse(values, S.M)
    is_heavy = root * abs(values[0]) >= np.sqrt(S.total / S.M) * np.abs(values)
    found = np.where(is_heavy & (root > 0), weighted, placed) * np.sqrt(np.abs(values))
    largest = np.abs(found).argmax(axis=0)
    return np.asarray(found * np.where(found[largest, range(n)] < 0, -1.0, 1.0))


def _inverse(eigenvalues: Float64, M: int) -> Float64:
    """1/λ, and 0 where λ is zero to the rounding of the largest, which comes first."""
    zero = np.abs(eigenvalues) <= abs(eigenvalues[0]) * M * float(np.finfo(np.float64).eps)
    return np.where(zero, 0.0, 1 / np.where(zero, 1.0, eigenvalues))
