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
import typing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

MIN_SAMPLES = 8192  # from which on the operands' rounding averages out below 1e-7
CAPABILITY = (8, 0)  # from which on tensor cores multiply bfloat16

TILE = 128  # snapshots: 192 of 255 registers a thread are coefficients, products and exponents
_WARPS = 8
_SQUARE = 12  # tiles on a side that run at once share their operands in the L2 cache
_DTYPE = torch.bfloat16
_FLOOR = 2.0**-30  # in a class of its own, on both sides: each coefficient is at least 2⁻⁶⁰
_GROUP = 4  # samples a product: 2¹²⁴ (2⁻⁶⁰)⁴ is still a normal float32
_PACKED = 1 << 27  # log-probabilities whose float32 copies are held at once
_SHARE = 0.5  # of free memory, for the operands


@dataclass(frozen=True)
class Operand:
    """Square-root probabilities as the kernel reads them.

    Attributes
    ----------
    parts : (n_groups · 4 · n_chunks, 2, n, chunk) bfloat16: per sample and chunk of the classes, hi
        and lo of every snapshot. Behind the last class comes the floor, then zeros; behind the last
        sample come samples on which everybody agrees, whose coefficient is 1.
    n_chunks : of the classes.
    """

    parts: torch.Tensor
    n_chunks: int

    @property
    def n(self) -> int:
        """Snapshots."""
        return self.parts.shape[2]


def pairwise(
    log_p: torch.Tensor, log_q: torch.Tensor | None, device: torch.device
) -> npt.NDArray[np.float64]:
    """Distances of checked log-probabilities, each coefficient at least 2⁻⁶⁰.

    Within 1e-7·max(1, d) of the float64 reference from `MIN_SAMPLES` samples on.

    Parameters
    ----------
    log_p : (n_p, n_samples, n_classes) natural-log probabilities, on the CPU or the device.
    log_q : (n_q, n_samples, n_classes); None means `log_p`: only tiles on and above the diagonal
        are computed, and the diagonal is zero.
    device : of compute capability 8.0 or higher.

    Returns
    -------
    (n_p, n_q) float64, nats.
    """
    q = log_p if log_q is None else log_q
    n_samples = log_p.shape[1]
    L = torch.zeros(len(log_p), len(q), dtype=torch.float64, device=device)  # Σₙ log₂ BC
    own_p, own_q = (torch.zeros(n, dtype=torch.float64, device=device) for n in L.shape)
    for block in _blocks(log_p, q, device):
        p_operand = pack(log_p[:, block], device)
        q_operand = p_operand if log_q is None else pack(q[:, block], device)
        accumulate(L, p_operand, None if log_q is None else q_operand)
        accumulate_own(own_p, p_operand)
        accumulate_own(own_q, q_operand)
    # d = −(ln 2 / N) (L − (own + own′) / 2)
    L.sub_(own_p[:, None] / 2).sub_(own_q[None, :] / 2).mul_(-math.log(2) / n_samples)
    L.clamp_min_(0.0)
    if log_q is None:
        L.triu_(1)
        L += L.T.clone()
    return typing.cast("npt.NDArray[np.float64]", L.cpu().numpy())


def _blocks(log_p: torch.Tensor, log_q: torch.Tensor, device: torch.device) -> list[slice]:
    """Runs of samples whose operands fit into the device's memory."""
    n_samples, n_classes = log_p.shape[1:]
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 30
    chunk, n_chunks = _chunks(n_classes)
    row = 2 * chunk * n_chunks * _DTYPE.itemsize * (len(log_p) + len(log_q))
    step = max(1, int(free * _SHARE) // row // _GROUP) * _GROUP
    return [slice(start, start + step) for start in range(0, n_samples, step)]


def _chunks(n_classes: int) -> tuple[int, int]:
    """Classes at a time, and how often; one more class is the floor's."""
    chunk = 16 if n_classes < 16 else 32
    return chunk, n_classes // chunk + 1


def pack(log_p: torch.Tensor, device: torch.device) -> Operand:
    """The operand of (n, n_samples, n_classes) log-probabilities, normalised."""
    n, n_samples, n_classes = log_p.shape
    chunk, n_chunks = _chunks(n_classes)
    n_padded = -(-n_samples // _GROUP) * _GROUP
    parts = torch.zeros(n_padded, n_chunks, 2, n, chunk, dtype=_DTYPE, device=device)
    parts[n_samples:, 0, 0, :, 0] = 1.0
    parts[:, n_classes // chunk, 0, :, n_classes % chunk] = _FLOOR
    step = max(1, _PACKED // (n * n_classes))
    for start in range(0, n_samples, step):
        samples = slice(start, min(start + step, n_samples))
        s = log_p[:, samples].to(device).transpose(0, 1).float().div(2).exp_()
        s /= torch.linalg.vector_norm(s, dim=-1, keepdim=True)
        for i in range(n_chunks):
            of_chunk = s[..., i * chunk : (i + 1) * chunk]
            hi = of_chunk.to(_DTYPE)
            into = parts[samples, i, :, :, : of_chunk.shape[-1]]
            into[:, 0], into[:, 1] = hi, of_chunk - hi
    return Operand(parts.view(-1, 2, n, chunk), n_chunks)


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
    # A launch goes to the current device, whichever the tensors are on.
    with torch.cuda.device(out.get_device()):  # −1, the CPU of the interpreter, changes nothing
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
