"""Placing by landmarks: exact where it must be, and no worse than it says where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from analysis import upper
from analysis.inpca import InPCA, inpca
from analysis.landmarks import DISTANCE_ERROR, Landmarks, choose, distances_to
from sweeper.errors import AnalysisError

SIGNS = np.array([1, -1, 1])


def signed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances in a space whose second axis is time-like."""
    return sum(sign * cdist(x[:, [a]], y[:, [a]], "sqeuclidean") for a, sign in enumerate(SIGNS))


def points(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3)) * [5, 3, 2]


def some(found: InPCA, chosen: np.ndarray) -> Landmarks:
    return Landmarks(
        found.coordinates[chosen],
        found.eigenvalues,
        found.row_means[chosen],
        found.weights[chosen],
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_with_all_points_as_landmarks_it_is_gowers_formula(weighted):
    rng = np.random.default_rng(5)
    D = signed(points(60), points(60)) + 0.3 * cdist(*[rng.standard_normal((60, 9))] * 2)
    new = signed(points(7, 1), points(60)) + 0.3
    found = inpca(D, 4, rng.uniform(0.2, 4, 60) if weighted else None)
    landmarks = some(found, np.arange(60))
    assert landmarks.place(new)[0] == pytest.approx(found.project(new), abs=1e-9)
    assert landmarks.place(D)[0] == pytest.approx(found.coordinates, abs=1e-9)


def test_where_all_axes_are_kept_a_few_landmarks_place_exactly():
    x, new = points(80), points(9, 1)
    found = inpca(signed(x, x), 3)
    assert (found.eigenvalues < 0).sum() == 1
    chosen = choose(80, 8)
    placed, misfit = some(found, chosen).place(signed(new, x[chosen]))
    assert placed == pytest.approx(found.project(signed(new, x)), abs=1e-9)
    assert misfit.max() < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
def test_a_constant_added_to_all_distances_moves_nothing(weighted):
    x, w = points(60), np.random.default_rng(2).uniform(0.1, 5, 60)
    landmarks = some(inpca(signed(x, x), 3, w if weighted else None), choose(60, 12))
    d = signed(points(5, 1), x[choose(60, 12)])
    assert landmarks.place(d + 7)[0] == pytest.approx(landmarks.place(d)[0], abs=1e-10)


def test_what_lies_off_the_axes_fits_badly():
    x = np.column_stack([points(80), np.zeros(80)])
    D = cdist(x, x, "sqeuclidean")
    chosen = choose(80, 10)
    off = np.array([[0, 0, 0, 2.0], [0, 0, 0, 0.0]])
    found = inpca(D, 3)
    placed, misfit = some(found, chosen).place(cdist(off, x[chosen], "sqeuclidean"))
    assert misfit == pytest.approx([4, 0], abs=1e-9)  # nats: all of its squared height
    assert placed[0] == pytest.approx(placed[1], abs=1e-9)


def test_errors_of_the_distances_move_points_no_more_than_said():
    x = points(80)
    chosen = choose(80, 12)
    landmarks = some(inpca(signed(x, x), 3), chosen)
    d = np.abs(signed(x, x[chosen]))
    bound = landmarks.rounding(float(d.max()))
    rng, worst = np.random.default_rng(0), np.zeros(3)
    for _ in range(50):
        error = rng.choice([-1, 1], d.shape) * DISTANCE_ERROR * np.maximum(1, d)
        worst = np.maximum(
            worst, np.abs(landmarks.place(d + error)[0] - landmarks.place(d)[0]).max(0)
        )
    assert (worst <= bound).all()
    assert (worst > bound / 100).all()


def test_an_axis_of_nothing_but_noise_places_everything_at_zero():
    x = points(40)
    found = inpca(signed(x, x), 5)
    placed, _ = some(found, choose(40, 10)).place(signed(points(4, 1), x)[:, choose(40, 10)])
    assert np.abs(placed[:, 3:]).max() < 1e-6


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_rows_are_gathered_from_the_upper_tiles(monkeypatch, resident):
    monkeypatch.setattr(upper, "RESIDENT", resident)
    monkeypatch.setattr(upper, "TILE", 16)
    D = signed(points(70), points(70))
    for chosen in (np.array([0, 3, 15, 16, 31, 69]), np.array([40]), choose(70, 100)):
        assert np.array_equal(distances_to(D, chosen), D[chosen])


def test_landmarks_are_in_order_distinct_and_the_same_each_time():
    chosen = choose(1000, 300)
    assert len(set(chosen)) == 300
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, choose(1000, 300))
    assert 400 < chosen.mean() < 600
    assert np.array_equal(choose(5, 300), np.arange(5))


def test_distances_that_do_not_fit_are_refused():
    x = points(20)
    landmarks = some(inpca(signed(x, x), 3), choose(20, 5))
    with pytest.raises(AnalysisError, match=r"d: shape `\(4,\)`; \(n, 5\)"):
        landmarks.place(np.zeros(4))
    with pytest.raises(AnalysisError, match="not finite"):
        landmarks.place(np.full((1, 5), np.nan))
