"""The eigenpairs of largest |λ|, of both signs, of a symmetric operator, and what proves them.

Three ways to the same pairs: LAPACK on the explicit matrix, ARPACK on what is kept in memory, and
block Krylov, which reads a matrix on disk at most `PASSES` times.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from analysis.centred import Centred
from analysis.memory import size_text
from analysis.upper import Float64
from sweeper.errors import AnalysisError
from sweeper.processors import free_memory

DENSE = 1024  # snapshots up to which all eigenpairs are computed, in 3 seconds at most
FEW = 10  # the share of all pairs up to which ARPACK is the faster
PAIRS = 64  # eigenpairs that ARPACK computes at least, so that the first ten or so are certified
PASSES = 9  # over D by block Krylov; L1 needs a tenth
WIDTH = 32  # vectors of a Krylov block at least: reading a tile then still takes about as long
TOLERANCE = 1e-9  # of |λ₁|: a pair whose residual is below has converged
BASIS = 4 << 30  # bytes of a Krylov basis and its products, at most


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs of S by |λ| descending, with vectors for the first n of them only.

    Attributes
    ----------
    values : (n_pairs,) float64.
    residuals : (n_pairs,) float64, ‖S v − λ v‖.
    vectors, products : (M, n) float64, v and W √w v.
    bound : no eigenvalue of S beyond `values` exceeds it in magnitude.
    """

    values: Float64
    residuals: Float64
    vectors: Float64
    products: Float64
    bound: float

    @property
    def has_converged(self) -> bool:
        """Whether the first n have."""
        n = self.vectors.shape[1]
        return bool(self.residuals[:n].max() <= TOLERANCE * abs(self.values[0]))

    @property
    def n_certified(self) -> int:
        """So many of the first n are proved to be, within their residuals, the largest of all."""
        n = self.vectors.shape[1]
        margin = np.linalg.norm(self.residuals)
        certified = np.abs(self.values[:n]) - margin > self.bound
        return n if certified.all() else int(certified.argmin())


def largest_pairs(S: Centred, n: int) -> Pairs:
    """At least n pairs.

    All by LAPACK up to 1,024 points, or where n exceeds a tenth of the points; else by ARPACK
    (`which="LM"`, to rounding) where S.upper fits into memory, by block Krylov where it does not.
    Deterministic.

    Raises
    ------
    AnalysisError : what `Centred` says of D, n pairs take more memory than is free, or their
        Krylov basis more than 4 GiB.
    """
    if S.M > DENSE and not S.upper.fits:
        return krylov(S, n)
    _check_memory(S.M, n)
    return _lapack(S, n) if _is_dense(S.M, n) else _arpack(S, n)


def _is_dense(M: int, n: int) -> bool:
    """Whether LAPACK finds all pairs sooner than ARPACK finds n."""
    return M <= DENSE or n > M // FEW


def _check_memory(M: int, n: int) -> None:
    """Refuse what takes more memory than is free."""
    free, needed = free_memory(), _needed(M, n)
    if free is None or needed <= free:
        return
    found = f"`{n}`, for which {size_text(needed)} are needed and {size_text(free)} are free"
    most = bisect.bisect_right(range(1, M), free, key=lambda n: _needed(M, n))
    allowed = f"1 to {most}" if most else f"{size_text(_needed(M, 1))} for one"
    hint = "use a machine with more memory" + (", or keep fewer axes" if most else "")
    raise AnalysisError("n_components", found, f"{allowed} of {M} snapshots", hint)


