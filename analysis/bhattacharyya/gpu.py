"""The distance on an NVIDIA GPU, in Triton: of a sample, nothing leaves the chip.

A program holds one tile of pairs in registers and goes through the samples. For each, the tensor
cores multiply the operands, and the coefficients BC are multiplied into a running product. After
four samples its exponent is split off and added up, as an integer; one logarithm is taken at the
end. Writing every sample's coefficients to memory and reading them back for a logarithm, as the
obvious code does, takes more than ten times as long.

Operands are two bfloat16 numbers, s = hi + lo, which have float32's range and 16 bits between
them; (hi + lo)(hi′ + lo′) is multiplied out in full. lo·lo′ must not be left out: it is 1e-6 of BC
where two snapshots agree, and always of one sign. Tensor cores cut off what they cannot hold
instead of rounding it, so that every coefficient comes out too small by 4e-8 on average. This is
divided out together with the rounding of the operands: a snapshot's coefficient with itself is 1,
and is computed too.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from analysis.bhattacharyya.kernel import (
    COEFFICIENT_FLOOR,
    Float64,
    NotDistributionsError,
    Packed,
    Work,
    after,
    moved,
    tolerance,
)

Tiles = npt.NDArray[np.int32]  # (n, 2): rows and columns of tiles

MIN_SAMPLES = 8192  # from which on the operands' rounding averages out below 1e-7
CAPABILITY = (8, 0)  # from which on tensor cores multiply bfloat16

ROWS, COLUMNS = 128, 128  # snapshots of a tile; a number of rows that divides that of columns
_WARPS = 8  # 192 of 255 registers a thread are coefficients, products and exponents
_SQUARE = 1536  # snapshots on a side whose tiles run at once: operands stay in the L2 cache
_DTYPE = torch.bfloat16
_GROUP = 4  # samples a product: 2¹²⁴ (2⁻⁶⁰)⁴ is still a normal float32
_PACKED = 1 << 27  # log-probabilities whose float32 copies are held at once
_SHARE = 0.85  # of free memory, for operands and sums; packing takes some, too
_STEP = 1024  # samples × chunks of classes of a launch
_SLICE = 128  # of which a program adds up what snapshots have with themselves
_launching = threading.Lock()  # Triton, which compiles at the first, takes one thread at a time


@dataclass(frozen=True)
class Operand:
    """Square-root probabilities as the kernel reads them.

    Attributes
    ----------
    parts : (n_groups · 4 · n_chunks, 2, n, chunk) bfloat16: per sample and chunk of the classes, hi
        and lo of every snapshot. Behind the last class come zeros; behind the last sample come
        samples on which everybody agrees, whose coefficient is 1.
    n_chunks : of the classes.
    log_sums : (n,) float64, Σₙ log of the sums of the probabilities, which were divided out.
    """

    parts: torch.Tensor
    n_chunks: int
    log_sums: torch.Tensor

    @property
    def n(self) -> int:
        """Snapshots."""
        return self.parts.shape[2]


Pair = tuple[torch.Tensor, Operand, Operand]  # sums, and the operands of rows and columns


class Gpu:
    """The `Kernel` of an NVIDIA GPU.

    A pair's distance does not depend on its place in the matrix, but for the last bit on which of
    two snapshots is the row: lo·hi′ is added before hi·lo′.

    Parameters
    ----------
    device : of compute capability 8.0 or higher.
    """

    rate = 3e13

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_gpu = device.type == "cuda"  # and not what Triton's interpreter runs on
        free = torch.cuda.mem_get_info(device)[0] if is_gpu else 1 << 30
        self.memory = int(free * _SHARE)

    def step(self, n_classes: int) -> int:
        """The samples of one launch."""
        return _samples(_STEP, _chunks(n_classes)[1])

    def packed_bytes(self, n_classes: int) -> int:
        """Both parts of what is filled up to whole chunks."""
        chunk, n_chunks = _chunks(n_classes)
        return 2 * chunk * n_chunks * _DTYPE.itemsize

    def pack(self, log_p: torch.Tensor, before: Packed) -> Packed:
        """See `Kernel`."""
        operand = pack(log_p, self._device)
        own = own_sums(operand).cpu().numpy() * math.log(2)
        return after(before, operand, own, operand.log_sums.cpu().numpy())

    def sums(self, n_p: int, n_q: int) -> torch.Tensor:
        """Of base-2 logarithms, on the device."""
        return torch.zeros(n_p, n_q, dtype=torch.float64, device=self._device)

    def accumulate(self, work: Work) -> None:
        """See `Kernel`; one tile is too little for a GPU, so all are launched at once."""
        accumulate([(L, p.run, q.run) for L, p, q in work])

    def distances(self, sums: torch.Tensor, p: Packed, q: Packed, n_samples: int) -> Float64:
        """See `Kernel`; takes the place of the sums."""
        own_p, own_q = (torch.from_numpy(x.own).to(self._device) for x in (p, q))
        D = sums.mul_(-math.log(2)).add_(own_p[:, None] / 2).add_(own_q / 2).div_(n_samples)
        D.clamp_min_(0)
        if p is q:
            D = D.triu_(1).add(D.T)
        if self._device.type != "cuda":
            return D.numpy()
        # From memory that the system cannot move, it is copied ten times as fast.
        return torch.empty(D.shape, dtype=D.dtype, pin_memory=True).copy_(D).numpy()


def _chunks(n_classes: int) -> tuple[int, int]:
    """Classes at a time, and how often."""
    chunk = 16 if n_classes <= 16 else 32
    return chunk, _ceil(n_classes, chunk)


def _samples(n_steps: int, n_chunks: int) -> int:
    """Whole groups of samples that amount to so many chunks of classes."""
    return max(_GROUP, n_steps // n_chunks // _GROUP * _GROUP)


def pack(log_p: torch.Tensor, device: torch.device) -> Operand:
    """The operand of (n, n_samples, n_classes) log-probabilities, normalised.

    Raises
    ------
    NotDistributionsError : some row's probabilities do not sum to 1.
    """
    n, n_samples, n_classes = log_p.shape
    chunk, n_chunks = _chunks(n_classes)
    n_padded = _ceil(n_samples, _GROUP) * _GROUP
    parts = torch.zeros(n_padded, n_chunks, 2, n, chunk, dtype=_DTYPE, device=device)
    parts[n_samples:, 0, 0, :, 0] = 1.0
    log_sums = torch.zeros(n, dtype=torch.float64, device=device)
    n_right = torch.zeros((), dtype=torch.int64, device=device)  # looked at once, at the end
    step = max(1, _PACKED // (n * n_classes))
    for start in range(0, n_samples, step):
        samples = slice(start, min(start + step, n_samples))
        s = moved(log_p[:, samples], device).transpose(0, 1).float().div(2).exp_()
        norms = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
        s /= norms
        sums = norms[..., 0].double().square_()
        log_sums += sums.log().sum(0)
        n_right += ((sums - 1).abs_() <= tolerance(log_p)).sum()
        for i in range(n_chunks):
            of_chunk = s[..., i * chunk : (i + 1) * chunk]
            hi = of_chunk.to(_DTYPE)
            into = parts[samples, i, :, :, : of_chunk.shape[-1]]
            into[:, 0], into[:, 1] = hi, of_chunk - hi
    if int(n_right) < n * n_samples:
        raise NotDistributionsError
    return Operand(parts.view(-1, 2, n, chunk), n_chunks, log_sums)


def accumulate(work: Sequence[Pair]) -> None:
    """Add Σₙ log₂ BC of every pair to `L`, (n_p, n_q) float64, for each `L`, `p` and `q`.

    Where `p` is `q`, only tiles on and above the diagonal are added to. All operands are of the
    same samples and classes.
    """
    first = work[0][1]
    step = _samples(_STEP, first.n_chunks) * first.n_chunks
    table = _table(work, [_tiles(p.n, q.n, p is q) for _, p, q in work])
    for start in range(0, len(first.parts), step):
        _launch(first, *table, start, min(step, len(first.parts) - start), own=False)


def own_sums(p: Operand) -> torch.Tensor:
    """Σₙ log₂ BC of every snapshot with itself, (n,) float64.

    One program for a tile would let most of the GPU idle, so that samples are divided as well.
    """
    step = _samples(_SLICE, p.n_chunks) * p.n_chunks
    n_slices = _ceil(len(p.parts), step)
    out = torch.zeros(n_slices, p.n, dtype=torch.float64, device=p.parts.device)
    i = np.arange(_ceil(p.n, ROWS), dtype=np.int32)
    table = _table([(out, p, p)], [np.stack([i, i * ROWS // COLUMNS], 1)])
    _launch(p, *table, 0, step, own=True, n_slices=n_slices)
    return out.sum(0)


def _table(work: Sequence[Pair], tiles: Sequence[Tiles]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel reads of work, and of which work and which tile of it each program is.

    Operands are told by their distance in memory from the first, whose address the kernel knows.
    """
    device, base = work[0][0].device, work[0][1].parts

    def place(operand: Operand) -> int:
        return (operand.parts.data_ptr() - base.data_ptr()) // base.itemsize

    rows = [(place(p), place(q), L.data_ptr(), p.n, q.n) for L, p, q in work]
    of = np.repeat(np.arange(len(work), dtype=np.int32), [len(some) for some in tiles])
    programs = np.column_stack([of, np.concatenate(tiles)])
    return torch.tensor(rows, device=device), torch.from_numpy(programs).to(device)


