"""The C kernel: every width of vectors agrees with the formula, whatever is done to the input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from analysis.bhattacharyya import (
    COEFFICIENT_FLOOR,
    NotDistributionsError,
    cpu,
    local_kernels,
    pairwise,
)
from analysis.bhattacharyya.kernel import pairwise as in_runs
from analysis.bhattacharyya.kernel import unpacked

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs gcc or Clang")
needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


@pytest.fixture(params=sorted(cpu.INSTRUCTIONS))
def width(request, monkeypatch) -> int:
    """Each width of vectors that this processor has, in place of the widest."""
    if reason := cpu.missing():
        pytest.skip(reason)
    if request.param > cpu.lanes():
        pytest.skip(f"this processor has no {cpu.INSTRUCTIONS[request.param]}")
    monkeypatch.setattr(cpu, "lanes", lambda: request.param)
    return request.param


@pytest.fixture
def kernel():
    with ThreadPoolExecutor(2) as pool:
        yield cpu.Cpu(pool, 2)


def predictions(n: int, n_samples: int, n_classes: int, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng((n, n_samples, n_classes))
    return log_softmax(scale * rng.standard_normal((n, n_samples, n_classes)), axis=-1)


def by_formula(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """−(1/N) Σₙ log max(floor, Σ_c √(p q)): SciPy, float64, nothing shared with the kernels."""
    p, q = (x.astype(float) - logsumexp(x.astype(float), axis=-1, keepdims=True) for x in (p, q))
    bc = np.stack([logsumexp((one + q) / 2, axis=-1) for one in p])
    return -np.maximum(bc, np.log(COEFFICIENT_FLOOR)).mean(axis=-1)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(1, expected)))


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.eye(n_classes)[classes])


@needs_compiler
def test_where_there_is_a_compiler_the_kernel_was_built():
    assert cpu.missing() is None


@needs_kernel
def test_the_widest_vectors_are_those_of_the_processor():
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    if "sse2" not in flags:
        pytest.skip("no list of what an x86 processor can do")
    expected = 16 if {"avx512f", "avx512dq"} <= set(flags) else 8 if "avx2" in flags else 4
    assert cpu.lanes() == expected


@needs_kernel
def test_by_itself_it_is_chosen_where_it_is_exact_and_fast(monkeypatch):
    chosen = []
    for n_samples, n_classes, lanes in ((256, 2, 4), (255, 2, 16), (256, 99, 4), (256, 99, 8)):
        monkeypatch.setattr(cpu, "lanes", lambda lanes=lanes: lanes)
        with local_kernels(n_samples, n_classes) as [kernel]:
            chosen.append(isinstance(kernel, cpu.Cpu))
    assert chosen == [True, False, False, True]


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 4, 20])
@pytest.mark.parametrize("n_classes", [2, 3, 10, 33])
def test_random_and_confident_predictions(n_classes, scale, kind):
    p, q = (predictions(n, 300, n_classes, scale).astype(kind) for n in (19, 9))
    assert error(pairwise(p, q, kernel="cpu"), by_formula(p, q)) < 1e-7
    assert error(pairwise(p, kernel="cpu"), by_formula(p, p)) < 1e-7


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("scale", [1, 20])
def test_a_thousand_classes(scale):
    p, q = (predictions(n, 260, 1000, scale).astype(np.float16) for n in (3, 2))
    assert error(pairwise(p, q, kernel="cpu"), by_formula(p, q)) < 1e-7


@pytest.mark.usefixtures("width")
def test_identical_and_disjoint_and_hard_predictions():
    p = predictions(6, 400, 10)
    assert pairwise(p, p, kernel="cpu").diagonal().max() < 1e-7
    assert pairwise(np.repeat(p[:1], 40, 0), kernel="cpu").max() < 1e-8
    classes = np.arange(400) % 5
    hard = np.stack([one_hot(classes, 10), one_hot(classes + 5, 10), one_hot(classes * 2, 10)])
    found = pairwise(hard, kernel="cpu")
    assert error(found, by_formula(hard, hard)) < 1e-7
    assert found[0, 1] == pytest.approx(60 * np.log(2))
    mixed = np.concatenate([p, hard])
    assert error(pairwise(mixed, kernel="cpu"), by_formula(mixed, mixed)) < 1e-7


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 289])
def test_any_number_of_snapshots_is_symmetric_and_agrees_with_a_rectangle(n):
    p = predictions(n, 261, 3)
    D = pairwise(p, kernel="cpu")
    assert D.shape == (n, n)
    assert (D == D.T).all()
    assert not D.diagonal().any()
    upper = np.triu_indices(n, 1)  # the order of p and q does not matter to 1e-15, not exactly
    assert D[upper] == pytest.approx(pairwise(p, p, kernel="cpu")[upper], abs=1e-14)


@pytest.mark.usefixtures("width")
def test_distances_ignore_the_order_of_snapshots_samples_and_classes():
    p = predictions(50, 500, 7)
    D, rng = pairwise(p, kernel="cpu"), np.random.default_rng(0)
    rows, samples, classes = (rng.permutation(n) for n in p.shape)
    assert pairwise(p[rows], kernel="cpu") == pytest.approx(D[np.ix_(rows, rows)], abs=1e-13)
    assert pairwise(p[:, samples], kernel="cpu") == pytest.approx(D, abs=2e-8)
    assert pairwise(p[:, :, classes], kernel="cpu") == pytest.approx(D, abs=5e-8)


@pytest.mark.usefixtures("width")
def test_distances_are_means_over_samples():
    p = predictions(40, 600, 5)
    D = pairwise(p, kernel="cpu")
    assert pairwise(np.concatenate([p, p], 1), kernel="cpu") == pytest.approx(D, abs=2e-8)
    parts = [pairwise(part, kernel="cpu") for part in (p[:, :201], p[:, 201:])]
    assert (201 * parts[0] + 399 * parts[1]) / 600 == pytest.approx(D, abs=2e-8)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize(("n_threads", "tile", "panels"), [(1, 128, 4), (5, 32, 1), (3, 64, 3)])
def test_neither_threads_nor_tiles_change_a_bit(n_threads, tile, panels, monkeypatch):
    p, q = predictions(150, 300, 4), predictions(70, 300, 4)
    whole, rectangle = pairwise(p, kernel="cpu"), pairwise(p, q, kernel="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(cpu, "_TILE", tile)
    monkeypatch.setattr(cpu, "_PANELS", panels)
    assert np.array_equal(pairwise(p, kernel="cpu"), whole)
    assert np.array_equal(pairwise(p, q, kernel="cpu"), rectangle)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("run", [4, 12, 100, 128, 256])
def test_how_many_samples_are_packed_at_once_does_not_matter(run, kernel):
    p = torch.from_numpy(predictions(50, 301, 10))
    expected = pairwise(p, kernel="cpu")
    found = in_runs(kernel, p, None, run)
    assert found == pytest.approx(expected, abs=2e-8)
    assert run % kernel.step(10) or np.array_equal(found, expected)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("n_classes", [3, 40])
def test_coefficients_below_the_floor_change_no_bit_of_the_others(n_classes):
    p = predictions(60, 400, n_classes)
    with_others = p.copy()
    with_others[7] = with_others[40] = one_hot(np.arange(400) % n_classes, n_classes)
    with_others[40] = with_others[40, :, ::-1]
    kept = np.delete(np.arange(60), [7, 40])
    D = pairwise(with_others, kernel="cpu")
    assert D[7, 40] > 20  # samples with disjoint supports
    assert np.array_equal(D[np.ix_(kept, kept)], pairwise(p[kept], kernel="cpu"))


@pytest.mark.usefixtures("width")
def test_what_is_packed_once_serves_any_rectangle_and_its_memory_another_time(kernel):
    p, q = (torch.from_numpy(predictions(n, 264, 6)).half() for n in (40, 21))
    pairs, both = kernel.sums(40, 21), kernel.sums(40, 40)
    rows, columns = unpacked(40), unpacked(21)
    for samples in (slice(200), slice(200, 264)):
        before = rows
        rows, columns = kernel.pack(p[:, samples], rows), kernel.pack(q[:, samples], columns)
        kernel.accumulate([(pairs, rows, columns), (both, rows, rows)])
    assert rows.run.data_ptr() == before.run.data_ptr()
    found = kernel.distances(pairs, rows, columns, 264)
    assert error(found, by_formula(p.numpy(), q.numpy())) < 1e-7
    found = kernel.distances(both, rows, rows, 264)
    assert error(found, by_formula(p.numpy(), p.numpy())) < 1e-7


@pytest.mark.usefixtures("width")
def test_what_was_divided_out_of_rows_is_told(kernel):
    p = predictions(21, 264, 6) + np.random.default_rng(0).normal(0, 0.005, (21, 264, 1))
    p, packed = p.astype(np.float16), unpacked(21)
    for samples in (slice(100), slice(100, 264)):
        packed = kernel.pack(torch.from_numpy(p[:, samples]), packed)
    expected = logsumexp(p.astype(float), axis=-1).sum(-1)
    assert packed.log_sums == pytest.approx(expected, abs=264 * 1e-7)


@pytest.mark.usefixtures("width")
def test_near_snapshots_are_as_far_apart_as_the_formula_says():
    p = predictions(20, 4000, 10)
    nudge = np.random.default_rng(1).standard_normal(p.shape)
    q = log_softmax(p + 0.01 * nudge, axis=-1)
    found, expected = pairwise(p, q, kernel="cpu").diagonal(), by_formula(p, q).diagonal()
    assert expected.max() < 2e-5  # of a coefficient of 1, float32's last bit is 6e-8
    assert np.abs(found / expected - 1).max() < 2e-3


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "some snapshots": lambda p: p[::2],
    "some samples": lambda p: p[:, ::3],
    "some classes": lambda p: p[:, :, :4],
    "samples first": lambda p: p.transpose(0, 1).contiguous().transpose(0, 1),
    "the same again": lambda p: p[:1].expand(5, -1, -1),
    "one sample": lambda p: p[:, :1],
    "one class": lambda p: p[:, :, :1] * 0,
}


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_any_layout_in_memory_will_do(layout, kind):
    p = LAYOUTS[layout](torch.from_numpy(predictions(9, 780, 6)).to(kind))
    if layout == "some classes":  # whose probabilities sum to 1 again, as float32's
        p = LAYOUTS[layout](torch.from_numpy(predictions(9, 780, 4)).to(kind).repeat(1, 1, 2))
    assert pairwise(p, kernel="cpu") == pytest.approx(by_formula(*[p.numpy()] * 2), abs=3e-7)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(256, 280), st.integers(2, 40))
def test_no_distance_of_distributions_is_infinite_or_off(width, seed, n, n_samples, n_classes):
    rng = np.random.default_rng(seed)
    scale = rng.choice([0, 1, 30, 1e3, 3e4], size=(n, n_samples, 1))
    p = log_softmax(scale * rng.standard_normal((n, n_samples, n_classes)), axis=-1)
    p = p.clip(-65504).astype(np.float16)
    D = pairwise(p, kernel="cpu")
    assert np.isfinite(D).all()
    # Samples at the floor have rounding in common, which does not average out: 2e-7 of 41.6.
    assert error(D, by_formula(p, p)) < 2e-7


@pytest.mark.usefixtures("width")
def test_a_row_that_is_off_is_found_wherever_it_is(kernel):
    rng = np.random.default_rng(0)
    for value in (np.nan, np.inf, -np.inf, 0.0, 65504.0):
        p = torch.from_numpy(predictions(37, 40, 10).astype(np.float16))
        p[tuple(rng.integers(p.shape[:2]))] = value
        with pytest.raises(NotDistributionsError):
            kernel.pack(p, unpacked(37))


@needs_kernel
def test_rows_that_only_float64_accepts_are_computed(monkeypatch):
    p = predictions(3, 300, 4)
    pack, calls = cpu.Cpu.pack, []

    def refusing(self, log_p, before):
        calls.append(log_p)
        if len(calls) == 1:
            raise NotDistributionsError
        return pack(self, log_p, before)

    monkeypatch.setattr(cpu.Cpu, "pack", refusing)
    assert error(pairwise(p, kernel="cpu"), by_formula(p, p)) < 1e-7
    assert len(calls) == 2


@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/cc"])
def test_without_a_compiler_the_package_is_built_all_the_same(tmp_path, compiler):
    command = [sys.executable, "setup.py", "build_ext"]
    to = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = os.environ | {"CC": compiler}
    subprocess.run([*command, *to], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert not list(tmp_path.rglob("*.so"))
