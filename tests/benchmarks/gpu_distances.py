"""Distances on one GPU, for `gpu.py`: our kernel, the obvious torch code, float64."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch

from analysis.bhattacharyya import COEFFICIENT_FLOOR, gpu, pairwise

N_SAMPLES, N_CLASSES = 10_000, 10
FULL = 151_407  # snapshots of the published study
OBVIOUS = 64  # samples of the obvious code that are timed, of all that it would take
CHECKED = 256  # snapshots whose distances are compared with float64


def trajectories(n: int, n_samples: int, n_classes: int, device: torch.device) -> torch.Tensor:
    """Predictions like those of training: from near ignorance to confident, most of them right.

    Returns (n, n_samples, n_classes) float16 natural-log probabilities, on the device.
    """
    draw = torch.Generator(device).manual_seed(0)
    kinds = torch.randn(16, n_samples, n_classes, device=device, generator=draw)
    truth = torch.randint(n_classes, (n_samples,), device=device, generator=draw)
    found = torch.empty(n, n_samples, n_classes, dtype=torch.float16, device=device)
    rows = max(1, (1 << 27) // (n_samples * n_classes))
    for start in range(0, n, rows):
        part = found[start : start + rows]
        kind = torch.randint(16, (len(part),), device=device, generator=draw)
        logits = kinds[kind] + 0.3 * torch.randn(part.shape, device=device, generator=draw)
        progress = torch.rand(len(part), 1, 1, device=device, generator=draw) * 3
        logits[:, torch.arange(n_samples), truth] += 3
        part.copy_(torch.log_softmax(logits * progress, -1))
    return found


def seconds(work: Callable[[], None], rounds: int = 3) -> float:
    """Median time on the device, after one run that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def roots(log_p: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Normalised square-root probabilities, (n_samples, n, n_classes)."""
    s = (log_p.transpose(0, 1).to(dtype) / 2).exp_()
    return s.div_(torch.linalg.vector_norm(s, dim=-1, keepdim=True))


def obvious(log_p: torch.Tensor) -> Callable[[], None]:
    """The `mm → log → sum` of `OBVIOUS` samples, in float32."""
    s = roots(log_p[:, :OBVIOUS], torch.float32)
    total = torch.zeros(len(log_p), len(log_p), device=log_p.device)

    def work() -> None:
        for one in s:
            total.add_(torch.mm(one, one.T).clamp_min_(COEFFICIENT_FLOOR).log_())

    return work


def in_float64(log_p: torch.Tensor) -> torch.Tensor:
    """The distances of a few snapshots, without a floor, (n, n) float64."""
    L = torch.zeros(len(log_p), len(log_p), dtype=torch.float64, device=log_p.device)
    for start in range(0, log_p.shape[1], 500):
        s = roots(log_p[:, start : start + 500], torch.float64)
        L += torch.bmm(s, s.transpose(1, 2)).log_().sum(0)
    return L / -log_p.shape[1]


def kernel(log_p: torch.Tensor) -> tuple[float, float, float]:
    """Seconds to pack, seconds of the kernel, largest |error| / max(1, d) against float64."""
    device = log_p.device
    few = torch.linspace(0, len(log_p) - 1, CHECKED, dtype=torch.int64, device=device)
    expected = in_float64(log_p[few])
    packing = seconds(lambda: gpu.pack(log_p, device), rounds=1)
    operand = gpu.pack(log_p, device)
    L = torch.zeros(len(log_p), len(log_p), dtype=torch.float64, device=device)

    def work() -> None:
        gpu.accumulate([(L, operand, operand)])
        gpu.own_sums(operand)

    rounds = 2
    elapsed = seconds(work, rounds)
    L, own = L[few][:, few] / (rounds + 1), gpu.own_sums(operand)[few]
    d = (L - (own[:, None] + own[None, :]) / 2) * (-math.log(2) / log_p.shape[1])
    upper = torch.ones_like(d, dtype=torch.bool).triu(1)
    error = ((d - expected).abs() / expected.clamp_min(1))[upper].max()
    return packing, elapsed, float(error)


def table(sizes: list[int]) -> None:
    """Print what the kernel takes beside the obvious code, and the projection to `FULL`."""
    device = torch.device("cuda")
    full = FULL * (FULL + 1) / 2 * N_SAMPLES
    print(
        f"\n{N_SAMPLES:,} samples, {N_CLASSES} classes, float16\n\n"
        "| snapshots | pack, s | kernel, s | pair-samples/s | error | "
        f"{FULL:,} snapshots, s | obvious code, s | × |\n|" + "---|" * 8
    )
    for M in sizes:
        log_p = trajectories(M, N_SAMPLES, N_CLASSES, device)
        packing, elapsed, error = kernel(log_p)
        torch.cuda.empty_cache()
        usual = seconds(obvious(log_p)) * N_SAMPLES / OBVIOUS
        rate = M * (M + 1) / 2 * N_SAMPLES / elapsed
        print(
            f"| {M:,} | {packing:.2f} | {elapsed:.2f} | {rate:.3g} | {error:.1e} "
            f"| {full / rate:.1f} | {usual:.1f} | {usual / elapsed:.1f} |",
            flush=True,
        )
        del log_p
        torch.cuda.empty_cache()


def many_classes() -> None:
    """The same at 1,000 classes, where the products bind."""
    device, M, n_samples = torch.device("cuda"), 4096, 256
    log_p = trajectories(M, n_samples, 1000, device)
    packing, elapsed, error = kernel(log_p)
    usual = seconds(obvious(log_p)) * n_samples / OBVIOUS
    flops = M * (M + 1) * n_samples * 1000
    print(
        f"\n1,000 classes, {M:,} snapshots, {n_samples} samples: pack {packing:.2f} s, kernel "
        f"{elapsed:.2f} s ({flops / elapsed / 1e12:.0f} useful TFLOP/s), error {error:.1e}; "
        f"obvious code {usual:.2f} s (× {usual / elapsed:.1f})"
    )


def few_samples() -> None:
    """Where there are too few samples for the kernel: the portable code on this GPU."""
    device, M, n_samples = torch.device("cuda"), 2048, 1000
    log_p = trajectories(M, n_samples, N_CLASSES, device)
    elapsed = seconds(lambda: pairwise(log_p.cpu(), kernel="portable"), rounds=1)
    rate = M * (M + 1) / 2 * n_samples / elapsed
    print(f"portable code, {M:,} snapshots, {n_samples:,} samples: {rate:.3g} pair-samples/s")
