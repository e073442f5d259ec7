"""What every kernel does: pack runs of samples, add up pairs, turn sums into distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Float64 = npt.NDArray[np.float64]
Work = Sequence[tuple[Any, "Packed", "Packed"]]  # sums, and the operands of their rows and columns

COEFFICIENT_FLOOR = 2.0**-60  # of one sample's Σ √(p q); −log of it is 41.6 nats
AVERAGING = 256  # samples from which on float32 rounding averages out below 1e-7
ROW_SUM_TOLERANCE = 1e-3
HALF_TOLERANCE = 0.025  # of float16, above what stores accept: rounding alone may be 0.004

_AT_ONCE = 1 << 30  # bytes, half of which operands take
_SIDE = 1024  # rows and columns that are mirrored at once


class NotDistributionsError(ValueError):
    """Rows of log-probabilities do not sum to 1."""


@dataclass(frozen=True)
class Packed:
    """Square-root probabilities of some snapshots on a run of samples, as a kernel reads them.

    Attributes
    ----------
    run : the operand, whose layout is the kernel's own; None before any run.
    own : (n,) float64, Σₙ log of each snapshot's coefficient with itself, over all runs so far:
        what rounding leaves of its norm.
    log_sums : (n,) float64, Σₙ log of the sum of its probabilities, which was divided out.
    """

    run: Any
    own: Float64
    log_sums: Float64


class Kernel(Protocol):
    """Adds up Σₙ log BC of pairs of snapshots, given a run of samples at a time.

    Sums do not depend on how the samples are divided into runs, bit for bit, as long as each but
    the last is a multiple of `step`.
    """

    @property
    def rate(self) -> float:
        """Products of a pair, a sample and a class that it takes a second for, about."""

    @property
    def memory(self) -> int | None:
        """Bytes that it has for operands and sums on a GPU; None if it takes this machine's."""

    def step(self, n_classes: int) -> int:
        """Samples of which runs are multiples."""

    def packed_bytes(self, n_classes: int) -> int:
        """What one snapshot takes for one sample as an operand."""

    def pack(self, log_p: torch.Tensor, before: Packed) -> Packed:
        """Decode, normalise and lay out a run of samples.

        Parameters
        ----------
        log_p : (n, n_samples, n_classes) natural-log probabilities.
        before : what the run before was packed into, whose memory is used again; of the first run,
            what `unpacked` gives.

        Raises
        ------
        NotDistributionsError : some row's probabilities do not sum to 1.
        """

    def sums(self, n_p: int, n_q: int) -> Any:
        """Zeros for all pairs of so many snapshots, of which `torch.as_tensor` makes no copy."""

    def accumulate(self, work: Work) -> None:
        """Add a run to sums, in place; of operands that are one and the same, pairs once."""

    def distances(self, sums: Any, p: Packed, q: Packed, n_samples: int) -> Float64:
        """Distances of sums, (n_p, n_q) in nats; a symmetric matrix if `p` is `q`."""


def tolerance(values: torch.Tensor) -> float:
    """By how much the probabilities of a row may not sum to 1."""
    return HALF_TOLERANCE if values.dtype == torch.float16 else ROW_SUM_TOLERANCE


def moved(log_p: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Some samples of snapshots on a device, of which they are a copy unless they are there.

    What is in one piece is copied by the device itself, what is not is gathered first. So of rows
    of which half or more is wanted, all is copied.
    """
    n, row, width = len(log_p), log_p[0].numel(), log_p.stride(0)
    there = log_p.untyped_storage().nbytes() // log_p.itemsize - log_p.storage_offset()
    in_rows = log_p.stride()[1:] == (log_p.shape[2], 1) and row <= width <= min(2 * row, there // n)
    if log_p.device == device or not in_rows:
        return log_p.to(device)
    rows = log_p.as_strided((n, width), (width, 1)).to(device)
    return rows.as_strided(log_p.shape, log_p.stride())


def unpacked(n: int) -> Packed:
    """So many snapshots, of which nothing is packed yet."""
    return Packed(None, np.zeros(n), np.zeros(n))


def after(before: Packed, run: Any, own: Float64, log_sums: Float64) -> Packed:
    """What is packed, with the totals of the runs before."""
    return Packed(run, before.own + own, before.log_sums + log_sums)


def to_distances(L: Float64, p: Packed, q: Packed, n_samples: int) -> Float64:
    """Distances of sums of natural logarithms, in their place."""
    for row, own in zip(L, p.own, strict=True):
        row -= (own + q.own) / 2
        row /= -n_samples
        np.maximum(row, 0.0, out=row)
    if p is q:
        mirror(L)
    return L


def mirror(D: Float64) -> None:
    """Make a matrix of which the upper triangle is computed symmetric, with a zero diagonal."""
    for start in range(0, len(D), _SIDE):
        rows = slice(start, start + _SIDE)
        corner = np.triu(D[rows, rows], 1)
        D[rows, rows] = corner + corner.T
        D[start + _SIDE :, rows] = D[rows, start + _SIDE :].T


def pairwise(
    kernel: Kernel, log_p: torch.Tensor, log_q: torch.Tensor | None, run: int | None = None
) -> Float64:
    """Distances of log-probabilities that are in memory.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes).
    log_q : (n_q, n_samples, n_classes); None means `log_p`, whose pairs are computed once.
    run : samples that are packed at once; by default as many as take 512 MiB, or half of what the
        kernel has.

    Returns
    -------
    (n_p, n_q) float64, nats; symmetric with a zero diagonal without `log_q`.

    Raises
    ------
    NotDistributionsError : some row's probabilities do not sum to 1.
    """
    n_samples, n_classes = log_p.shape[1:]
    q = log_p if log_q is None else log_q
    if run is None:
        n_bytes = (len(log_p) + (log_q is not None) * len(q)) * kernel.packed_bytes(n_classes)
        step = kernel.step(n_classes)
        run = max(step, (kernel.memory or _AT_ONCE) // 2 // n_bytes // step * step)
    sums = kernel.sums(len(log_p), len(q))
    packed_p, packed_q = unpacked(len(log_p)), unpacked(len(q))
    for start in range(0, n_samples, run):
        samples = slice(start, start + run)
        packed_p = kernel.pack(log_p[:, samples], packed_p)
        packed_q = packed_p if log_q is None else kernel.pack(q[:, samples], packed_q)
        kernel.accumulate([(sums, packed_p, packed_q)])
    return kernel.distances(sums, packed_p, packed_q, n_samples)
