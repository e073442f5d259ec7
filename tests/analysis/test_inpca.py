"""InPCA against dense linear algebra and the identities that define it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from analysis import eigenpairs, upper
from analysis.bhattacharyya import pairwise
from analysis.inpca import inpca
from sweeper.errors import AnalysisError


def centred(D: np.ndarray) -> np.ndarray:
    L = np.eye(len(D)) - 1 / len(D)
    W = -0.5 * L @ D @ L
    return (W + W.T) / 2


def eigenvalues(D: np.ndarray) -> np.ndarray:
    """All of them, by numpy.linalg on the explicit W, sorted by magnitude."""
    values = np.linalg.eigvalsh(centred(D))
    return values[np.argsort(-np.abs(values))]


def indefinite(M: int, seed: int = 0) -> np.ndarray:
    """Distances of known signature: axes 2 and 4 of six are time-like, plus a little noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((M, 6)) * [6, 5, 4, 3, 2, 1]
    signs = np.array([1, -1, 1, -1, 1, 1])
    D = sum(sign * squareform(pdist(x[:, [k]], "sqeuclidean")) for k, sign in enumerate(signs))
    noise = np.triu(rng.standard_normal((M, M)), 1) * 0.01
    return D + noise + noise.T


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Let matrices of 100 take the path of large ones."""
    monkeypatch.setattr(eigenpairs, "DENSE", 99)


@pytest.mark.parametrize("M", [60, 300])
def test_eigenvalues_agree_with_numpy_with_negative_ones_among_the_largest(M):
    D = indefinite(M)
    found, expected = inpca(D), eigenvalues(D)
    assert np.abs(found.eigenvalues - expected[:10]).max() < 1e-8 * abs(expected[0])
    assert (np.sign(found.eigenvalues[:6]) == [1, -1, 1, -1, 1, 1]).all()
    assert found.residuals.max() < 1e-10 * abs(expected[0])


def test_the_streamed_norm_is_that_of_w():
    D = indefinite(80)
    assert inpca(D).frobenius_norm == pytest.approx(np.linalg.norm(centred(D)), rel=1e-12)


def test_no_eigenvalue_that_was_not_computed_exceeds_the_bound():
    D = indefinite(300)
    found, expected = inpca(D), eigenvalues(D)
    missed = np.abs(expected[len(found.spectrum) :])
    assert missed.max() <= found.bound
    assert found.bound < abs(found.eigenvalues[5])


def test_iterative_and_dense_paths_agree(monkeypatch):
    D = indefinite(300)
    iterative = inpca(D)
    monkeypatch.setattr(eigenpairs, "DENSE", 1000)
    dense = inpca(D)
    assert iterative.coordinates == pytest.approx(dense.coordinates, abs=1e-8)
    assert dense.bound == 0


def test_low_rank_distances_have_no_more_axes_than_their_points():
    x = np.random.default_rng(0).standard_normal((250, 3))
    found = inpca(squareform(pdist(x, "sqeuclidean")))
    assert np.abs(found.eigenvalues[3:]).max() < 1e-9 * found.eigenvalues[0]
    assert found.explained_stress[2] == pytest.approx(1, abs=1e-6)


def test_all_signed_components_reconstruct_the_distances():
    logits = np.random.default_rng(0).standard_normal((25, 40, 3))
    D = pairwise(log_softmax(logits, axis=-1))
    found = inpca(D, 24)
    differences = found.coordinates[:, None] - found.coordinates[None]
    assert np.square(differences) @ np.sign(found.eigenvalues) == pytest.approx(D, abs=1e-12)


def test_squared_euclidean_distances_give_pca():
    x = np.random.default_rng(1).standard_normal((40, 4)) * [4, 3, 2, 1]
    found = inpca(squareform(pdist(x, "sqeuclidean")), 4)
    _, s, Vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    assert found.eigenvalues == pytest.approx(s**2)
    assert np.abs(found.coordinates) == pytest.approx(np.abs((x - x.mean(0)) @ Vt.T), abs=1e-9)


def test_coordinates_are_centred_because_rows_of_w_sum_to_zero():
    D = indefinite(50)
    assert np.abs(centred(D).sum(axis=1)).max() < 1e-10
    assert np.abs(inpca(D).coordinates.sum(axis=0)).max() < 1e-9


@pytest.mark.parametrize("M", [70, 300])
def test_a_point_of_the_matrix_is_projected_onto_itself_on_every_axis(M):
    D = indefinite(M)
    found = inpca(D, 6)
    assert found.project(D) == pytest.approx(found.coordinates, abs=1e-9)
    assert found.project(D[3]) == pytest.approx(found.coordinates[3], abs=1e-9)


def test_a_new_point_of_a_flat_space_is_projected_to_where_it_is():
    x = np.random.default_rng(2).standard_normal((30, 3))
    y = np.array([0.3, -0.2, 0.5])
    found = inpca(squareform(pdist(x, "sqeuclidean")), 3)
    placed = found.project(np.square(x - y).sum(axis=1))
    distances = np.square(found.coordinates - placed).sum(axis=1)
    assert distances == pytest.approx(np.square(x - y).sum(axis=1))


@pytest.mark.parametrize("M", [64, 310])
def test_permuting_the_snapshots_permutes_the_coordinates(M):
    D = indefinite(M)
    order = np.random.default_rng(3).permutation(M)
    found, permuted = inpca(D, 6), inpca(D[np.ix_(order, order)], 6)
    assert permuted.coordinates == pytest.approx(found.coordinates[order], abs=1e-8)


WAYS = {"lapack": (10**6, 1 << 30), "arpack": (0, 1 << 30), "krylov": (0, 0)}


@pytest.fixture(params=WAYS)
def _way(request, monkeypatch):
    """Each way to the eigenpairs."""
    dense, resident = WAYS[request.param]
    monkeypatch.setattr(eigenpairs, "DENSE", dense)
    monkeypatch.setattr(upper, "RESIDENT", resident)
    monkeypatch.setattr(upper, "TILE", 50)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_embedding_twice_gives_the_same_bits(n_threads: int):
    D = indefinite(300)
    with threadpool_limits(n_threads, "blas"):
        assert np.array_equal(inpca(D).coordinates, inpca(D).coordinates)


@pytest.mark.usefixtures("_way")
def test_a_point_that_is_there_twice_is_a_weight_of_two():
    D = indefinite(200)
    copies = np.random.default_rng(0).integers(1, 4, len(D))
    rows = np.repeat(np.arange(len(D)), copies)
    repeated, weighted = inpca(D[np.ix_(rows, rows)], 6), inpca(D, 6, copies)
    for name in ("eigenvalues", "explained_stress", "explained_frobenius", "explained_l1"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name), rel=1e-10), name
    scale = np.abs(repeated.coordinates).max()
    assert np.abs(weighted.coordinates[rows] - repeated.coordinates).max() < 1e-10 * scale
    assert weighted.row_means[rows] == pytest.approx(repeated.row_means, rel=1e-12)
    assert weighted.frobenius_norm == pytest.approx(repeated.frobenius_norm, rel=1e-12)


@pytest.mark.usefixtures("_way")
def test_a_point_of_weight_zero_is_placed_as_if_it_were_new():
    D, w = indefinite(150), np.ones(150)
    w[[3, 70, 149]] = 0
    found, others = inpca(D, 6, w), inpca(D[np.ix_(w > 0, w > 0)], 6)
    assert found.eigenvalues == pytest.approx(others.eigenvalues)
    assert found.coordinates[w > 0] == pytest.approx(others.coordinates, abs=1e-8)
    assert found.coordinates[w == 0] == pytest.approx(
        others.project(D[np.ix_(w == 0, w > 0)]), abs=1e-8
    )


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("little", [1e-12, 1e-20, 1e-30])
def test_a_point_of_little_weight_is_placed_as_one_of_none(little):
    D, w = indefinite(150), np.ones(150)
    w[[3, 70, 149]] = 0
    found, without = inpca(D, 6, np.where(w > 0, w, little)), inpca(D, 6, w)
    assert found.coordinates == pytest.approx(without.coordinates, abs=1e-8)


@pytest.mark.usefixtures("_way")
def test_weights_are_centred_upon_and_projected_with():
    D, w = indefinite(150), np.random.default_rng(4).uniform(0.5, 9, 150)
    found = inpca(D, 6, w)
    assert np.abs(w @ found.coordinates).max() < 1e-8
    assert np.square(found.coordinates).T @ w == pytest.approx(np.abs(found.eigenvalues))
    assert found.project(D) == pytest.approx(found.coordinates, abs=1e-8)


@pytest.mark.usefixtures("_way")
def test_equal_weights_scale_the_eigenvalues_alone():
    D = indefinite(150)
    found, plain = inpca(D, 6, np.full(150, 2.5)), inpca(D, 6)
    assert found.eigenvalues == pytest.approx(2.5 * plain.eigenvalues)
    assert found.coordinates == pytest.approx(plain.coordinates, abs=1e-8)
    assert found.explained_l1 == pytest.approx(plain.explained_l1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "shape `(2,)`; one for each of 5 snapshots"),
        ([1, 1, -1, 1, 1], "`-1` at 2; finite numbers ≥ 0, two or more of them > 0"),
        ([1, 1, 1, np.nan, 1], "`nan` at 3; finite numbers ≥ 0, two or more of them > 0"),
        ([1, np.inf, 1, 1, 1], "`inf` at 1; finite numbers ≥ 0, two or more of them > 0"),
        ([0, 0, 1, 0, 0], "fewer than two > 0; finite numbers ≥ 0, two or more of them > 0"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(AnalysisError) as caught:
        inpca(indefinite(5), 2, weights)
    assert str(caught.value) == f"weights: {message}"


def test_a_diagonal_that_is_not_zero_is_refused():
    D = indefinite(5)
    D[2, 2] = 0.25
    with pytest.raises(AnalysisError) as caught:
        inpca(D, 2)
    assert str(caught.value) == ("D[2, 2]: `0.25` from zero; zero, a snapshot's distance to itself")


class Lazy:
    """A matrix that can only be read by blocks of two slices."""

    def __init__(self, D: np.ndarray) -> None:
        self.D, self.shape = D, D.shape

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        assert all(isinstance(part, slice) for part in key)
        return self.D[key]


def test_a_matrix_too_large_for_memory_is_read_by_blocks(monkeypatch):
    D = indefinite(300).astype(np.float32)
    monkeypatch.setattr(upper, "RESIDENT", 0)
    monkeypatch.setattr(upper, "TILE", 70)
    assert inpca(Lazy(D)).coordinates == pytest.approx(inpca(D).coordinates, abs=1e-8)


def broken(i: int, j: int, value: float) -> np.ndarray:
    D = indefinite(5)
    D[i, j] = value
    return D


@pytest.mark.parametrize(
    ("D", "message"),
    [
        (broken(1, 3, np.nan), "D[1, 3]: `nan`; finite distances"),
        (broken(0, 2, np.inf), "D[0, 2]: `inf`; finite distances"),
        (np.zeros((3, 2)), "D: shape `(3, 2)`; a square matrix of 2 or more"),
        (np.zeros((1, 1)), "D: shape `(1, 1)`; a square matrix of 2 or more"),
        (np.zeros((4, 4)), "D: all snapshots coincide; at least two different ones"),
    ],
)
def test_a_matrix_that_cannot_be_embedded_is_refused(D, message):
    with pytest.raises(AnalysisError) as caught:
        inpca(D, 1)
    assert str(caught.value) == message


def test_an_asymmetric_matrix_is_refused_by_its_entries():
    D = indefinite(5)
    D[1, 3] += 0.5
    with pytest.raises(AnalysisError) as caught:
        inpca(D, 2)
    assert str(caught.value) == "D[1, 3]: differs from D[3, 1] by `0.5`; a symmetric matrix"


@pytest.mark.parametrize("k", [0, -1, 5, 6])
def test_as_many_components_as_snapshots_are_refused_because_w_has_fewer(k):
    with pytest.raises(AnalysisError) as caught:
        inpca(indefinite(5), k)
    assert str(caught.value) == f"n_components: `{k}`; 1 to 4, fewer than the 5 snapshots"


@pytest.mark.parametrize(("M", "k"), [(2, 1), (9, 8), (10, 9), (11, 10), (12, 10)])
def test_by_default_there_are_ten_components_or_all_that_there_are(M, k):
    assert inpca(indefinite(M)).coordinates.shape == (M, k)


def test_distances_that_do_not_fit_cannot_be_projected():
    found = inpca(indefinite(5), 2)
    with pytest.raises(AnalysisError, match="distances to 5 snapshots"):
        found.project(np.zeros(4))
    with pytest.raises(AnalysisError, match="not finite"):
        found.project(np.full(5, np.inf))