def _launch(
    like: Operand,
    work: torch.Tensor,
    programs: torch.Tensor,
    start: int,
    n_steps: int,
    own: bool,
    n_slices: int = 1,
) -> None:
    """Run all programs on some chunks of samples, or, in slices one after another, on all."""
    chunk = like.parts.shape[-1]
    # A launch goes to the current device, whichever the tensors are on; −1, which stands for the
    # CPU of the interpreter, changes nothing.
    with _launching, torch.cuda.device(work.get_device()):
        _log_coefficients[(len(programs), n_slices)](
            like.parts,
            work,
            programs,
            start,
            n_steps,
            len(like.parts),
            **_constants(chunk, like.n_chunks, own),
            num_warps=_WARPS,
        )


def _constants(chunk: int, n_chunks: int, own: bool) -> dict[str, int | float]:
    """What is known when the kernel is compiled."""
    return {
        "CHUNK": chunk,
        "N_CHUNKS": n_chunks,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
        "FLOOR": COEFFICIENT_FLOOR,
        "OWN": own,
        # 64 and 96 KiB of shared memory: every GPU with tensor cores for bfloat16 has it.
        "STAGES": 4 if chunk == 16 else 3,
    }


@functools.lru_cache(maxsize=64)
def _tiles(n_p: int, n_q: int, upper: bool) -> Tiles:
    """Row and column of every tile, square after square, so that those at work share operands."""
    corners = np.meshgrid(np.arange(0, n_p, ROWS), np.arange(0, n_q, COLUMNS), indexing="ij")
    top, left = (corner.ravel() for corner in corners)
    order = np.lexsort((left, top, left // _SQUARE, top // _SQUARE))
    if upper:
        order = order[(left + COLUMNS > top)[order]]
    return np.stack([top // ROWS, left // COLUMNS], 1)[order].astype(np.int32)


def _ceil(n: int, step: int) -> int:
    return -(-n // step)


@triton.jit(do_not_specialize=["start", "n_steps", "n_all"])  # type: ignore[untyped-decorator]
def _log_coefficients(  # type: ignore[no-untyped-def]
    BASE,
    WORK,
    PROGRAMS,
    start,
    n_steps,
    n_all,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FLOOR: tl.constexpr,
    OWN: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = PROGRAMS + 3 * tl.program_id(0)
    work = WORK + 5 * tl.load(program)
    rows = tl.load(program + 1) * ROWS + tl.arange(0, ROWS)
    columns = tl.load(program + 2) * COLUMNS + tl.arange(0, COLUMNS)
    P = BASE + tl.multiple_of(tl.load(work), 16)
    Q = BASE + tl.multiple_of(tl.load(work + 1), 16)
    OUT = tl.load(work + 2).to(tl.pointer_type(tl.float64))
    n_p = tl.load(work + 3).to(tl.int32)
    n_q = tl.load(work + 4).to(tl.int32)
    start += tl.program_id(1) * n_steps
    n_steps = tl.minimum(n_steps, n_all - start)
    c = tl.arange(0, CHUNK)
    p_lo = n_p * CHUNK
    q_lo = n_q * CHUNK
    # Behind the last snapshot, the last one is read again.
    p_hi = P + start.to(tl.int64) * 2 * p_lo
    p_hi = p_hi + tl.minimum(rows, n_p - 1)[:, None] * CHUNK + c[None, :]
    q_hi = Q + start.to(tl.int64) * 2 * q_lo
    q_hi = q_hi + tl.minimum(columns, n_q - 1)[None, :] * CHUNK + c[:, None]
    coefficient = tl.zeros((ROWS, COLUMNS), tl.float32)
    product = tl.full((ROWS, COLUMNS), 2.0**124, tl.float32)
    exponents = tl.zeros((ROWS, COLUMNS), tl.int32)
    for step in tl.range(0, n_steps, num_stages=STAGES):
        a_hi = tl.load(p_hi)
        b_hi = tl.load(q_hi)
        a_lo = tl.load(p_hi + p_lo)
        b_lo = tl.load(q_hi + q_lo)
        # The small products first: what is cut off a sum is in proportion to it.
        part = tl.dot(a_lo, b_lo, input_precision="ieee")
        part = tl.dot(a_lo, b_hi, part, input_precision="ieee")
        part = tl.dot(a_hi, b_lo, part, input_precision="ieee")
        part = tl.dot(a_hi, b_hi, part, input_precision="ieee")
        p_hi += 2 * p_lo
        q_hi += 2 * q_lo
        if N_CHUNKS == 1:
            product *= tl.maximum(part, FLOOR)
        else:
            coefficient += part  # outside of the tensor cores, which would cut it off
            if step % N_CHUNKS == N_CHUNKS - 1:  # the last classes of a sample
                product *= tl.maximum(coefficient, FLOOR)
                coefficient = tl.zeros((ROWS, COLUMNS), tl.float32)
        if step % (4 * N_CHUNKS) == 4 * N_CHUNKS - 1:  # four samples: back to [2¹²⁴, 2¹²⁵)
            bits = product.to(tl.int32, bitcast=True)
            exponents += bits >> 23
            product = ((bits & 0x7FFFFF) | (251 << 23)).to(tl.float32, bitcast=True)
    mantissa = product * (2.0**-124)
    # Every product began at 2¹²⁴, which is an exponent of 251 as float32 stores it.
    n_groups = n_steps // (4 * N_CHUNKS)
    found = (exponents - 251 * n_groups).to(tl.float64) + tl.log2(mantissa).to(tl.float64)
    if OWN:
        diagonal = tl.sum(tl.where(rows[:, None] == columns[None, :], found, 0.0), axis=1)
        tl.store(OUT + tl.program_id(1) * n_p + rows, diagonal, mask=rows < n_p)
    else:
        # Half of the columns at a time: on their way to where they are stored, float64 numbers of
        # all would take more shared memory than smaller GPUs have.
        even, odd = tl.split(tl.reshape(found, (ROWS, COLUMNS // 2, 2)))
        columns = tl.load(program + 2) * COLUMNS + 2 * tl.arange(0, COLUMNS // 2)
        _add(OUT, rows, columns, n_p, n_q, even)
        _add(OUT, rows, columns + 1, n_p, n_q, odd)


@triton.jit
def _add(OUT, rows, columns, n_p, n_q, found):  # type: ignore[no-untyped-def]
    here = OUT + rows[:, None].to(tl.int64) * n_q + columns[None, :]
    inside = (rows < n_p)[:, None] & (columns < n_q)[None, :]
    tl.store(here, tl.load(here, mask=inside) + found, mask=inside)
