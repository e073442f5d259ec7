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

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from analysis.bhattacharyya.kernel import (
    Float64,
    NotDistributionsError,
    Packed,
    Work,
    after,
    to_distances,
    tolerance,
)

MIN_SAMPLES = 8192  # from which on the operands' rounding averages out below 1e-7
CAPABILITY = (8, 0)  # from which on tensor cores multiply bfloat16

TILE = 128  # snapshots: 192 of 255 registers a thread are coefficients, products and exponents
_WARPS = 8
_SQUARE = 12  # tiles on a side that run at once share their operands in the L2 cache
_DTYPE = torch.bfloat16
_FLOOR = 2.0**-30  # in a class of its own, on both sides: each coefficient is at least 2⁻⁶⁰
_GROUP = 4  # samples a product: 2¹²⁴ (2⁻⁶⁰)⁴ is still a normal float32
_PACKED = 1 << 27  # log-probabilities whose float32 copies are held at once
_SHARE = 0.75  # of free memory, for operands and sums; packing takes some, too
_STEP = 1024  # samples of a launch
_STREAMS = 4  # launches of one tile that run at once
_launching = threading.Lock()  # Triton, which compiles at the first, takes one thread at a time


@dataclass(frozen=True)
class Operand:
    """Square-root probabilities as the kernel reads them.

    Attributes
    ----------
    parts : (n_groups · 4 · n_chunks, 2, n, chunk) bfloat16: per sample and chunk of the classes, hi
        and lo of every snapshot. Behind the last class comes the floor, then zeros; behind the last
        sample come samples on which everybody agrees, whose coefficient is 1.
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


class Gpu:
    """The `Kernel` of an NVIDIA GPU.

    A pair's distance does not depend on its place in the matrix, but for the last bit on which of
    two snapshots is the row: lo·hi′ is added before hi·lo′.

    Parameters
    ----------
    device : of compute capability 8.0 or higher.
    """

    rate = 2e13

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_gpu = device.type == "cuda"  # and not what Triton's interpreter runs on
        free = torch.cuda.mem_get_info(device)[0] if is_gpu else 1 << 30
        self.memory = int(free * _SHARE)
        streams = range(_STREAMS if is_gpu else 0)
        self._streams = [torch.cuda.Stream(device) for _ in streams]  # type: ignore[no-untyped-call]

    def step(self, n_classes: int) -> int:
        """The samples of one launch."""
        return _STEP

    def packed_bytes(self, n_classes: int) -> int:
        """Both parts of what is filled up to whole chunks."""
        chunk, n_chunks = _chunks(n_classes)
        return 2 * chunk * n_chunks * _DTYPE.itemsize

    def pack(self, log_p: torch.Tensor, before: Packed | None = None) -> Packed:
        """See `Kernel`."""
        operand = pack(log_p, self._device)
        own = torch.zeros(len(log_p), dtype=torch.float64, device=self._device)
        for part in _launches(operand):
            accumulate_own(own, part)
        return after(
            before, operand, own.cpu().numpy() * math.log(2), operand.log_sums.cpu().numpy()
        )

    def sums(self, n_p: int, n_q: int) -> torch.Tensor:
        """Of base-2 logarithms, on the device."""
        return torch.zeros(n_p, n_q, dtype=torch.float64, device=self._device)

    def accumulate(self, work: Work) -> None:
        """See `Kernel`; one tile is too little for a GPU, so several are under way at once."""
        for number, (L, p, q) in enumerate(work):
            with self._stream(number):
                for left, right in zip(_launches(p.run), _launches(q.run), strict=True):
                    accumulate(L, left, None if p is q else right)
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def distances(self, sums: torch.Tensor, p: Packed, q: Packed, n_samples: int) -> Float64:
        """See `Kernel`."""
        return to_distances(sums.mul_(math.log(2)).cpu().numpy(), p, q, n_samples)

    @contextlib.contextmanager
    def _stream(self, number: int) -> Iterator[None]:
        if not self._streams:
            yield
            return
        stream = self._streams[number % len(self._streams)]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            yield


def _launches(operand: Operand) -> Iterator[Operand]:
    """The operand, some samples at a time."""
    step = _STEP * operand.n_chunks
    for start in range(0, len(operand.parts), step):
        yield dataclasses.replace(operand, parts=operand.parts[start : start + step])


def _chunks(n_classes: int) -> tuple[int, int]:
    """Classes at a time, and how often; one more class is the floor's."""
    chunk = 16 if n_classes < 16 else 32
    return chunk, n_classes // chunk + 1


