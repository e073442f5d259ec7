"""The distance as its formula says it: float64, log space, one pair at a time."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[typing.Any]


def pairwise(log_p: Array, log_q: Array | None = None) -> npt.NDArray[np.float64]:
    """Distances of checked log-probabilities; infinite where supports are disjoint.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes) natural-log probabilities.
    log_q : (n_q, n_samples, n_classes); None means `log_p`, and a zero diagonal.

    Returns
    -------
    (n_p, n_q) float64, nats.
    """
    p = [_normalised(row) for row in log_p]
    q = p if log_q is None else [_normalised(row) for row in log_q]
    D = np.zeros((len(p), len(q)))
    for i, row in enumerate(p):
        for j, column in enumerate(q):
            if log_q is not None or i < j:
                # log Σ_c √(p q), without leaving log space
                coefficients = _log_sum_exp((row + column) / 2)
                D[i, j] = max(-float(coefficients.mean()), 0.0)
    return D if log_q is not None else D + D.T


def _normalised(row: Array) -> npt.NDArray[np.float64]:
    x = row.astype(np.float64)
    return x - _log_sum_exp(x)[:, None]


def _log_sum_exp(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis; −inf where all of it is."""
    top = x.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return typing.cast(
            "npt.NDArray[np.float64]", np.log(np.exp(x - shift).sum(axis=-1)) + shift[..., 0]
        )
