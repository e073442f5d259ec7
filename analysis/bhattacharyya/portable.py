"""The distance on anything torch runs on: tiles, products of four, one log for each.

The logarithm binds a kernel that takes one per pair and sample. Four coefficients are multiplied
first, and one logarithm is taken of the product (measured: 0.9 billion pair-samples per second and
thread, against 0.5 with a logarithm each).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from analysis.bhattacharyya.kernel import (
    AVERAGING,
    COEFFICIENT_FLOOR,
    Float64,
    NotDistributionsError,
    Packed,
    Work,
    after,
    moved,
    to_distances,
    tolerance,
)

_GROUP = 4  # samples per logarithm
_TILE = 384  # snapshots
_TILE_ON_GPU = 2048  # 384 take eight times as long there
_CORNER = 96  # of a tile on the diagonal, half of which is computed in vain
_BLOCK = 256  # samples that a tile's sums are added up of before they go to memory
_AT_ONCE, _AT_ONCE_ON_GPU = 2**20, 2**26  # entries that are decoded at once


class Portable:
    """The `Kernel` of a device that has no other, and of few samples.

    Operands are float32 (float64 for few samples, where speed does not matter and rounding does
    not average out), sums are float64. What rounding leaves of each operand's norm is divided
    out in float64, so that near pairs keep their relative precision. How matrix products are
    summed up may depend on their shape: the same pair among others differs by 1e-7 at most.

    Parameters
    ----------
    pool : of `n_threads`, see `threads`.
    n_samples : of all runs.
    memory : bytes that operands and sums may take on a GPU.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        n_threads: int,
        device: torch.device,
        n_samples: int,
        memory: int | None = None,
    ) -> None:
        self._pool, self._device, self.memory = pool, device, memory
        self._dtype = torch.float32 if n_samples >= AVERAGING else torch.float64
        on_cpu = device.type == "cpu"
        self._tile = _TILE if on_cpu else _TILE_ON_GPU
        self._at_once = _AT_ONCE if on_cpu else _AT_ONCE_ON_GPU
        self.rate = 8e9 * n_threads if on_cpu else 3e11

    def step(self, n_classes: int) -> int:
        """Whole groups, some of them."""
        return _BLOCK

    def packed_bytes(self, n_classes: int) -> int:
        """Its entries, and two numbers while it is packed."""
        return self._dtype.itemsize * n_classes + 16

    def pack(self, log_p: torch.Tensor, before: Packed) -> Packed:
        """See `Kernel`."""
        n, n_samples, n_classes = log_p.shape
        s = torch.empty(n_samples, n, n_classes, dtype=self._dtype, device=self._device)
        own, log_sums = (torch.empty(n_samples, n, dtype=torch.float64) for _ in range(2))
        exact = torch.promote_types(log_p.dtype, self._dtype)
        step = max(1, self._at_once // (n * n_classes))

        def decode(start: int) -> bool:
            samples = slice(start, start + step)
            here = moved(log_p[:, samples], self._device).transpose(0, 1)
            # A copy, whatever the input's layout and type are: what follows is in place.
            x = here.to(exact, copy=True).div_(2).exp_()
            norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            s[samples] = x.div_(norms)
            left = torch.linalg.vector_norm(s[samples].double(), dim=-1)
            own[samples] = left.square_().log_().cpu()
            sums = norms[..., 0].double().square_().cpu()
            log_sums[samples] = sums.log()
            return bool((sums - 1).abs_().le(tolerance(log_p)).all())

        if not all(list(self._pool.map(decode, range(0, n_samples, step)))):
            raise NotDistributionsError
        return after(before, s, own.sum(0).numpy(), log_sums.sum(0).numpy())

    def sums(self, n_p: int, n_q: int) -> torch.Tensor:
        """On the device."""
        return torch.zeros(n_p, n_q, dtype=torch.float64, device=self._device)

    def accumulate(self, work: Work) -> None:
        """See `Kernel`."""
        tasks = [
            (L, p.run, q.run, tile)
            for L, p, q in work
            for tile in _tiles(len(p.own), len(q.own), p is q, self._tile)
        ]
        list(self._pool.map(_accumulate, *zip(*tasks, strict=True)))

    def distances(self, sums: torch.Tensor, p: Packed, q: Packed, n_samples: int) -> Float64:
        """See `Kernel`."""
        return to_distances(sums.cpu().numpy(), p, q, n_samples)


def memory_on(device: torch.device) -> int | None:
    """Bytes for operands and sums on a GPU, half of what is free; None for the CPU."""
    return None if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // 2


@contextlib.contextmanager
def threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that take tiles, each operation within one thread.

    A tile's operations take 50 µs. Shared among OpenMP threads, which spin while they wait for
    each other, they were measured 60 times slower on a machine that was busy otherwise.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _tiles(n_p: int, n_q: int, symmetric: bool, tile: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n_p, tile):
        for j in range(i if symmetric else 0, n_q, tile):
            if symmetric and i == j:
                yield from _corner(i, min(i + tile, n_p))
            else:
                yield slice(i, min(i + tile, n_p)), slice(j, min(j + tile, n_q))


def _corner(start: int, stop: int) -> Iterator[tuple[slice, slice]]:
    """A square on the diagonal, without most of what is below it."""
    if stop - start <= _CORNER:
        yield slice(start, stop), slice(start, stop)
        return
    middle = (start + stop) // 2
    yield slice(start, middle), slice(middle, stop)
    yield from _corner(start, middle)
    yield from _corner(middle, stop)


def _accumulate(
    L: torch.Tensor, s_p: torch.Tensor, s_q: torch.Tensor, tile: tuple[slice, slice]
) -> None:
    """Add Σₙ log BC of one tile to `L`, in place, a block of samples after another."""
    rows, columns = tile
    s_p, s_q = s_p[:, rows], s_q[:, columns]
    bc = s_p.new_empty(_GROUP, s_p.shape[1], s_q.shape[1])
    total = torch.empty(bc.shape[1:], dtype=torch.float64, device=bc.device)
    for block in range(0, len(s_p), _BLOCK):
        total.zero_()
        for start in range(block, min(block + _BLOCK, len(s_p)), _GROUP):
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