def pack(log_p: torch.Tensor, device: torch.device) -> Operand:
    """The operand of (n, n_samples, n_classes) log-probabilities, normalised.

    Raises
    ------
    NotDistributionsError : some row's probabilities do not sum to 1.
    """
    n, n_samples, n_classes = log_p.shape
    chunk, n_chunks = _chunks(n_classes)
    n_padded = -(-n_samples // _GROUP) * _GROUP
    parts = torch.zeros(n_padded, n_chunks, 2, n, chunk, dtype=_DTYPE, device=device)
    parts[n_samples:, 0, 0, :, 0] = 1.0
    parts[:, n_classes // chunk, 0, :, n_classes % chunk] = _FLOOR
    log_sums = torch.zeros(n, dtype=torch.float64, device=device)
    n_right = torch.zeros((), dtype=torch.int64, device=device)  # looked at once, at the end
    step = max(1, _PACKED // (n * n_classes))
    for start in range(0, n_samples, step):
        samples = slice(start, min(start + step, n_samples))
        s = log_p[:, samples].to(device).transpose(0, 1).float().div(2).exp_()
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


def accumulate(L: torch.Tensor, p: Operand, q: Operand | None = None) -> None:
    """Add Σₙ log₂ BC of every pair to `L`, (n_p, n_q) float64.

    Without `q` these are the pairs of `p`, and only tiles on and above the diagonal are added to.
    """
    columns = p if q is None else q
    tiles = _tiles(_ceil(p.n, TILE), _ceil(columns.n, TILE), q is None, L.device)
    _launch(L, p, columns, tiles, own=False)


def accumulate_own(own: torch.Tensor, p: Operand) -> None:
    """Add Σₙ log₂ BC of every snapshot with itself to `own`, (n,) float64."""
    n_tiles = _ceil(p.n, TILE)
    diagonal = torch.arange(n_tiles, dtype=torch.int32, device=own.device)
    _launch(own, p, p, torch.stack([diagonal, diagonal], 1), own=True)


def _launch(out: torch.Tensor, p: Operand, q: Operand, tiles: torch.Tensor, own: bool) -> None:
    chunk = p.parts.shape[-1]
    # A launch goes to the current device, whichever the tensors are on; −1, which stands for the
    # CPU of the interpreter, changes nothing.
    with _launching, torch.cuda.device(out.get_device()):
        _log_coefficients[(len(tiles),)](
            p.parts,
            q.parts,
            tiles.contiguous(),
            out,
            p.n,
            q.n,
            len(p.parts),
            CHUNK=chunk,
            N_CHUNKS=p.n_chunks,
            TILE=TILE,
            OWN=own,
            # 64 and 96 KiB of shared memory: every GPU with tensor cores for bfloat16 has it.
            STAGES=4 if chunk == 16 else 3,
            num_warps=_WARPS,
        )


@functools.lru_cache(maxsize=8)
def _tiles(n_rows: int, n_columns: int, upper: bool, device: torch.device) -> torch.Tensor:
    """Row and column of every tile, square after square, so that those at work share operands."""
    i, j = np.meshgrid(np.arange(n_rows), np.arange(n_columns), indexing="ij")
    order = np.lexsort((j.ravel(), i.ravel(), j.ravel() // _SQUARE, i.ravel() // _SQUARE))
    tiles = np.stack([i.ravel(), j.ravel()], 1)[order]
    if upper:
        tiles = tiles[tiles[:, 0] <= tiles[:, 1]]
    return torch.from_numpy(tiles.astype(np.int32)).to(device)


def _ceil(n: int, step: int) -> int:
    return -(-n // step)


@triton.jit  # type: ignore[untyped-decorator]
def _log_coefficients(  # type: ignore[no-untyped-def]
    P,
    Q,
    TILES,
    OUT,
    n_p,
    n_q,
    n_steps,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    OWN: tl.constexpr,
    STAGES: tl.constexpr,
):
    i = tl.load(TILES + 2 * tl.program_id(0))
    j = tl.load(TILES + 2 * tl.program_id(0) + 1)
    rows = i * TILE + tl.arange(0, TILE)
    columns = j * TILE + tl.arange(0, TILE)
    c = tl.arange(0, CHUNK)
    # Behind the last snapshot, the last one is read again.
    p_hi = P + tl.minimum(rows, n_p - 1)[:, None] * CHUNK + c[None, :]
    q_hi = Q + tl.minimum(columns, n_q - 1)[None, :] * CHUNK + c[:, None]
    p_lo = n_p * CHUNK
    q_lo = n_q * CHUNK
    coefficient = tl.zeros((TILE, TILE), tl.float32)
    product = tl.full((TILE, TILE), 2.0**124, tl.float32)
    exponents = tl.zeros((TILE, TILE), tl.int32)
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
            product *= part
        else:
            coefficient += part  # outside of the tensor cores, which would cut it off
            if step % N_CHUNKS == N_CHUNKS - 1:  # the last classes of a sample
                product *= coefficient
                coefficient = tl.zeros((TILE, TILE), tl.float32)
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
        here = OUT + rows
        inside = rows < n_p
        tl.store(here, tl.load(here, mask=inside) + diagonal, mask=inside)
    else:
        here = OUT + rows[:, None].to(tl.int64) * n_q + columns[None, :]
        inside = (rows < n_p)[:, None] & (columns < n_q)[None, :]
        tl.store(here, tl.load(here, mask=inside) + found, mask=inside)
