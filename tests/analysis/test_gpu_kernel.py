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

from analysis.bhattacharyya import (
    COEFFICIENT_FLOOR,
    NotDistributionsError,
    to_ignorance,
    to_truth,
)
from analysis.bhattacharyya.kernel import pairwise
from analysis.tiles import open_distances

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

INTERPRETED = """
import sys
import numpy as np
import torch
from analysis.bhattacharyya import gpu
from analysis.bhattacharyya.kernel import pairwise

folder = sys.argv[1]
tile, packed, step, run = map(int, sys.argv[2:])
gpu._DTYPE, gpu.ROWS, gpu.COLUMNS, gpu._PACKED = torch.float32, tile, tile, packed
given = np.load(f"{folder}/given.npz")
p, q = (torch.from_numpy(given[name]).float() for name in "pq")
before = p.clone()
gpu._STEP = step
kernel = gpu.Gpu(torch.device("cpu"))
np.savez(f"{folder}/found.npz", pq=pairwise(kernel, p, q, run), pp=pairwise(kernel, p, None, run))
assert torch.equal(p, before)
"""


def predictions(
    n: int, n_samples: int, n_classes: int, scale: float = 2.0, seed: int = 0
) -> np.ndarray:
    logits = np.random.default_rng((seed, n, n_samples)).normal(size=(n, n_samples, n_classes))
    return log_softmax(scale * logits, axis=-1)


def by_formula(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """−(1/N) Σₙ log max(floor, Σ_c √(p q)): SciPy, float64, nothing shared with the kernels."""
    rows = [logsumexp((one.astype(float) + q) / 2, axis=-1) for one in p]
    return -np.maximum(np.stack(rows), np.log(COEFFICIENT_FLOOR)).mean(axis=-1)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(1, expected)))


@needs_triton
@pytest.mark.parametrize(
    ("n_p", "n_q", "n_samples", "n_classes", "tile", "packed", "step", "run"),
    [
        (16, 16, 4, 10, 16, 1 << 20, 8, 8),  # a whole tile, a whole group
        (17, 33, 5, 10, 16, 1 << 20, 8, 8),  # one more than a tile, than a group
        (3, 5, 6, 2, 16, 12, 8, 8),  # packed two samples at a time
        (5, 4, 3, 15, 16, 1 << 20, 8, 8),  # the floor fills the chunk of classes
        (5, 4, 3, 16, 16, 1 << 20, 8, 8),  # and does not fit into it
        (6, 7, 5, 70, 16, 1 << 20, 8, 8),  # three chunks, the last not full
        (5, 4, 18, 20, 16, 1 << 20, 4, 8),  # three runs, of several launches
    ],
)
def test_interpreted_it_agrees_with_the_formula(
    tmp_path, n_p, n_q, n_samples, n_classes, tile, packed, step, run
):
    p, q = predictions(n_p, n_samples, n_classes), predictions(n_q, n_samples, n_classes, 9.0)
    np.savez(tmp_path / "given.npz", p=p, q=q)
    subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(tmp_path), *map(str, (tile, packed, step, run))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        check=True,
    )
    with np.load(tmp_path / "found.npz") as found:
        assert error(found["pq"], by_formula(p, q)) < 1e-6  # float32 and few samples
        assert error(found["pp"], by_formula(p, p)) < 1e-6
        assert (found["pp"] == found["pp"].T).all()
        assert (np.diag(found["pp"]) == 0).all()


OF_A_STORE = """
import contextlib
import sys
from pathlib import Path
import torch
from analysis.bhattacharyya import gpu
from analysis.blocks import DistanceBlocks
from analysis.fill import fill
from analysis.select import select
from analysis.tiles import Tiling
from analysis.union import open_union

gpu._DTYPE, gpu.ROWS, gpu.COLUMNS, gpu._STEP = torch.float32, 16, 16, 8

@contextlib.contextmanager
def kernels(n_samples, n_classes):
    yield [gpu.Gpu(torch.device("cpu")) for _ in range(2)]

rows = select(open_union([sys.argv[1]])).rows
homes = {trial_id: sys.argv[1] for trial_id in rows["trial_id"]}
source = DistanceBlocks(homes, rows, "test", lambda: 1 << 30, kernels=kernels)
fill(Path(sys.argv[2]), source, Tiling(len(rows), int(sys.argv[3])), {"fingerprint": "one"})
"""


