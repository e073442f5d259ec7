"""Resampled distances and other distances agree with their formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from analysis.bhattacharyya import COEFFICIENT_FLOOR, pairwise
from analysis.inpca import inpca
from analysis.resampling import agreement, measure, resampled_stress, stratified_counts, stress


def predictions(m: int = 7, n: int = 40, c: int = 4, scale: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(m * n).normal(size=(m, n, c))
    return log_softmax(scale * logits, axis=-1)


def in_runs(log_p: np.ndarray, *cuts: int):
    edges = [0, *cuts, log_p.shape[1]]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop), torch.from_numpy(log_p[:, start:stop])


LABELS = np.repeat([0, 1, 2, 3], [5, 10, 20, 5])


def test_every_draw_has_as_many_samples_of_each_class():
    counts = stratified_counts(LABELS, 20)
    assert counts.shape == (40, 20)
    for label in range(4):
        assert (counts[label == LABELS].sum(axis=0) == (label == LABELS).sum()).all()
    assert len({column.tobytes() for column in counts.T}) == 20
    assert np.array_equal(counts, stratified_counts(LABELS, 20))


def test_all_distances_agree_with_their_formulas():
    log_p = predictions()
    found = measure(in_runs(log_p), stratified_counts(LABELS, 3))
    p = np.exp(log_p)
    np.testing.assert_allclose(found.bhattacharyya, pairwise(log_p, kernel="reference"), atol=1e-12)
    for i in range(7):
        for j in range(7):
            hellinger = 1 - np.sqrt(p[i] * p[j]).sum(-1).mean()
            kl = ((p[i] - p[j]) * (log_p[i] - log_p[j])).sum(-1).mean()
            assert found.hellinger[i, j] == pytest.approx(hellinger, abs=1e-12)
            assert found.symmetrised_kl[i, j] == pytest.approx(kl, abs=1e-12)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_a_coefficient_near_the_floor_is_that_of_the_kernels(factor):
    tiny = 2 * np.log(factor * COEFFICIENT_FLOOR / 2)  # of two classes
    log_p = np.array([[[0.0, tiny]] * 5, [[tiny, 0.0]] * 5])
    found = measure(in_runs(log_p), np.ones((5, 2)))
    expected = pairwise(log_p, kernel="portable")[0, 1]
    assert found.bhattacharyya[0, 1] == pytest.approx(expected, rel=1e-9)


def test_a_resampled_set_is_that_of_its_samples_repeated():
    log_p, counts = predictions(), stratified_counts(LABELS, 3)
    found = measure(in_runs(log_p), counts)
    for column, pairs in zip(counts.T, found.resampled, strict=True):
        again = np.repeat(log_p, column.astype(int), axis=1)
        expected = pairwise(again, kernel="reference")[np.triu_indices(7, 1)]
        np.testing.assert_allclose(pairs, expected, atol=1e-12)


def test_runs_of_any_length_add_up():
    counts = stratified_counts(LABELS, 3)
    whole = measure(in_runs(predictions()), counts)
    parts = measure(in_runs(predictions(), 1, 17), counts)
    for name in ("bhattacharyya", "hellinger", "symmetrised_kl", "resampled"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-12)


def test_the_standard_error_is_that_of_a_mean():
    """Of one class, it is the scatter of −log BC over samples, over √N."""
    log_p = predictions(m=5, n=2000, c=3)
    found = measure(in_runs(log_p), stratified_counts(np.zeros(2000, int), 400))
    s = np.exp(log_p / 2)
    i, j = np.triu_indices(5, 1)
    each = -np.log((s[i] * s[j]).sum(-1))
    expected = each.std(axis=1, ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose(found.standard_errors(), expected, rtol=0.15)


def test_classes_whose_samples_are_all_alike_leave_nothing_to_chance():
    one_each = predictions(m=5, n=4)
    log_p = np.repeat(one_each, [5, 10, 20, 5], axis=1)
    found = measure(in_runs(log_p), stratified_counts(LABELS, 10))
    assert found.standard_errors().max() < 1e-12


def test_near_snapshots_are_at_one_one_and_eight_times_the_same_distance():
    log_p = predictions(m=1)
    near = log_softmax(log_p + 1e-3 * predictions(m=3), axis=-1)
    found = measure(in_runs(near), stratified_counts(LABELS, 2))
    upper = np.triu_indices(3, 1)
    d = found.bhattacharyya[upper]
    np.testing.assert_allclose(found.hellinger[upper], d, rtol=1e-2)
    np.testing.assert_allclose(found.symmetrised_kl[upper], 8 * d, rtol=1e-2)


def test_a_class_of_probability_zero_is_no_nan():
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[[0.5, 0.5, 0.0]], [[0.9, 0.1, 0.0]]]))
    found = measure(in_runs(log_p), stratified_counts([0], 2))
    assert found.symmetrised_kl[0, 1] == pytest.approx(0.4 * np.log(9))
    assert np.isfinite(found.resampled).all()


def test_stress_is_that_of_inpca():
    D = measure(in_runs(predictions(m=20)), stratified_counts(LABELS, 2)).bhattacharyya
    np.testing.assert_allclose(stress(D, 5), inpca(D, 5).explained_stress, rtol=1e-9)


def test_stress_of_resampled_sets_scatters_around_that_of_all():
    log_p = predictions(m=12, n=400)
    found = measure(in_runs(log_p), stratified_counts(np.zeros(400, int), 50))
    sets = resampled_stress(found, 3)
    assert sets.shape == (50, 3)
    whole = stress(found.bhattacharyya, 3)
    assert (np.abs(sets.mean(axis=0) - whole) < 5 * sets.std(axis=0) + 0.05).all()


def test_agreement_is_one_with_a_monotone_copy_and_not_with_another_arrangement():
    D = measure(in_runs(predictions(m=20)), stratified_counts(LABELS, 2)).bhattacharyya
    assert agreement(D, 3 * D) == pytest.approx((1, 1))
    order = np.random.default_rng(0).permutation(20)
    ranks, axes = agreement(D, D[np.ix_(order, order)])
    assert abs(ranks) < 0.5
    assert axes < 0.9
