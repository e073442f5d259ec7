"""The Triton kernel agrees with the formula: interpreted everywhere, compiled where there is a GPU.

The interpreter's bfloat16 products are wrong, so there the operands are float32 and `lo` is zero.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from analysis.bhattacharyya import COEFFICIENT_FLOOR

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

INTERPRETED = """
import sys
import numpy as np
import torch
from analysis.bhattacharyya import gpu

folder, tile, packed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
gpu._DTYPE, gpu.TILE, gpu._PACKED = torch.float32, tile, packed
given = np.load(f"{folder}/given.npz")
p, q = (torch.from_numpy(given[name]) for name in "pq")
cpu = torch.device("cpu")
np.savez(f"{folder}/found.npz", pq=gpu.pairwise(p, q, cpu), pp=gpu.pairwise(p, None, cpu))
"""


def predictions(
    n: int, n_samples: int, n_classes: int, scale: float = 2.0, seed: int = 0
) -> np.ndarray:
    logits = np.random.default_rng((seed, n, n_samples)).normal(size=(n, n_samples, n_classes))
    return log_softmax(scale * logits, axis=-1)


def by_formula(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """−(1/N) Σₙ log(Σ_c √(p q) + floor): SciPy, float64, nothing shared with the kernels."""
    rows = [logsumexp((one.astype(float) + q) / 2, axis=-1) for one in p]
    return -np.logaddexp(np.stack(rows), np.log(COEFFICIENT_FLOOR)).mean(axis=-1)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(1, expected)))


@needs_triton
@pytest.mark.parametrize(
    ("n_p", "n_q", "n_samples", "n_classes", "tile", "packed"),
    [
        (16, 16, 4, 10, 16, 1 << 20),  # a whole tile, a whole group
        (17, 33, 5, 10, 16, 1 << 20),  # one more than a tile, than a group
        (3, 5, 6, 2, 16, 12),  # packed two samples at a time
        (5, 4, 3, 15, 16, 1 << 20),  # the floor fills the chunk of classes
        (5, 4, 3, 16, 16, 1 << 20),  # and does not fit into it
        (6, 7, 5, 70, 16, 1 << 20),  # three chunks, the last not full
    ],
)
def test_interpreted_it_agrees_with_the_formula(
    tmp_path, n_p, n_q, n_samples, n_classes, tile, packed
):
    p, q = predictions(n_p, n_samples, n_classes), predictions(n_q, n_samples, n_classes, 9.0)
    np.savez(tmp_path / "given.npz", p=p, q=q)
    subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(tmp_path), str(tile), str(packed)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        check=True,
    )
    with np.load(tmp_path / "found.npz") as found:
        assert error(found["pq"], by_formula(p, q)) < 1e-6  # float32 and few samples
        assert error(found["pp"], by_formula(p, p)) < 1e-6
        assert (found["pp"] == found["pp"].T).all()
        assert (np.diag(found["pp"]) == 0).all()


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from analysis.bhattacharyya import gpu

    return gpu


def on_gpu(gpu, p: np.ndarray, q: np.ndarray | None = None) -> np.ndarray:
    given = (None if x is None else torch.from_numpy(x) for x in (p, q))
    return gpu.pairwise(*given, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("n_p", "n_q", "n_classes", "scale"),
    [(2, 140, 10, 2), (9, 7, 10, 8), (9, 7, 10, 40), (9, 7, 2, 2), (3, 4, 1000, 3)],
)
def test_compiled_it_agrees_with_the_formula(gpu, n_p, n_q, n_classes, scale, dtype):
    n_samples = gpu.MIN_SAMPLES
    p = predictions(n_p, n_samples, n_classes, scale).astype(dtype)
    q = predictions(n_q, n_samples, n_classes, scale, seed=1).astype(dtype)
    # What is stored is normalised again, in float64, as the kernel does.
    exact = [log_softmax(x.astype(float), axis=-1) for x in (p, q)]
    assert error(on_gpu(gpu, p, q), by_formula(*exact)) < 1e-7
    assert error(on_gpu(gpu, p), by_formula(exact[0], exact[0])) < 1e-7


@pytest.mark.gpu
def test_compiled_it_keeps_the_small_distances_of_near_snapshots(gpu):
    p = predictions(4, gpu.MIN_SAMPLES, 10, 4)
    near = log_softmax(p + 1e-3 * predictions(4, gpu.MIN_SAMPLES, 10, 1, seed=1), axis=-1)
    expected = np.diag(by_formula(p, near))
    assert expected.max() < 1e-6
    np.testing.assert_allclose(np.diag(on_gpu(gpu, p, near)), expected, atol=2e-8)


@pytest.mark.gpu
def test_compiled_its_distances_do_not_depend_on_the_place_in_the_matrix(gpu):
    p = predictions(300, gpu.MIN_SAMPLES, 10)
    D = on_gpu(gpu, p)
    order = np.random.default_rng(0).permutation(300)
    # Which of two snapshots is the row decides which of lo·hi′ and hi·lo′ is added first.
    np.testing.assert_allclose(on_gpu(gpu, p[order]), D[np.ix_(order, order)], atol=1e-8)
    assert np.array_equal(on_gpu(gpu, p[:10], p[200:]), D[:10, 200:])
    assert (np.diag(D) == 0).all()


@pytest.mark.gpu
def test_compiled_disjoint_supports_are_at_the_floor(gpu):
    with np.errstate(divide="ignore"):
        p, q = np.log([[[1.0, 0.0]], [[0.0, 1.0]]]).repeat(8, axis=1)
    D = on_gpu(gpu, p[None], q[None])
    assert D[0, 0] == pytest.approx(-np.log(COEFFICIENT_FLOOR), rel=1e-6)


@pytest.mark.gpu
def test_compiled_blocks_of_samples_add_up(gpu, monkeypatch):
    p, q = predictions(20, 1000, 10), predictions(30, 1000, 10, seed=1)
    whole = on_gpu(gpu, p, q)
    monkeypatch.setattr(gpu, "_blocks", lambda *_: [slice(0, 300), slice(300, 1000)])
    np.testing.assert_allclose(on_gpu(gpu, p, q), whole, atol=1e-9)