@needs_triton
@pytest.mark.parametrize("tile", [6, 15])  # of 15, so that there are fewer tiles than kernels
def test_interpreted_two_of_them_share_the_tiles_of_a_store(tmp_path, write_trial, tile):
    p = np.concatenate([write_trial(tmp_path, t, n_samples=20) for t in ("t0", "t1", "t2")])
    subprocess.run(
        [sys.executable, "-c", OF_A_STORE, str(tmp_path), str(tmp_path / "d"), str(tile)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        check=True,
    )
    D = open_distances(tmp_path / "d")
    exact = log_softmax(p.astype(float), axis=-1)
    assert error(D[:, :], by_formula(exact, exact)) < 1e-6
    labels = np.arange(20) % 4
    assert D.references[0] == pytest.approx(to_truth(p, labels), abs=1e-6)
    assert D.references[1] == pytest.approx(to_ignorance(p), abs=1e-6)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from analysis.bhattacharyya import gpu

kernel = gpu._log_coefficients
names = kernel.arg_names
arguments = ["*bf16", "*i64", "*i32", "i32", "i32", "i32"]
for chunk, n_chunks in ((16, 1), (32, 4)):
    constants = gpu._constants(chunk, n_chunks, False)
    source = ASTSource(
        fn=kernel,
        signature=dict(zip(names, arguments + ["constexpr"] * len(constants))),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in range(3)},
    )
    for capability in (86, 90):
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": gpu._WARPS})
        print(made.metadata.shared, made.asm["ptx"].count("cp.async.cg"))
"""


@needs_triton
def test_compiled_for_any_gpu_it_fits_and_reads_ahead_sixteen_bytes_at_a_time():
    given = [sys.executable, "-c", COMPILED]
    done = subprocess.run(given, cwd=ROOT, check=True, capture_output=True, text=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == 4
    assert all(shared <= 99 << 10 for shared, _ in found)  # all that 8.6 and 8.9 give a block
    assert all(n_copies > 0 for _, n_copies in found)


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from analysis.bhattacharyya import gpu

    return gpu


def on_gpu(gpu, p: np.ndarray, q: np.ndarray | None = None, run: int | None = None) -> np.ndarray:
    given = (None if x is None else torch.from_numpy(x) for x in (p, q))
    return pairwise(gpu.Gpu(torch.device("cuda")), *given, run)


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
@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_compiled_a_coefficient_near_the_floor_is_cut_off_at_it(gpu, factor):
    tiny = 2 * np.log(factor * COEFFICIENT_FLOOR / 2)  # of two classes
    p, q = (np.array([[row] * 8]) for row in ([0.0, tiny], [tiny, 0.0]))
    expected = -np.log(max(factor, 1) * COEFFICIENT_FLOOR)
    assert on_gpu(gpu, p, q)[0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.gpu
def test_compiled_runs_of_samples_add_up(gpu, monkeypatch):
    p, q = predictions(20, 1000, 10), predictions(30, 1000, 10, seed=1)
    whole = on_gpu(gpu, p, q)
    np.testing.assert_allclose(on_gpu(gpu, p, q, run=300), whole, atol=1e-9)
    monkeypatch.setattr(gpu, "_STEP", 100)
    np.testing.assert_allclose(on_gpu(gpu, p, q), on_gpu(gpu, p, q, run=300), atol=1e-12)


@pytest.mark.gpu
def test_compiled_it_refuses_a_row_that_is_no_distribution(gpu):
    for value in (np.nan, np.inf, 0.0):
        p = predictions(5, 1000, 10)
        p[3, 700, 2] = value
        with pytest.raises(NotDistributionsError):
            on_gpu(gpu, p)
