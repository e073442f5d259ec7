"""The Hellinger distance and symmetrised KL, whose sums are matrix products.

    Hellinger           1 − (1/N) Σₙ Σ_c √(pₙ(c) qₙ(c)), between 0 and 1
    symmetrised KL      (1/N) Σₙ Σ_c (pₙ(c) − qₙ(c)) (log pₙ(c) − log qₙ(c)), in nats

Near each other, snapshots are at 1 and 8 times their Bhattacharyya distance. Logarithms are at
least `LOG_FLOOR`, so that a sample adds at most 83.2 nats / N to a symmetrised KL.

Each is ½ B(p, p) + ½ B(q, q) − B(p, q) of a symmetric B, √p·√q or p·log q + log p·q: three numbers
that nearly cancel where snapshots are near. So everything is float64: a distance is off by at most
1e-13·max(1, d), and from 1e-6 on it is right to the float32 in which it is stored. That takes twice
as long as float32 on a CPU, no longer on a GPU made for computing, and far longer on one made for
graphics.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from analysis.bhattacharyya import COEFFICIENT_FLOOR, Kernel, NotDistributionsError, Packed, devices
from analysis.bhattacharyya.kernel import Float64, Work, to_distances, tolerance
from analysis.bhattacharyya.portable import memory_on, threads

PROBABILITY_FLOOR = COEFFICIENT_FLOOR
LOG_FLOOR = math.log(PROBABILITY_FLOOR)  # −41.6 nats

_WIDTH = 4096  # samples × classes of one matrix product, about
_ALIGNED = 8  # float64 numbers in 64 bytes, at a multiple of which every operand begins
_PANEL, _PANEL_ON_GPU = 256, 2048  # rows of one matrix product
_DECODED, _DECODED_ON_GPU = 2**18, 2**24  # entries that are decoded at once


@dataclass(frozen=True)
class Factors:
    """What is multiplied of some snapshots on a run of samples.

    Attributes
    ----------
    blocks : for each `step` samples (n_factors, n, n_samples · n_classes) float64, in `memory`.
    """

    blocks: Sequence[torch.Tensor]
    memory: torch.Tensor


class Linear(abc.ABC):
    """A `Kernel` that multiplies a snapshot's factors by the other's in reverse order.

    Sums and `Packed.own` are added up `step` samples after another. How a matrix product is
    summed up may depend on its shape: the same pair among others differs in its last bits.

    Parameters
    ----------
    pool : of `n_threads`, see `analysis.bhattacharyya.portable.threads`.
    memory : bytes that operands and sums may take on a GPU.
    """

    n_factors: ClassVar[int]

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        n_threads: int,
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        self._pool, self._device, self.memory = pool, device, memory
        on_cpu = device.type == "cpu"
        self._panel = _PANEL if on_cpu else _PANEL_ON_GPU
        self._decoded = _DECODED if on_cpu else _DECODED_ON_GPU
        self.rate = (1e10 * n_threads if on_cpu else 1.5e13) / self.n_factors

    @abc.abstractmethod
    def factors(self, p: torch.Tensor, log_p: torch.Tensor) -> Sequence[torch.Tensor]:
        """Of normalised (n, n_samples, n_classes) float64 probabilities; as many as `n_factors`."""

    def step(self, n_classes: int) -> int:
        """The samples of one matrix product."""
        return max(1, _WIDTH // n_classes // _ALIGNED) * _ALIGNED

    def packed_bytes(self, n_classes: int) -> int:
        """Float64."""
        return 8 * self.n_factors * n_classes

    def pack(self, log_p: torch.Tensor, before: Packed) -> Packed:
        """See `Kernel`."""
        n, n_samples, n_classes = log_p.shape
        step, rows = self.step(n_classes), self.n_factors * n
        size = rows * n_samples * n_classes
        memory = torch.empty(0) if before.run is None else before.run.memory
        if memory.numel() < size:
            memory = torch.empty(size, dtype=torch.float64, device=self._device)
        parts = memory[:size].split(rows * step * n_classes)
        blocks = [part.view(self.n_factors, n, -1) for part in parts]
        at_once = max(1, self._decoded // (step * n_classes))
        places = [
            (slice(first, first + at_once), slice(start, start + step), block)
            for start, block in zip(range(0, n_samples, step), blocks, strict=True)
            for first in range(0, n, at_once)
        ]
        decoded = self._pool.map(
            lambda place: self._decode(log_p[place[0], place[1]], place[2][:, place[0]]), places
        )
        totals = np.stack([before.own, before.log_sums])
        for (snapshots, _, _), found in zip(places, list(decoded), strict=True):
            totals[:, snapshots] += found
        return Packed(Factors(blocks, memory), totals[0], totals[1])

    def _decode(self, log_p: torch.Tensor, into: torch.Tensor) -> Float64:
        """Fill in the factors; returns Σₙ B(p, p) and the log sums, (2, n)."""
        x = log_p.to(self._device).double()
        p = x.exp()
        sums = p.sum(-1, keepdim=True)
        if not (sums - 1).abs_().le(tolerance(log_p)).all():
            raise NotDistributionsError
        log_sums = sums.log()
        factors = self.factors(p.div_(sums), x - log_sums)
        own = torch.zeros(len(x), dtype=torch.float64, device=self._device)
        for place, a, b in zip(into, factors, reversed(factors), strict=True):
            place.copy_(a.flatten(1))
            own += (a * b).sum((1, 2))
        return torch.stack([own, log_sums.sum((1, 2))]).cpu().numpy()

    def sums(self, n_p: int, n_q: int) -> torch.Tensor:
        """On the device."""
        return torch.zeros(n_p, n_q, dtype=torch.float64, device=self._device)

    def accumulate(self, work: Work) -> None:
        """See `Kernel`."""
        tasks = [
            (L, p.run.blocks, q.run.blocks, slice(top, top + self._panel), top if p is q else 0)
            for L, p, q in work
            for top in range(0, len(L), self._panel)
        ]
        list(self._pool.map(_accumulate, *zip(*tasks, strict=True)))

    def distances(self, sums: torch.Tensor, p: Packed, q: Packed, n_samples: int) -> Float64:
        """See `Kernel`."""
        return to_distances(sums.cpu().numpy(), p, q, n_samples)


class Hellinger(Linear):
    """Of √p."""

    n_factors = 1

    def factors(self, p: torch.Tensor, log_p: torch.Tensor) -> Sequence[torch.Tensor]:
        """See `Linear`."""
        return (p.sqrt(),)


class SymmetrisedKL(Linear):
    """Of p and log p."""

    n_factors = 2

    def factors(self, p: torch.Tensor, log_p: torch.Tensor) -> Sequence[torch.Tensor]:
        """See `Linear`."""
        return p, log_p.clamp_min(LOG_FLOOR)


@contextlib.contextmanager
def kernels(kind: type[Linear], n_samples: int, n_classes: int) -> Iterator[list[Kernel]]:
    """One a GPU, or one."""
    where = devices()
    n_threads = torch.get_num_threads() if where[0].type == "cpu" else len(where)
    with threads(n_threads) as pool:
        yield [kind(pool, n_threads, device, memory_on(device)) for device in where]


def _accumulate(
    L: torch.Tensor,
    p: Sequence[torch.Tensor],
    q: Sequence[torch.Tensor],
    rows: slice,
    first: int,
) -> None:
    """Add the products of some rows with all columns from the first on, in place."""
    into = L[rows, first:]
    for left, right in zip(p, q, strict=True):
        for a, b in zip(left[:, rows], right[:, first:].unbind()[::-1], strict=True):
            into.addmm_(a, b.T)
