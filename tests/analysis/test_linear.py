"""The kernels of Hellinger and symmetrised KL agree with the formulas, far and near."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from analysis import linear
from analysis.bhattacharyya import NotDistributionsError
from analysis.bhattacharyya.kernel import pairwise, unpacked
from analysis.linear import LOG_FLOOR, Hellinger, Linear, SymmetrisedKL
from analysis.resampling import measure, stratified_counts

KINDS = [Hellinger, SymmetrisedKL]
EXACT = 2e-14  # of max(1, d)


def found(kind: type[Linear], p: np.ndarray, q: np.ndarray | None = None, run: int | None = None):
    with linear.kernels(kind, *p.shape[1:]) as [kernel, *_]:
        return pairwise(
            kernel, torch.from_numpy(p), None if q is None else torch.from_numpy(q), run
        )


def by_formula(kind: type[Linear], p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """In extended precision, by differences, none of which cancel."""
    p, q = (log_softmax(x.astype(np.longdouble), axis=-1) for x in (p, q))

    def distance(a: np.ndarray, b: np.ndarray) -> np.longdouble:
        if kind is Hellinger:
            return np.square(np.exp(a / 2) - np.exp(b / 2)).sum(-1).mean() / 2
        logs = np.maximum(a, LOG_FLOOR) - np.maximum(b, LOG_FLOOR)
        return ((np.exp(a) - np.exp(b)) * logs).sum(-1).mean()

    return np.array([[distance(a, b) for b in q] for a in p])


def random_log_probs(n: int, n_samples: int, n_classes: int, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(n * 1000 + n_samples)
    return log_softmax(scale * rng.standard_normal((n, n_samples, n_classes)), axis=-1)


def near(log_p: np.ndarray, by: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    return log_softmax(log_p + by * rng.standard_normal(log_p.shape), axis=-1)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.maximum(1, expected)).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.1, 2, 50])  # from near ignorance to near one-hot
@pytest.mark.parametrize("shape", [(300, 2), (1000, 10), (17, 1000), (1, 3)])
def test_distances_are_those_of_the_formula(kind, scale, shape):
    p, q = random_log_probs(5, *shape, scale), random_log_probs(7, *shape, scale)
    p[3] = q[2]
    assert error(found(kind, p, q), by_formula(kind, p, q)) < EXACT
    assert error(found(kind, p), by_formula(kind, p, p)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 10])
@pytest.mark.parametrize("by", [1e-1, 1e-3, 1e-5])
def test_near_snapshots_keep_small_distances(kind, scale, by):
    p = random_log_probs(4, 500, 10, scale)
    expected = by_formula(kind, p, near(p, by)).diagonal()
    assert expected.max() < 2 * by**2
    off = np.abs(found(kind, p, near(p, by)).diagonal() - expected)
    assert off.max() < EXACT
    assert (off / expected).max() < 1e-7 or expected.max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [4, 100])  # logarithms to below −500, far under the floor
def test_as_stored_they_are_those_that_the_check_measures(kind, scale):
    p = random_log_probs(30, 200, 10, scale).astype(np.float16)
    measured = measure([(slice(0, 200), torch.from_numpy(p))], stratified_counts([0] * 200, 2))
    expected = measured.hellinger if kind is Hellinger else measured.symmetrised_kl
    assert error(found(kind, p), expected) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_snapshots_with_themselves_is_symmetric_and_zero_on_its_diagonal(kind):
    p = random_log_probs(530, 300, 3)  # three panels of rows
    D = found(kind, p)
    assert np.array_equal(D, D.T)
    assert not D.diagonal().any()
    some = [0, 255, 256, 511, 512, 529]
    assert error(D[some], by_formula(kind, p[some], p)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_identical_snapshots_are_at_zero_to_rounding(kind):
    p = random_log_probs(3, 400, 10)
    assert 0 <= found(kind, p, p).diagonal().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(steps=st.integers(1, 12), n_classes=st.sampled_from([2, 7, 600]), last=st.integers(0, 30))
def test_the_division_into_runs_changes_no_bit(kind, steps, n_classes, last):
    with linear.kernels(kind, 1, n_classes) as [kernel, *_]:
        step = kernel.step(n_classes)
    p = random_log_probs(9, 3 * step + last, n_classes)
    whole = found(kind, p, run=100 * step)
    assert np.array_equal(found(kind, p, run=steps * step), whole)
    assert np.array_equal(found(kind, p, p[:4], run=step), found(kind, p, p[:4], run=100 * step))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_used_again_and_a_shorter_run_is_no_longer_than_it_is(kind):
    p = torch.from_numpy(random_log_probs(9, 3000, 4))
    with linear.kernels(kind, 3000, 4) as [kernel, *_]:
        first = kernel.pack(p[:, :2048], unpacked(9))
        second = kernel.pack(p[:, 2048:], first)
        assert second.run.memory is first.run.memory
        assert sum(block.shape[2] for block in second.run.blocks) == 952 * 4
        bytes_each = first.run.memory.nbytes / (9 * 2048)
        assert bytes_each == kernel.packed_bytes(4)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_disjoint_snapshots_are_at_one_and_at_twice_the_floor(n_classes):
    p = np.full((2, 50, n_classes), -np.inf)
    p[0, :, 0] = p[1, :, 1] = 0.0
    assert found(Hellinger, p)[0, 1] == pytest.approx(1, rel=1e-14)
    assert found(SymmetrisedKL, p)[0, 1] == pytest.approx(-2 * LOG_FLOOR, rel=1e-14)
    assert math.exp(LOG_FLOOR) == pytest.approx(2.0**-60)


def test_hand_worked_values_of_two_classes():
    p = np.log([[[0.5, 0.5]], [[0.9, 0.1]]])
    hellinger = 1 - math.sqrt(0.45) - math.sqrt(0.05)
    assert found(Hellinger, p)[0, 1] == pytest.approx(hellinger, rel=1e-13)
    a, b = np.exp(p[:, 0])
    kl = rel_entr(a, b).sum() + rel_entr(b, a).sum()
    assert found(SymmetrisedKL, p)[0, 1] == pytest.approx(kl, rel=1e-13)
    assert kl == pytest.approx(0.4 * math.log(9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, 0.5, np.inf, -np.inf])
def test_what_is_no_distribution_is_refused(kind, bad):
    p = random_log_probs(300, 40, 4)
    p[299, 39] = bad
    with pytest.raises(NotDistributionsError):
        found(kind, p)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_normalised_and_left_as_they_were(kind):
    p = random_log_probs(4, 60, 5)
    off = p + np.random.default_rng(0).uniform(-5e-4, 5e-4, (4, 60, 1))
    before = off.copy()
    assert error(found(kind, off), found(kind, p)) < 1e-13
    assert np.array_equal(off, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_they_are_the_same(kind):
    p = random_log_probs(300, 700, 10)
    with linear.threads(1) as pool:
        here = kind(pool, 1, torch.device("cpu"))
        there = kind(pool, 1, torch.device("cuda"), 1 << 30)
        values = torch.from_numpy(p)
        assert error(pairwise(there, values, None), pairwise(here, values, None)) < EXACT
        assert np.array_equal(
            pairwise(there, values, None), pairwise(there, values, None, there.step(10))
        )
