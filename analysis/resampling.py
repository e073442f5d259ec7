"""How much of the distances is the choice of samples, and how other distances see the same.

A snapshot's distances are means over test samples. Drawing as many samples again, with replacement
and as many of each class as there are (a stratified bootstrap: Efron & Tibshirani, 1993, ch. 6 and
8.4), gives distances as another test set of this size would; their scatter is a standard error.
With N samples it falls as 1/√N, so that a part of a test set shows what the part costs.

Beside the Bhattacharyya distance, of the same predictions in float64,

    Hellinger           1 − (1/N) Σₙ Σ_c √(pₙ(c) qₙ(c)), between 0 and 1
    symmetrised KL      (1/N) Σₙ Σ_c (pₙ(c) − qₙ(c)) (log pₙ(c) − log qₙ(c)), in nats

whose logarithms are at least `LOG_FLOOR`. Near each other, snapshots are at 1, 1 and 8 times the
same length, ds²/8 of Fisher's metric; far apart the three differ most. `analysis.linear` computes
the two of any number of snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import procrustes
from scipy.stats import spearmanr

from analysis.bhattacharyya import COEFFICIENT_FLOOR
from analysis.explained import explained_stress
from analysis.inpca import inpca
from analysis.linear import LOG_FLOOR
from analysis.upper import Float64

Runs = Iterable[tuple[slice, torch.Tensor]]
AXES = 3  # whose picture is compared


@dataclass(frozen=True)
class Distances:
    """Distances between m snapshots, and those of resampled test sets.

    Attributes
    ----------
    bhattacharyya, hellinger, symmetrised_kl : (m, m) float64, zero on the diagonal.
    resampled : (n_resamples, m(m−1)/2) float64, Bhattacharyya distances of the pairs above the
        diagonal, row by row.
    """

    bhattacharyya: Float64
    hellinger: Float64
    symmetrised_kl: Float64
    resampled: Float64

    def standard_errors(self) -> Float64:
        """(m(m−1)/2,) float64: the scatter of each pair's distance over the resampled sets."""
        return np.asarray(self.resampled.std(axis=0, ddof=1))


def stratified_counts(labels: npt.ArrayLike, n_resamples: int, seed: int = 0) -> Float64:
    """How often each sample is drawn, (n_samples, n_resamples) float64, whole numbers.

    Each column draws as many samples of every class as there are, with replacement.
    """
    y = np.asarray(labels)
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(y), n_resamples))
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        even = np.full(len(members), 1 / len(members))
        counts[members] = rng.multinomial(len(members), even, size=n_resamples).T
    return counts


def measure(runs: Runs, counts: Float64) -> Distances:
    """All distances between some snapshots, their samples given a run at a time.

    Parameters
    ----------
    runs : which samples, and their (m, n, n_classes) natural-log probabilities; every sample once.
    counts : (n_samples, n_resamples), as `stratified_counts` gives them.
    """
    n_samples = len(counts)
    weights = torch.from_numpy(np.column_stack([np.ones(n_samples), counts]))
    log_bc: torch.Tensor | None = None
    bc_sum = cross = torch.zeros(())
    upper = torch.zeros(2, 0, dtype=torch.int64)
    for samples, stored in runs:
        log_p = torch.log_softmax(stored.double(), dim=-1)
        p, s = log_p.exp(), (log_p / 2).exp().transpose(0, 1)
        bc = torch.bmm(s, s.transpose(1, 2))
        upper = torch.triu_indices(len(log_p), len(log_p), 1)
        pairs = bc[:, upper[0], upper[1]]
        if log_bc is None:
            log_bc = torch.zeros(weights.shape[1], pairs.shape[1], dtype=torch.float64)
        log_bc.addmm_(weights[samples].T, pairs.clamp_min(COEFFICIENT_FLOOR).log_())
        bc_sum = bc_sum + pairs.sum(0)
        cross = cross + p.flatten(1) @ log_p.clamp_min(LOG_FLOOR).flatten(1).T
    assert log_bc is not None
    bhattacharyya = log_bc.div_(-n_samples).clamp_min_(0).numpy()
    own = cross.diagonal()
    kl = own[:, None] + own[None, :] - cross - cross.T
    return Distances(
        _square(bhattacharyya[0]),
        _square((1 - bc_sum / n_samples).clamp_min(0).numpy()),
        _square((kl[upper[0], upper[1]] / n_samples).clamp_min(0).numpy()),
        bhattacharyya[1:],
    )


def _square(pairs: Float64) -> Float64:
    """The symmetric matrix whose upper triangle holds these, row by row."""
    m = round((1 + (1 + 8 * len(pairs)) ** 0.5) / 2)
    D = np.zeros((m, m))
    D[np.triu_indices(m, 1)] = pairs
    return D + D.T


def stress(D: Float64, n_axes: int) -> Float64:
    """Explained stress of the first axes, (n_axes,) float64; see `analysis.explained`."""
    centred = D - D.mean(axis=0)
    # Eigenvalues alone, and of hundreds of points: LAPACK needs a tenth of what `inpca` does.
    eigenvalues = np.linalg.eigvalsh((centred - centred.mean(axis=1, keepdims=True)) / -2)
    largest = eigenvalues[np.argsort(-np.abs(eigenvalues))[:n_axes]]
    return explained_stress(largest, float(np.linalg.norm(eigenvalues)))


def resampled_stress(found: Distances, n_axes: int) -> Float64:
    """Explained stress of each resampled set, (n_resamples, n_axes) float64."""
    return np.stack([stress(_square(pairs), n_axes) for pairs in found.resampled])


def agreement(D: Float64, other: Float64) -> tuple[float, float]:
    """How alike two distances see the same snapshots.

    Returns
    -------
    Spearman's rank correlation over pairs, and the share of the first three axes of InPCA that is
    the same but for rotation, reflection and scale (1 − Procrustes' disparity), 1 at most.
    """
    upper = np.triu_indices(len(D), 1)
    ranks = float(spearmanr(D[upper], other[upper]).statistic)
    _, _, disparity = procrustes(*(inpca(d, AXES).coordinates for d in (D, other)))
    return ranks, float(1 - disparity)
