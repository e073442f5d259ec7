"""The distance kernels on a CPU beside matrix products, the obvious code and the published one.

    python -m tests.benchmarks.distances [--rounds 3] [--quick]

Takes about eight minutes, and 4 GB. Nothing here passes or fails.

Rates are useful floating-point operations (two for each pair, sample and class, one triangle of the
matrix) per second of processor time of one thread, the best of some rounds in which everything
takes turns: others on the same machine disturb that least. A matrix product is the faster one of
PyTorch's and NumPy's, of 2,048 × 2,048 float32.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from analysis.bhattacharyya import COEFFICIENT_FLOOR, cpu, pairwise
from analysis.bhattacharyya.kernel import unpacked

Work = Callable[[], object]
Make = Callable[[int, int, int], torch.Tensor]
CHUNKS = (1, 2, 4, 8, 16, 32)


def predictions(n: int, n_samples: int, n_classes: int) -> torch.Tensor:
    """Like those of training, from ignorance to confidence: (n, n_samples, n_classes) float16."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(16, n_samples, n_classes, generator=draw)
    kinds[:, torch.arange(n_samples), torch.arange(n_samples) % n_classes] += 3
    found = torch.empty(n, n_samples, n_classes, dtype=torch.float16)
    for row in found:
        kind = kinds[torch.randint(16, (1,), generator=draw)[0]]
        logits = kind + 0.3 * torch.randn(kind.shape, generator=draw)
        row.copy_(torch.log_softmax(logits * 3 * torch.rand(1, generator=draw), -1))
    return found


def one_hot(n: int, n_samples: int, n_classes: int) -> torch.Tensor:
    """The likeliest classes of such predictions: coefficients are 1, or below the floor."""
    log_p = predictions(n, n_samples, n_classes)
    classes = log_p.argmax(-1, keepdim=True)
    return log_p.fill_(-math.inf).scatter_(-1, classes, 0)


def error(D: np.ndarray, log_p: torch.Tensor, n: int) -> float:
    """The largest |d − d₆₄| / max(1, d₆₄) of some pairs, with the floor that kernels have."""
    rows = np.linspace(0, len(D) - 1, n).astype(int)
    s = torch.softmax(log_p[rows].double(), -1).sqrt_()
    coefficients = torch.einsum("inc,jnc->ijn", s, s).clamp_min_(COEFFICIENT_FLOOR)
    expected = -coefficients.log_().mean(-1).numpy()
    return float((np.abs(D[np.ix_(rows, rows)] - expected) / np.maximum(1, expected)).max())


def best(rounds: int, **works: Work) -> dict[str, float]:
    """Least processor seconds of each work, which take turns."""
    least = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            least[name] = min(least[name], time.process_time() - start)
    return least


def product() -> tuple[Work, Work, float]:
    a = torch.randn(2048, 2048)
    out = torch.empty_like(a)
    x = a.numpy()
    return lambda: torch.mm(a, a, out=out), lambda: np.matmul(x, x, out=out.numpy()), 2 * 2048**3


@contextmanager
def lanes(n: int) -> Iterator[None]:
    with mock.patch.object(cpu, "lanes", return_value=n):
        yield


def widths() -> list[int]:
    return [n for n in sorted(cpu.INSTRUCTIONS, reverse=True) if n <= cpu.lanes()]


def operations(n: int, n_samples: int, n_classes: int) -> float:
    return n * (n + 1) * n_samples * n_classes


def kernels(log_p: torch.Tensor, pool: ThreadPoolExecutor) -> dict[str, Work]:
    """Packing, and every width of the kernel on what is packed."""
    kernel = cpu.Cpu(pool, 1)
    packed = kernel.pack(log_p, unpacked(len(log_p)))
    L = kernel.sums(len(log_p), len(log_p))

    def run(n: int) -> None:
        with lanes(n):
            kernel.accumulate([(L, packed, packed)])

    works: dict[str, Work] = {"pack": lambda: kernel.pack(log_p, packed)}
    return works | {str(n): (lambda n=n: run(n)) for n in widths()}


