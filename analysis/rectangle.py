"""Distances of stored snapshots to a few that are in memory, as a map's landmarks are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from analysis.ahead import Rows, held, no_distribution
from analysis.bhattacharyya import Kernel, NotDistributionsError, Packed, local_kernels
from analysis.bhattacharyya.kernel import Float64, unpacked
from analysis.memory import size_text
from analysis.squares import padded
from analysis.upper import Progress
from sweeper.errors import AnalysisError


@dataclasses.dataclass(frozen=True)
class Few:
    """Snapshots in memory.

    Attributes
    ----------
    log_probs : (n_few, n_samples, n_classes) float16 natural-log probabilities.
    table : what they are called in errors: one row each, with the columns `trial_id` and
        `snapshot`.
    """

    log_probs: npt.NDArray[np.float16]
    table: pd.DataFrame


def distances_to_few(
    rows: Rows,
    few: Few,
    memory: int,
    progress: Progress = lambda done, total: None,
) -> Iterator[Float64]:
    """Distances of the rows, in their order, (n, n_few) float64 in nats, of some after another.

    Each prediction is decoded once, and the few are packed once for as many trials as memory
    allows; how much there is changes no bit with the C kernel, and 1e-7 at most with others. Of
    several GPUs one is used, because little is computed for what is read.

    Parameters
    ----------
    rows : the snapshots of a trial are next to each other.
    memory : bytes that this may take.
    progress : called with the snapshots that are done, those that are read in proportion, and with
        their number.

    Raises
    ------
    HoleError, StoreError : a snapshot is absent or damaged, or holds no distributions.
    AnalysisError : not even a trial fits into memory.
    """
    log_q = torch.from_numpy(few.log_probs)
    n_few, n_samples, n_classes = few.log_probs.shape
    with local_kernels(n_samples, n_classes) as kernels:
        kernel = kernels[0]
        run, tables = _parts(rows, few, kernel, memory)
        n_done = 0
        progress(n_done, len(rows.table))
        for table in tables:
            sums = kernel.sums(len(table), n_few)
            p, q = unpacked(len(table)), unpacked(n_few)
            part = dataclasses.replace(rows, table=table)
            runs = part.runs((n_samples, n_classes), run, kernel.step(n_classes))
            with contextlib.closing(runs):
                for samples, log_p in runs:
                    p = _packed(kernel, log_p, p, samples, table)
                    q = _packed(kernel, log_q[:, samples], q, samples, few.table)
                    kernel.accumulate([(sums, p, q)])
                    share = samples.stop / n_samples
                    progress(n_done + share * len(table), len(rows.table))
            n_done += len(table)
            yield kernel.distances(sums, p, q, n_samples)


def _packed(
    kernel: Kernel,
    log_p: torch.Tensor,
    before: Packed,
    samples: slice,
    table: pd.DataFrame,
) -> Packed:
    try:
        return kernel.pack(log_p, before)
    except NotDistributionsError as error:
        raise no_distribution(log_p, samples, table) from error


def _parts(rows: Rows, few: Few, kernel: Kernel, memory: int) -> tuple[int, Iterator[pd.DataFrame]]:
    """How many samples are read at once, and the rows of as many trials as then fit."""
    n_few, n_samples, n_classes = few.log_probs.shape
    step, packed = kernel.step(n_classes), kernel.packed_bytes(n_classes)
    sizes = rows.table.groupby("trial_id", sort=False).size()

    def lacking(n: int, run: int) -> int:
        """Bytes that so many rows need more than there are."""
        run, read = held(n, (n_samples, n_classes), run, step)
        kept: int = (padded(n) + padded(n_few)) * run * packed + 8 * padded(n) * padded(n_few)
        if kernel.memory is None:
            return read + kept - memory
        return max(read - memory, kept - kernel.memory)

    def tables(run: int) -> Iterator[pd.DataFrame]:
        start = n = 0
        for size in sizes:
            if n and lacking(n + size, run) > 0:
                yield rows.table.iloc[start : start + n]
                start, n = start + n, 0
            n += size
        yield rows.table.iloc[start:]

    chunk, most = max(rows.chunks((n_samples, n_classes)).values()), int(sizes.max())
    for run in (chunk, *range((chunk - 1) // step * step, 0, -step)):
        if lacking(most, run) <= 0:
            return run, tables(run)
    raise AnalysisError(
        f"trial {sizes.idxmax()}",
        f"{size_text(lacking(most, min(step, chunk)))} too little memory",
        f"what its {most} snapshots and their distances to {n_few} take",
        "free as much, or use a machine that has it",
    )
