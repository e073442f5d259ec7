"""Distances agree with the formula, with each other and with their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special
from scipy.special import logsumexp

from analysis.bhattacharyya import COEFFICIENT_FLOOR, cpu, pairwise, to_ignorance, to_truth
from sweeper.errors import AnalysisError

needs_cpu = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))
FLOORED = ["portable", pytest.param("cpu", marks=needs_cpu)]  # kernels that have a floor
KERNELS = [*FLOORED, "reference"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return special.log_softmax(logits, axis=-1)


def random_log_probs(n: int, n_samples: int, n_classes: int, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(n * 1000 + n_samples)
    return log_softmax(scale * rng.standard_normal((n, n_samples, n_classes)))


def by_formula(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """−(1/N) Σₙ log Σ_c √(p q) with SciPy, float64, nothing shared with the kernels."""
    bc = logsumexp((p[:, None].astype(float) + q[None].astype(float)) / 2, axis=-1)
    return -bc.mean(axis=-1)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(1, expected)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_samples", [1, 3, 300])
def test_kernels_agree_with_the_formula(kernel, n_samples):
    p = random_log_probs(7, n_samples, 5)
    q = random_log_probs(9, n_samples, 5)
    # float32's rounding averages out over 256 samples; fewer `auto` leaves to another kernel.
    within = 1e-7 if n_samples >= 256 or kernel != "cpu" else 3e-7
    assert error(pairwise(p, q, kernel=kernel), by_formula(p, q)) < within
    assert error(pairwise(p, kernel=kernel), by_formula(p, p)) < within


@pytest.mark.parametrize("n_samples", [1, 255, 256])
def test_whatever_the_number_of_samples_by_itself_it_is_exact(n_samples):
    p = random_log_probs(7, n_samples, 5)
    assert error(pairwise(p, device="cpu"), by_formula(p, p)) < 1e-7


@pytest.mark.parametrize("kernel", FLOORED)
def test_tiles_groups_and_blocks_of_any_remainder_agree_with_the_formula(kernel):
    # One tile and 3 (3 and 3 of the C kernel), one block and 5, one group and 1.
    p = random_log_probs(387, 261, 3)
    some = [0, 100, 191, 192, 383, 384, 386]
    assert error(pairwise(p, kernel=kernel)[some], by_formula(p[some], p)) < 1e-7


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_samples", [1, 4])
def test_predictions_are_left_as_they_were(kernel, n_samples):
    p = random_log_probs(3, n_samples, 5)
    before = p.copy()
    pairwise(p, kernel=kernel)
    to_ignorance(p)
    assert np.array_equal(p, before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_distances_to_itself_are_symmetric_with_an_exactly_zero_diagonal(kernel):
    D = pairwise(random_log_probs(12, 300, 4).astype(np.float32), kernel=kernel)
    assert (np.diag(D) == 0).all()
    assert (D == D.T).all()
    assert D.dtype == np.float64


def test_hand_worked_two_class_value():
    p, q = np.log([[[0.5, 0.5]]]), np.log([[[0.9, 0.1]]])
    expected = -math.log(math.sqrt(0.45) + math.sqrt(0.05))
    assert pairwise(p, q)[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", FLOORED)
def test_torch_and_numpy_of_every_precision_give_the_same_distances(kernel):
    p = random_log_probs(4, 300, 3).astype(np.float16)
    expected = pairwise(p, kernel=kernel)
    assert np.array_equal(pairwise(torch.from_numpy(p), kernel=kernel), expected)
    for values in (p.astype(np.float32), p.astype(float)):
        # A square root of float32 may be its neighbour.
        assert pairwise(values, kernel=kernel) == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float16_rounding_of_rows_is_not_taken_for_distance(kernel):
    p = random_log_probs(3, 300, 10, scale=5).astype(np.float16)
    assert np.abs(pairwise(p, p, kernel=kernel).diagonal()).max() < 1e-7


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_classes", [10, 1000])
def test_uniform_snapshots_coincide_though_their_square_roots_are_not_exact(kernel, n_classes):
    p = np.full((3, 400, n_classes), -math.log(n_classes))
    assert pairwise(p, p, kernel=kernel).max() < 1e-7
    # Float16 has −ln 1000 so far off that 1,000 of them make 1.0015.
    assert pairwise(p.astype(np.float16), kernel=kernel).max() < 1e-7


@pytest.mark.parametrize("kernel", FLOORED)
@pytest.mark.parametrize("n_samples", [5, 400])
def test_disjoint_supports_are_infinite_in_the_reference_and_floored_in_a_kernel(kernel, n_samples):
    with np.errstate(divide="ignore"):
        p, q = np.log([[[1.0, 0.0]] * n_samples]), np.log([[[0.0, 1.0]] * n_samples])
    assert pairwise(p, q, kernel="reference")[0, 0] == math.inf
    floor = pytest.approx(-math.log(COEFFICIENT_FLOOR), rel=1e-7)
    assert pairwise(p, q, kernel=kernel)[0, 0] == floor


@pytest.mark.parametrize("kernel", FLOORED)
@pytest.mark.parametrize("n_samples", [5, 400])
@pytest.mark.parametrize("factor", [0.6, 0.99, 1.01, 1.5])
def test_a_coefficient_near_the_floor_is_cut_off_at_it(kernel, n_samples, factor):
    tiny = 2 * math.log(factor * COEFFICIENT_FLOOR / 2)  # of two classes
    p, q = (np.array([[row] * n_samples]) for row in ([0.0, tiny], [tiny, 0.0]))
    expected = pytest.approx(-math.log(max(factor, 1) * COEFFICIENT_FLOOR), rel=1e-7)
    assert pairwise(p, q, kernel=kernel)[0, 0] == expected


@pytest.mark.parametrize("kernel", FLOORED)
def test_a_product_of_four_tiny_coefficients_does_not_underflow(kernel):
    p = log_softmax(np.tile([0.0, -75.0], (1, 400, 1)))
    q = log_softmax(np.tile([-75.0, 0.0], (1, 400, 1)))
    # Σ √(p q) = 2 e^−37.5, four of which are e^−150, below the smallest float32
    expected = pairwise(p, q, kernel="reference")[0, 0]
    assert expected == pytest.approx(37.5 - math.log(2))
    assert pairwise(p, q, kernel=kernel)[0, 0] == pytest.approx(expected, rel=1e-7)


@settings(max_examples=60)
@given(arrays(np.float64, (4, 6, 3), elements=st.floats(-60, 0)))
def test_any_simplex_vectors_satisfy_the_axioms_and_the_reference(logits):
    p = log_softmax(logits)
    D, expected = pairwise(p), pairwise(p, kernel="reference")
    assert (D >= 0).all()
    assert (D == D.T).all()
    assert error(D, expected) < 1e-7


@settings(max_examples=40)
@given(arrays(np.float64, (3, 5, 4), elements=st.floats(-50, 0)), st.randoms())
def test_distance_ignores_the_order_of_samples_and_classes(logits, random):
    p = log_softmax(logits)
    samples = random.sample(range(5), 5)
    classes = random.sample(range(4), 4)
    assert pairwise(p[:, samples][:, :, classes]) == pytest.approx(pairwise(p), abs=1e-12)


def test_distance_to_truth_is_half_the_cross_entropy():
    logits = np.random.default_rng(0).standard_normal((3, 50, 6)) * 3
    labels = np.arange(50) % 6
    cross_entropy = [
        torch.nn.functional.cross_entropy(torch.from_numpy(row), torch.from_numpy(labels)).item()
        for row in logits
    ]
    p = log_softmax(logits)
    assert to_truth(p, labels) == pytest.approx(np.array(cross_entropy) / 2, rel=1e-12)
    with np.errstate(divide="ignore"):
        truth = np.log(np.eye(6)[labels])[None]
    assert pairwise(p, truth, kernel="reference")[:, 0] == pytest.approx(to_truth(p, labels))


def test_distance_to_ignorance_is_that_to_uniform_rows():
    p = random_log_probs(5, 40, 6)
    uniform = np.full((1, 40, 6), -math.log(6))
    assert to_ignorance(p) == pytest.approx(pairwise(p, uniform, kernel="reference")[:, 0])
    assert to_ignorance(uniform) == pytest.approx([0.0], abs=1e-15)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_ignorance_is_half_the_log_of_the_classes_from_truth(n_classes):
    labels = np.arange(20) % n_classes
    uniform = np.full((1, 20, n_classes), -math.log(n_classes))
    with np.errstate(divide="ignore"):
        truth = np.log(np.eye(n_classes)[labels])[None]
    half = pytest.approx([math.log(n_classes) / 2], rel=1e-12)
    assert to_truth(uniform, labels) == half
    assert to_ignorance(truth) == half


def test_threads_are_given_back():
    before = torch.get_num_threads()
    pairwise(random_log_probs(3, 5, 2))
    assert torch.get_num_threads() == before


def bad_rows(value: float) -> np.ndarray:
    p = random_log_probs(3, 4, 2)
    p[1, 2] = value
    return p


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("p", "message"),
    [
        (
            bad_rows(math.nan),
            "log_p[1, 2]: NaN, the worst of 1 wrong rows; natural-log probabilities whose sum is "
            "1 within 0.001",
        ),
        (
            bad_rows(0.0),
            "log_p[1, 2]: probabilities that sum to `2`, the worst of 1 wrong rows; natural-log "
            "probabilities whose sum is 1 within 0.001",
        ),
        (
            bad_rows(-math.inf),
            "log_p[1, 2]: probabilities that sum to `0`, the worst of 1 wrong rows; natural-log "
            "probabilities whose sum is 1 within 0.001",
        ),
        (np.zeros((2, 2)), "log_p: shape `(2, 2)`; (n_snapshots, n_samples, n_classes)"),
        (np.zeros((0, 2, 1)), "log_p: shape `(0, 2, 1)`; (n_snapshots, n_samples, n_classes)"),
        (np.zeros((1, 2, 1), int), "log_p: dtype `int64`; float16, float32 or float64"),
        ([[[0.0]]], "log_p: a list; a NumPy array or torch tensor"),
    ],
)
def test_what_is_no_log_probability_is_refused_by_row(p, message, kernel):
    with pytest.raises(AnalysisError) as caught:
        pairwise(p, kernel=kernel)
    assert str(caught.value) == message


def test_without_the_c_kernel_torch_serves_and_asking_for_it_says_why(monkeypatch):
    p = random_log_probs(4, 300, 3)
    monkeypatch.setattr(cpu, "_loaded", lambda: "it was not compiled")
    assert error(pairwise(p, device="cpu"), by_formula(p, p)) < 1e-7
    with pytest.raises(AnalysisError, match="`cpu`: it was not compiled; one that is here"):
        pairwise(p, kernel="cpu")


def test_shapes_kernels_devices_and_labels_that_do_not_fit_are_refused():
    p = random_log_probs(2, 4, 3)
    for arguments, part in (
        ({"log_q": random_log_probs(2, 5, 3)}, "log_q: shape `(2, 5, 3)`"),
        ({"kernel": "fast"}, "kernel: `fast`; one of auto, gpu, cpu, portable, reference"),
        ({"device": "tpu"}, "device: `tpu`; auto, cpu, cuda or cuda:<index>"),
        ({"device": "cuda:99"}, "device: `cuda:99`"),
        ({"device": "cuda", "kernel": "reference"}, "device: `cuda`; the reference"),
        ({"device": "cuda", "kernel": "cpu"}, "device: `cuda`; the cpu kernel"),
    ):
        with pytest.raises(AnalysisError) as caught:
            pairwise(p, **arguments)
        assert str(caught.value).startswith(part)
    for labels in (np.zeros(3, int), np.zeros(4), np.array([0, 1, 2, 3]), np.array([-1, 0, 0, 0])):
        with pytest.raises(AnalysisError, match="labels"):
            to_truth(p, labels)
