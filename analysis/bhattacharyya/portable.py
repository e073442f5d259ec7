"""The distance on anything torch runs on: tiles, products of four, one log for each.

The logarithm binds a kernel that takes one per pair and sample. Four coefficients are multiplied
first, and one logarithm is taken of the product (measured: 0.9 billion pair-samples per second and
thread, against 0.5 with a logarithm each).
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

COEFFICIENT_FLOOR = 2.0**-60  # of one sample's Σ √(p q); −log of it is 41.6 nats

_GROUP = 4  # samples per logarithm
_TILE = 192  # snapshots; four float32 tiles stay in a core's L2 cache
_BLOCK = 256  # samples whose operands are held at once
_OPERANDS = 2**25  # entries of those operands, at most
_AVERAGING = 256  # samples from which on float32 rounding averages out below 1e-7


def pairwise(
    log_p: torch.Tensor, log_q: torch.Tensor | None, device: torch.device
) -> npt.NDArray[np.float64]:
    """Distances of checked log-probabilities, each coefficient at least `COEFFICIENT_FLOOR`.

    Operands are float32 (float64 for few samples, where speed does not matter and rounding does
    not average out), sums are float64. What rounding leaves of each operand's norm is divided
    out in float64, so that near pairs keep their relative precision.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes) natural-log probabilities.
    log_q : (n_q, n_samples, n_classes); None means `log_p`: only tiles on and above the diagonal
        are computed, and the diagonal is zero.

    Returns
    -------
    (n_p, n_q) float64, nats.
    """
    q = log_p if log_q is None else log_q
    n_samples = log_p.shape[1]
    symmetric = log_q is None
    dtype = torch.float32 if n_samples >= _AVERAGING else torch.float64
    L = torch.zeros(len(log_p), len(q), dtype=torch.float64, device=device)  # Σₙ log BC
    tiles = list(_tiles(len(log_p), len(q), symmetric))
    with _a_tile_a_thread(device) as pool:
        for block in _blocks(log_p, q):
            s_p, norm_p = _operand(log_p[:, block], dtype, device)
            s_q, norm_q = (s_p, norm_p) if symmetric else _operand(q[:, block], dtype, device)
            list(pool.map(functools.partial(_accumulate, L, s_p, s_q), tiles))
            L -= norm_p[:, None] + norm_q[None, :]
    D = (L / -n_samples).clamp_min_(0.0)
    if symmetric:
        D = D.triu(1)
        D += D.T.clone()
    return typing.cast("npt.NDArray[np.float64]", D.cpu().numpy())


@contextlib.contextmanager
def _a_tile_a_thread(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that take tiles, each operation within one thread.

    A tile's operations take 50 µs. Shared among OpenMP threads, which spin while they wait for
    each other, they were measured 60 times slower on a machine that was busy otherwise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads if device.type == "cpu" else 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _blocks(log_p: torch.Tensor, log_q: torch.Tensor) -> Iterator[slice]:
    """Runs of samples, a multiple of `_GROUP` each but the last."""
    entries = (len(log_p) + len(log_q)) * log_p.shape[2]
    fitting = _OPERANDS // entries // _GROUP * _GROUP
    step = max(_GROUP, min(_BLOCK, fitting))
    for start in range(0, log_p.shape[1], step):
        yield slice(start, start + step)


def _tiles(n_p: int, n_q: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n_p, _TILE):
        for j in range(i if symmetric else 0, n_q, _TILE):
            yield slice(i, min(i + _TILE, n_p)), slice(j, min(j + _TILE, n_q))


def _operand(
    log_p: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square-root probabilities (samples, snapshots, classes), and Σₙ log of their norms."""
    by_sample = log_p.transpose(0, 1)
    # A copy, whatever the input's layout and type are: what follows is in place.
    x = torch.empty(by_sample.shape, dtype=torch.float64, device=device).copy_(by_sample)
    s = x.div_(2).exp_()
    s = s.div_(torch.linalg.vector_norm(s, dim=-1, keepdim=True)).to(dtype)
    return s, torch.linalg.vector_norm(s, dim=-1, dtype=torch.float64).log_().sum(0)


def _accumulate(
    L: torch.Tensor, s_p: torch.Tensor, s_q: torch.Tensor, tile: tuple[slice, slice]
) -> None:
    """Add Σₙ log BC of one tile and one block of samples to `L`, in place."""
    rows, columns = tile
    s_p, s_q = s_p[:, rows], s_q[:, columns]
    bc = s_p.new_empty(_GROUP, s_p.shape[1], s_q.shape[1])
    total = torch.zeros(bc.shape[1:], dtype=torch.float64, device=bc.device)
    for start in range(0, len(s_p), _GROUP):
        left, right = s_p[start : start + _GROUP], s_q[start : start + _GROUP]
        group = torch.bmm(left, right.transpose(1, 2), out=bc[: len(left)])
        total += _log_product(group.clamp_min_(COEFFICIENT_FLOOR))
    L[rows, columns] += total


def _log_product(bc: torch.Tensor) -> torch.Tensor:
    """The log of the product over the first axis, of at most four numbers ≥ 2⁻⁶⁰.

    In float32 three such numbers may underflow, two cannot; it is rare enough to be looked at
    afterwards.
    """
    product = bc.prod(0)
    if product.amin() >= torch.finfo(bc.dtype).tiny:
        return product.log_()
    return bc[:2].prod(0).log_() + bc[2:].prod(0).log_()
