"""The distance on a CPU by a small C kernel, where one could be compiled (`cpu.c` says how).

The C code keeps no state and runs in one thread; the threads are Python's, which hold no lock
meanwhile. A pair's distance is that of its two snapshots alone, to the bit and in either order:
neither the others with them nor threads nor memory matter.
"""

from __future__ import annotations

import ctypes
import functools
import math
import typing
from concurrent.futures import ThreadPoolExecutor
from importlib import util

import numpy as np
import torch

from analysis.bhattacharyya.kernel import (
    AVERAGING,
    Float64,
    NotDistributionsError,
    Packed,
    Work,
    to_distances,
    tolerance,
)

INSTRUCTIONS = {16: "AVX-512", 8: "AVX2", 4: "128-bit vectors"}  # by float32 lanes
PANEL = 16  # snapshots that are packed together: WIDTH of the C code
_TILE = 256  # rows and columns that a thread takes: those of fewer come from memory more often
_PANELS = 4  # that a thread packs at once
_BLOCK = 1280  # classes × samples that one logarithm is taken of: BLOCK of the C code
_GROUP = 4  # samples in a product
_MANY = 20  # classes from which on BLAS is faster than 128-bit vectors


def missing() -> str | None:
    """Why the kernel cannot be used, or None where it can."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None


def lanes() -> int:
    """Float32 lanes of the widest vectors that this processor has; a key of `INSTRUCTIONS`."""
    return int(_library().widest())


def best(n_samples: int, n_classes: int) -> bool:
    """Whether the kernel is here, exact to 1e-7 and faster than PyTorch's matrix products."""
    if missing() or n_samples < AVERAGING:
        return False
    return lanes() > 4 or n_classes < _MANY


class Cpu:
    """The `Kernel` of this processor.

    Parameters
    ----------
    pool : of `n_threads`.
    """

    memory = None

    def __init__(self, pool: ThreadPoolExecutor, n_threads: int) -> None:
        self._pool = pool
        self.rate = 4e10 * n_threads

    def step(self, n_classes: int) -> int:
        """The samples that the C code takes one logarithm of."""
        return max(_GROUP, _BLOCK // n_classes // _GROUP * _GROUP)

    def packed_bytes(self, n_classes: int) -> int:
        """Float32."""
        return 4 * n_classes

    def pack(self, log_p: torch.Tensor, before: Packed) -> Packed:
        """See `Kernel`; the numbers of one snapshot are best contiguous.

        The operand is (n_panels, n_samples, n_classes, 16) float32, an even number of panels. What
        the last ones lack in snapshots repeats the last one.
        """
        n, n_samples, n_classes = log_p.shape
        if log_p.dtype == torch.float16:
            values, roots = log_p, _roots().data_ptr()
        else:
            values, roots = self._root(log_p), None
        if values.stride()[1:] != (n_classes, 1):
            values = values.contiguous()
        n_panels = _padded(n) // PANEL
        panels = _memory(before, (n_panels, n_samples, n_classes, PANEL))
        totals = np.zeros((2, n_panels * PANEL))  # the last panel may lack snapshots
        totals[:, :n] = before.own, before.log_sums

        def task(first: int) -> int:
            return int(
                _function("pack")(
                    _address(values.data_ptr()),
                    _address(roots),
                    *_integers(values.stride(0), n, n_samples, n_classes),
                    *_integers(first, min(first + _PANELS, n_panels)),
                    ctypes.c_float(tolerance(log_p)),
                    _address(panels.data_ptr()),
                    _address(totals[0].ctypes.data),
                    _address(totals[1].ctypes.data),
                )
            )

        if any(list(self._pool.map(task, range(0, n_panels, _PANELS)))):
            raise NotDistributionsError
        return Packed(panels, totals[0, :n], totals[1, :n])

    def sums(self, n_p: int, n_q: int) -> Float64:
        """As many as there are in whole panels."""
        return np.zeros((_padded(n_p), _padded(n_q)))

    def accumulate(self, work: Work) -> None:
        """See `Kernel`; all of it is shared out among the threads at once."""
        tasks = [
            (L, p.run, q.run, top, left)
            for L, p, q in work
            for top in range(0, L.shape[0], _TILE)
            for left in range(top if p is q else 0, L.shape[1], _TILE)
        ]
        list(self._pool.map(_accumulate, *zip(*tasks, strict=True)))

    def distances(self, sums: Float64, p: Packed, q: Packed, n_samples: int) -> Float64:
        """See `Kernel`; takes the place of the sums."""
        return to_distances(sums[: len(p.own), : len(q.own)], p, q, n_samples)

    def _root(self, log_p: torch.Tensor) -> torch.Tensor:
        """Square-root probabilities in float32, contiguous."""
        s = torch.empty(log_p.shape)

        def task(snapshot: int) -> None:
            s[snapshot] = torch.exp(log_p[snapshot] / 2)

        list(self._pool.map(task, range(len(log_p))))
        return s


def _accumulate(L: Float64, p: torch.Tensor, q: torch.Tensor, top: int, left: int) -> None:
    """Add Σₙ log BC of a tile of pairs to `L`, which has a row or column for each snapshot."""
    _, n_samples, n_classes, _ = p.shape
    _function("accumulate")(
        _address(p.data_ptr()),
        _address(q.data_ptr()),
        *_integers(n_samples, n_classes),
        *_integers(top, min(top + _TILE, L.shape[0]), left, min(left + _TILE, L.shape[1])),
        ctypes.c_int(p is q),
        _address(L.ctypes.data),
        *_integers(L.strides[0] // L.itemsize),
    )


def _memory(before: Packed, shape: tuple[int, ...]) -> torch.Tensor:
    """That of panels before: the system takes longer to give new memory than C to fill it."""
    size = math.prod(shape)
    values = torch.empty(0) if before.run is None else before.run
    return values.view(-1)[:size].view(shape) if values.numel() >= size else torch.empty(shape)


def _padded(n: int) -> int:
    """Snapshots in a whole number of pairs of panels: the columns of the widest tile."""
    return -(-n // (2 * PANEL)) * 2 * PANEL


@functools.cache
def _roots() -> torch.Tensor:
    """The square-root probability of each float16 log-probability, by its 16 bits."""
    log_p = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and large numbers are seen later
        return torch.from_numpy(np.exp(log_p / 2).astype(np.float32))


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none."""
    found = util.find_spec("analysis.bhattacharyya._cpu")
    if found is None or found.origin is None:
        return "it was not compiled when `sweeper` was installed"
    try:
        return ctypes.CDLL(found.origin)
    except OSError as error:  # of another system, for instance
        return str(error)


def _library() -> ctypes.CDLL:
    loaded = _loaded()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def _function(name: str) -> typing.Any:
    function = getattr(_library(), f"{name}_{lanes()}")
    function.restype = ctypes.c_int64 if name == "pack" else None
    return function


def _address(value: int | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(value)


def _integers(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]