def show_kernel(rows: list[tuple[int, int, int, Make]], rounds: int) -> None:
    names = [f"{cpu.INSTRUCTIONS[n]}, GFLOP/s | % of product" for n in widths()]
    print("\n| classes | snapshots | samples | product, GFLOP/s |", " | ".join(names), end="")
    print(" | portable, with decoding | packing, % of both | largest error |")
    print("|" + "---|" * (7 + 2 * len(names)))
    torch_mm, numpy_mm, size = product()
    with ThreadPoolExecutor(1) as pool:
        for n, n_samples, n_classes, make in rows:
            log_p = make(n, n_samples, n_classes)
            works = kernels(log_p, pool) | {"torch": torch_mm, "numpy": numpy_mm}
            least = best(rounds, **works)
            useful = operations(n, n_samples, n_classes)
            peak = size / min(least["torch"], least["numpy"])
            kind = ", one-hot" if make is one_hot else ""
            cells = [f"{n_classes:,}{kind} | {n:,} | {n_samples:,} | {peak / 1e9:.0f}"]
            for lane in widths():
                rate = useful / least[str(lane)]
                cells.append(f"{rate / 1e9:.0f} | **{100 * rate / peak:.0f}**")
            slow = "" if n > 2_048 else f"{100 * torch_share(log_p) * useful / peak:.0f} %"
            total = least["pack"] + least[str(widths()[0])]
            cells += [slow, f"{100 * least['pack'] / total:.1f}"]
            few = log_p[:: max(1, n // 500)]
            worst = error(pairwise(few, kernel="cpu"), few, 20)
            print("|", " | ".join(cells), f"| {worst:.1e} |", flush=True)


def torch_share(log_p: torch.Tensor) -> float:
    """Calls of the portable kernel in a second of processor time."""
    return 1 / best(1, it=lambda: pairwise(log_p, device="cpu", kernel="portable"))["it"]


def obvious(s: torch.Tensor, chunk: int) -> None:
    """`mm → log → sum`."""
    L = torch.zeros(s.shape[1], s.shape[1])
    for part in s.split(chunk):
        L += torch.bmm(part, part.transpose(1, 2)).clamp_min_(COEFFICIENT_FLOOR).log_().sum(0)


def published(s: torch.Tensor, chunk: int) -> None:
    """The recipe of the published code: −log, ∞ replaced by 100, negative numbers by 0."""
    D = torch.zeros(s.shape[1], s.shape[1])
    for part in s.split(chunk):
        d = -torch.log(torch.bmm(part, part.transpose(1, 2)))
        d[torch.isinf(d)] = 100
        d[d < 0] = 0
        D += d.sum(0)


def show_others(n: int, n_samples: int, n_others: int, rounds: int) -> None:
    """Milliseconds for a sample of the whole matrix; ours alone include packing and decoding."""
    log_p = predictions(n, n_samples, 10)
    s = (log_p[:, :n_others].transpose(0, 1).float() / 2).exp_()
    works: dict[str, Work] = {
        "C kernel": lambda: pairwise(log_p, kernel="cpu"),
        "portable": lambda: pairwise(log_p[:, :256], device="cpu", kernel="portable"),
    }
    samples = {"C kernel": n_samples, "portable": 256}
    for name, code in (("mm → log → sum", obvious), ("published recipe", published)):
        samples[name] = n_others
        for chunk in CHUNKS:
            works[f"{name}, {chunk}"] = lambda code=code, chunk=chunk: code(s, chunk)
    least = best(rounds, **works)
    ours = least["C kernel"] / n_samples
    print(f"\n{n:,} snapshots, 10 classes, one thread, the best of chunks {CHUNKS}\n")
    print("| | chunk | ms a sample | billion pair-samples/s | × |\n|---|---|---|---|---|")
    for name, n_timed in samples.items():
        seconds, which = min((t, k) for k, t in least.items() if k.startswith(name))
        taken, chunk = seconds / n_timed, which.removeprefix(name).removeprefix(", ")
        cells = [name, chunk, f"{1e3 * taken:.2f}", f"{n * n / taken / 1e9:.2f}"]
        print("|", " | ".join(cells), f"| {taken / ours:.1f} |", flush=True)


def show_all(n: int, n_samples: int) -> None:
    """A whole matrix with every thread: where the seconds are."""
    some = predictions(n, 500, 10)
    log_p = some.repeat(1, n_samples // 500, 1)
    seconds = dict.fromkeys(("packing", "kernel"), 0.0)
    busy = dict(seconds)

    def timed(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            wall, cores = time.perf_counter(), time.process_time()
            done = work(*arguments)
            seconds[name] += time.perf_counter() - wall
            busy[name] += time.process_time() - cores
            return done

        return run

    wall, cores = time.perf_counter(), time.process_time()
    with (
        mock.patch.object(cpu.Cpu, "pack", timed("packing", cpu.Cpu.pack)),
        mock.patch.object(cpu.Cpu, "accumulate", timed("kernel", cpu.Cpu.accumulate)),
    ):
        D = pairwise(log_p, kernel="cpu")
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    print(
        f"\n{n:,} snapshots, {n_samples:,} samples, 10 classes, {torch.get_num_threads()} threads\n"
    )
    print("| | wall s | processor s | % |\n|---|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.1f} | {busy[name]:.1f} | {100 * busy[name] / cores:.1f} |")
    print(f"| all of it | {wall:.1f} | {cores:.1f} | 100 |")
    rate = n * (n + 1) / 2 * n_samples / wall / 1e9
    print(
        f"\n{rate:.1f} billion pair-samples/s by the clock; largest error {error(D, some, 20):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller, for a look at the tables")
    asked = parser.parse_args()
    if reason := cpu.missing():
        parser.exit(2, f"error: the C kernel: {reason}\n")
    threads = torch.get_num_threads()
    shapes = [(1_000, 1_024, 10), (2_000, 1_024, 10), (5_000, 512, 10), (10_000, 256, 10)]
    shapes += [(2_000, 1_024, 2), (2_000, 256, 100), (1_024, 256, 1_000), (2_048, 256, 1_000)]
    hard = (2_000, 1_024, 10)
    if asked.quick:
        shapes, hard = [(500, 256, 10), (500, 256, 1_000)], (500, 256, 10)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = [(*shape, predictions) for shape in shapes]
        show_kernel([*rows, (*hard, one_hot)], asked.rounds)
        n, n_samples, n_others = (500, 512, 32) if asked.quick else (2_000, 1_024, 64)
        show_others(n, n_samples, n_others, asked.rounds)
    torch.set_num_threads(threads)
    show_all(*((1_000, 1_000) if asked.quick else (5_000, 10_000)))
    print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
