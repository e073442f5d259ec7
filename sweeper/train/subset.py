"""Which samples of a data set are used, and what labels they are trained on.

Only raw PCG64 output is drawn on: NumPy promises that stream for ever, but no shuffle made of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stratified(labels: Tensor, n_samples: int, seed: int) -> Tensor:
    """Positions of `n_samples` samples, ascending, each class in its share of the whole.

    Shares are rounded down and the samples left over go to the classes with the largest
    remainders. A larger subset of the same seed contains a smaller one but for that rounding.

    Parameters
    ----------
    labels : (n,) int64.

    Returns
    -------
    (n_samples,) int64.
    """
    found = labels.cpu().numpy()
    classes, sizes = np.unique(found, return_counts=True)
    exact = sizes * (n_samples / len(found))
    taken = np.floor(exact).astype(np.int64)
    largest = np.argsort(taken - exact, kind="stable")[: n_samples - taken.sum()]
    taken[largest] += 1
    keys = np.random.PCG64(seed).random_raw(len(found))
    chosen = [
        members[np.argsort(keys[members], kind="stable")[:n]]
        for members, n in (
            (np.flatnonzero(found == c), n) for c, n in zip(classes, taken, strict=True)
        )
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def noisy(labels: Tensor, fraction: float, n_classes: int, seed: int) -> Tensor:
    """Labels of which round(fraction · n), chosen at random, are of another class, drawn uniformly.

    Symmetric label noise; a larger fraction of the same seed spoils the same samples and more.
    """
    raw = np.random.PCG64(seed).random_raw(2 * len(labels)).reshape(2, -1)
    spoilt = np.argsort(raw[0], kind="stable")[: round(fraction * len(labels))]
    found = labels.cpu().numpy().copy()
    shift = 1 + (raw[1, spoilt] % np.uint64(n_classes - 1)).astype(np.int64)
    found[spoilt] = (found[spoilt] + shift) % n_classes
    return torch.from_numpy(found)


def permuted(labels: Tensor, seed: int) -> Tensor:
    """The same labels, each given to a sample drawn at random; class sizes stay."""
    keys = np.random.PCG64(seed).random_raw(len(labels))
    return labels.cpu()[torch.from_numpy(np.argsort(keys, kind="stable"))]
