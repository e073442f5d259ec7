"""How much of the distances the first k axes explain: three measures, which are not the same.

Each is given for k = 1 … n, cumulative, 1 where the axes give every distance exactly. D̂ are the
distances in k axes, D̂ᵢⱼ = Σ_{a≤k} sign(λ_a)(xᵢₐ − xⱼₐ)²; sums over pairs are weighted by wᵢwⱼ, and
W, S and λ are those of `analysis.centred`.
"""

from __future__ import annotations

import numpy as np

from analysis.centred import STRIP, Centred
from analysis.upper import Float64


def explained_stress(eigenvalues: Float64, frobenius_norm: float) -> Float64:
    """χ_k = 1 − √(1 − Σ_{a≤k} λ_a²/‖S‖_F²) for k = 1 … n, (n,) float64 in [0, 1].

    Of the centred matrix, relative to all of its spectrum; never falls with k.
    """
    explained = np.cumsum(np.square(eigenvalues)) / frobenius_norm**2
    return np.asarray(1 - np.sqrt(np.clip(1 - explained, 0.0, 1.0)))


def explained_frobenius(S: Centred, eigenvalues: Float64, coordinates: Float64) -> Float64:
    """1 − ‖D − D̂‖_F/‖D‖_F for k = 1 … n, (n,) float64; below 0 where D̂ is worse than nothing.

    Of the distances themselves, in closed form: because W w = 0, with e the part of W's diagonal
    that the axes leave, ‖D − D̂‖_F² = 2Ω Σᵢ wᵢeᵢ² + 2(Σᵢ wᵢeᵢ)² + 4(‖S‖_F² − Σ_{a≤k} λ_a²).
    """
    lengths = np.cumsum(np.sign(eigenvalues) * np.square(coordinates), axis=1)
    left = S.heights[:, None] - lengths
    squares = (
        2 * S.total * (S.weights @ np.square(left))
        + 2 * np.square(S.weights @ left)
        + 4 * (S.frobenius_norm**2 - np.cumsum(np.square(eigenvalues)))
    )
    return np.asarray(1 - np.sqrt(np.maximum(squares, 0.0) / S.squares))


def explained_l1(S: Centred, eigenvalues: Float64, coordinates: Float64) -> Float64:
    """1 − Σ|D − D̂|/Σ|D| for k = 1 … n, (n,) float64; one reading of D.

    Of the distances themselves, all alike whether large or small; it can fall with k when a
    time-like axis enters.
    """
    signs = np.sign(eigenvalues)

    def work(rows: slice, columns: slice, block: Float64) -> Float64:
        x, y, w, v = coordinates[rows], coordinates[columns], S.weights[rows], S.weights[columns]
        strips = [slice(i, i + STRIP) for i in range(0, len(block), STRIP)]
        sums = np.sum([_left(block[s], x[s], y, signs, w[s], v) for s in strips], axis=0)
        return np.asarray(sums if rows == columns else 2 * sums)

    sums = np.sum([part for _, _, part in S.upper.each(work)], axis=0)
    return np.asarray(1 - sums[1:] / sums[0])


def _left(
    block: Float64, x: Float64, y: Float64, signs: Float64, w: Float64, v: Float64
) -> Float64:
    """Σ wᵢvⱼ |D − D̂| over a block, for k = 0 … n."""
    left, part = block.copy(), np.empty_like(block)
    sums = np.empty(len(signs) + 1)
    for k in range(len(sums)):
        if k:
            np.subtract(x[:, k - 1, None], y[:, k - 1], out=part)
            np.square(part, out=part)
            (np.subtract if signs[k - 1] > 0 else np.add)(left, part, out=left)
        np.abs(left, out=part)
        sums[k] = w @ part @ v
    return sums
