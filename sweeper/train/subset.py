"""Which samples of a data set are used, and what labels they are trained on.

All is drawn on the raw numbers of `sweeper.train.randomness`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sweeper.train.randomness import raw_numbers

# Each use has a stream of its own, so that a subset and a noise of one seed are independent.
_SUBSET, _NOISE, _PERMUTATION = range(3)


def stratified(labels: Tensor, n_samples: int, seed: int) -> Tensor:
    """Positions of `n_samples` samples, ascending, each class in its share of the whole.

    Each class is put in a random order; the j-th of m samples (from 0) comes at (2j + 1)/2m, and
    the first `n_samples` are taken, the lower class first where two come at once: Webster's
    apportionment. So a larger subset of the same seed contains every smaller one.

    Parameters
    ----------
    labels : (n,) int64.

    Returns
    -------
    (n_samples,) int64.
    """
    found = labels.cpu().numpy()
    keys = raw_numbers(len(found), _SUBSET, seed)
    comes_at = np.empty(len(found))
    for label in np.unique(found):
        members = np.flatnonzero(found == label)
        members = members[np.argsort(keys[members], kind="stable")]
        comes_at[members] = (2 * np.arange(len(members)) + 1) / (2 * len(members))
    first = np.lexsort((found, comes_at))[:n_samples]
    return torch.from_numpy(np.sort(first))


def noisy(labels: Tensor, fraction: float, n_classes: int, seed: int) -> Tensor:
    """Labels of which round(fraction · n), chosen at random, are of another class, drawn uniformly.

    Symmetric label noise; a larger fraction of the same seed spoils the same samples and more.

    Parameters
    ----------
    labels : (n,) int64, of `n_classes` ≥ 2 classes.
    """
    raw = raw_numbers(2 * len(labels), _NOISE, seed).reshape(2, -1)
    spoilt = np.argsort(raw[0], kind="stable")[: round(fraction * len(labels))]
    found = labels.cpu().numpy().copy()
    shift = 1 + (raw[1, spoilt] % np.uint64(n_classes - 1)).astype(np.int64)
    found[spoilt] = (found[spoilt] + shift) % n_classes
    return torch.from_numpy(found)


def permuted(labels: Tensor, seed: int) -> Tensor:
    """The same labels, each given to a sample drawn at random; class sizes stay."""
    keys = raw_numbers(len(labels), _PERMUTATION, seed)
    return labels.cpu()[torch.from_numpy(np.argsort(keys, kind="stable"))]
