"""The three explained measures against their definitions, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.special import log_softmax

from analysis import explained, upper
from analysis.bhattacharyya import pairwise
from analysis.explained import explained_stress
from analysis.inpca import InPCA, inpca


def predictions(n: int = 30) -> np.ndarray:
    logits = np.random.default_rng(0).standard_normal((n, 20, 3)) * 3
    return pairwise(log_softmax(logits, axis=-1), kernel="reference")


def embedded_distances(found: InPCA, k: int) -> np.ndarray:
    X = found.coordinates[:, :k]
    return np.square(X[:, None] - X[None]) @ np.sign(found.eigenvalues[:k])


@pytest.mark.parametrize("weighted", [False, True])
def test_each_measure_is_its_definition(monkeypatch, weighted):
    monkeypatch.setattr(upper, "TILE", 7)
    monkeypatch.setattr(explained, "STRIP", 3)
    D = predictions()
    w = np.random.default_rng(1).uniform(0, 3, len(D)) if weighted else np.ones(len(D))
    pairs = w[:, None] * w
    found = inpca(D, 29, w if weighted else None)
    assert (found.eigenvalues < 0).any()
    for k in range(1, 30):
        off = D - embedded_distances(found, k)
        frobenius = 1 - np.sqrt((pairs * off**2).sum() / (pairs * D**2).sum())
        assert found.explained_frobenius[k - 1] == pytest.approx(frobenius, abs=1e-6)
        l1 = 1 - (pairs * np.abs(off)).sum() / (pairs * D).sum()
        assert found.explained_l1[k - 1] == pytest.approx(l1, abs=1e-9)
    J = np.eye(len(D)) - w / w.sum()
    S = np.sqrt(pairs) * (-0.5 * J @ D @ J.T)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(S))
    values = np.linalg.eigvalsh(S)
    values = values[np.argsort(-np.abs(values))]
    stress = 1 - np.sqrt(np.maximum(1 - np.cumsum(values**2)[:29] / (values**2).sum(), 0))
    assert found.explained_stress == pytest.approx(stress, abs=1e-6)
    assert found.time_like_share == pytest.approx(
        (values[values < 0] ** 2).sum() / (values**2).sum()
    )


def test_the_measures_differ():
    found = inpca(predictions(), 3)
    measures = (found.explained_stress, found.explained_frobenius, found.explained_l1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(measures[a] - measures[b]).max() > 1e-3


def test_all_axes_explain_everything():
    x = np.random.default_rng(0).standard_normal((40, 3))
    found = inpca(squareform(pdist(x, "sqeuclidean")), 5)
    for measure in (found.explained_stress, found.explained_frobenius, found.explained_l1):
        assert measure[2:] == pytest.approx(1, abs=1e-6)
        assert measure[1] < 0.99
    assert found.time_like_share < 1e-20


def test_a_plane_whose_second_axis_is_time_like_is_hand_worked():
    # Points at (±1, 0) and (0, ±1): distances 4 along the first axis, −4 along the second, 0 across
    D = np.array([[0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, -4], [0, 0, -4, 0]], dtype=float)
    found = inpca(D, 2)
    assert sorted(found.eigenvalues) == pytest.approx([-2, 2])
    assert found.time_like_share == pytest.approx(0.5)
    assert found.explained_stress == pytest.approx([1 - np.sqrt(0.5), 1])
    # One axis leaves ∓4 between two points and gives ±1 for each of eight that are 0 apart
    assert found.explained_frobenius == pytest.approx([1 - np.sqrt((2 * 16 + 8) / 64), 1])
    assert found.explained_l1 == pytest.approx([1 - (2 * 4 + 8) / 16, 1])


def test_explained_stress_is_hand_worked():
    assert explained_stress(np.array([3.0, -4.0]), 5.0) == pytest.approx([0.2, 1.0])