def _needed(M: int, n: int) -> int:
    """Bytes, at most, as measured; D is among them."""
    if _is_dense(M, n):
        return 8 * M * 8 * M
    return 8 * M * (M // 2 + 8 * (n + PAIRS))


def _lapack(S: Centred, n: int) -> Pairs:
    S.survey()
    W = S.dense()
    values, vectors = np.linalg.eigh(S.root[:, None] * W * S.root)
    return _sorted(S, n, values, vectors, W @ (S.root[:, None] * vectors), is_all=True)


def _arpack(S: Centred, n: int) -> Pairs:
    k = min(max(PAIRS, n + PAIRS // 4), S.M - 2)
    operator = LinearOperator(
        (S.M, S.M),
        matvec=lambda x: S.root * S.product(x.reshape(-1, 1))[:, 0],
        dtype=np.dtype(np.float64),
    )
    rng = np.random.default_rng(0)  # for the start, and where S has fewer than k pairs
    start = S.root * rng.standard_normal(S.M)
    try:
        values, vectors = eigsh(operator, k=k, which="LM", v0=start, tol=0, rng=rng)
    except ArpackNoConvergence as error:
        raise AnalysisError(
            "D", f"{len(error.eigenvalues)} of {k} eigenpairs converged", "all of them"
        ) from error
    return _sorted(S, n, values, vectors, S.product(vectors))


def krylov(S: Centred, n: int) -> Pairs:
    """Pairs by block Krylov with all blocks kept; each pass is one reading of D.

    A pass multiplies the newest block, removes from the product the whole basis so far, and takes
    what remains as the next block; the pairs are those of S restricted to the basis (Musco and
    Musco, NeurIPS 2015, arXiv 1504.05477). It ends when the first n have converged and are proved
    to be the largest, when the basis holds all that S has, or after `PASSES` passes, whatever the
    residuals are then. Of an eigenvalue that occurs more than b times it may find b only.

    Blocks are of b = max(32, 5n/4) vectors. The basis and its products take 16·M·b·PASSES bytes:
    0.7 GB for M = 151,407 and n = 10.

    Raises
    ------
    AnalysisError : that exceeds 4 GiB; or what `Centred` says of D.
    """
    M, b = S.M, max(WIDTH, math.ceil(1.25 * n))
    if 16 * M * b * PASSES > BASIS:
        most = int(BASIS / (16 * M * PASSES * 1.25))
        raise AnalysisError("n_components", f"`{n}`", f"1 to {most} of {M} snapshots, in memory")
    basis, products = (np.empty((M, min(M, b * PASSES))) for _ in range(2))
    block = S.root[:, None] * np.random.default_rng(0).standard_normal((M, min(b, M)))
    block, size = np.linalg.qr(block)[0], 0
    for left in range(PASSES, 0, -1):
        new = slice(size, size + block.shape[1])
        size = new.stop
        basis[:, new] = block
        products[:, new] = S.product(block, left + 1)  # and one for `explained_l1`
        Q, Z = basis[:, :size], products[:, :size]
        T = Q.T @ (S.root[:, None] * Z)
        values, C = np.linalg.eigh((T + T.T) / 2)
        found = _sorted(S, n, values, Q @ C, Z @ C)
        if found.n_certified == n and found.has_converged:
            break
        block = _beyond(Q, S.root[:, None] * products[:, new], S.frobenius_norm)
        if not block.shape[1]:
            break
    return found


def _beyond(Q: Float64, V: Float64, scale: float) -> Float64:
    """An orthonormal basis of what of V is not in the span of Q, to rounding of `scale`."""
    V = V - Q @ (Q.T @ V)
    block, R, _ = scipy.linalg.qr(V, mode="economic", pivoting=True)
    noise = len(V) * float(np.finfo(np.float64).eps) * scale
    rank = np.count_nonzero(np.abs(np.diagonal(R)) > noise)
    block = block[:, : min(rank, len(V) - Q.shape[1])]
    # A column that was little more than noise has been scaled up, with what it still had of Q.
    for _ in range(2):
        block = np.linalg.qr(block - Q @ (Q.T @ block))[0]
    return np.asarray(block)


def _sorted(
    S: Centred, n: int, values: Float64, vectors: Float64, products: Float64, is_all: bool = False
) -> Pairs:
    order = np.argsort(-np.abs(values), kind="stable")
    residuals = np.linalg.norm(S.root[:, None] * products - vectors * values, axis=0)
    values, residuals, kept = values[order], residuals[order], order[:n]
    size, bound = (len(values), 0.0) if is_all else _certificate(S, n, values, residuals)
    return Pairs(values[:size], residuals[:size], vectors[:, kept], products[:, kept], bound)


def _certificate(S: Centred, n: int, values: Float64, residuals: Float64) -> tuple[int, float]:
    """How many of the pairs, n or more, give the least bound on all others, and that bound.

    Let R be the residuals of the first K pairs, which are Ritz pairs of an orthonormal basis. In a
    basis that they begin, S is the block-diagonal matrix of their values and of a remainder, plus
    R off the diagonal. So the eigenvalues of S are those of the two blocks to within ‖R‖₂ ≤ ‖R‖_F
    (Weyl), and those of the remainder are at most its norm, whose square is at most ‖S‖_F² − Σ λ².
    """
    rest = S.frobenius_norm**2 - np.cumsum(np.square(values)) + S.rounding
    bounds = np.sqrt(np.maximum(rest, 0.0)) + np.sqrt(np.cumsum(np.square(residuals)))
    size = n + int(bounds[n - 1 :].argmin())
    return size, float(bounds[size - 1])
