"""Distances between the snapshots of a selection, a square of tiles at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from analysis.ahead import Rows
from analysis.bhattacharyya import (
    Kernel,
    NotDistributionsError,
    Packed,
    local_kernels,
    worst_row,
)
from analysis.squares import Cost, Group, Layout, Part, Piece, Plan, Square, plan
from analysis.tiles import Tile
from sweeper.errors import StoreError
from sweeper.store import open_store
from sweeper.store.schema import sealed_layout

_SQUARES = 4  # for each of several machines, which are not done at the same time

Float64 = npt.NDArray[np.float64]
Kernels = Callable[[int, int], contextlib.AbstractContextManager[Sequence[Kernel]]]


@dataclass(frozen=True)
class DistanceBlocks:
    """Reads predictions from stores and reduces them; picklable, so that workers can call it.

    Attributes
    ----------
    homes : the folder or URL of the store that has a trial, by trial id.
    rows : the snapshots, as `analysis.select.Selection.rows`.
    split : the samples whose predictions are compared.
    memory : bytes that this may take, on each machine.
    n_machines : that share the work.
    kernels : gives the kernels to use, by numbers of samples and classes: one a GPU, or one.
    """

    homes: Mapping[str, str]
    rows: pd.DataFrame
    split: str
    memory: int
    n_machines: int = 1
    kernels: Kernels = local_kernels

    def plan(self, missing: Sequence[Tile], layout: Layout) -> Plan:
        """Squares of all that is missing.

        Raises
        ------
        AnalysisError : not even a tile fits into memory.
        """
        n_samples, n_classes = self._shape()
        with self.kernels(n_samples, n_classes) as kernels:
            first, memories = kernels[0], [kernel.memory for kernel in kernels]
            cost = Cost(
                memory=self.memory,
                on_device=min((m for m in memories if m is not None), default=None),
                n_devices=len(kernels),
                packed=first.packed_bytes(n_classes),
                pair=8,
                rate=first.rate * len(kernels),
                n_samples=n_samples,
                n_classes=n_classes,
                step=min(first.step(n_classes), n_samples),
                run=max(self._chunks().values()),
            )
        at_least = 1 if self.n_machines == 1 else _SQUARES * self.n_machines
        found = plan(missing, layout, cost, at_least)
        often = self._decodes(found, layout)
        note = f"each snapshot is decoded {'once' if often == 1 else f'{often:.3g} times'}"
        return dataclasses.replace(found, note=note)

    def _decodes(self, found: Plan, layout: Layout) -> float:
        """How often a snapshot's predictions are decoded, on average over all snapshots."""
        n_samples, _ = self._shape()
        chunks, ids = self._chunks(), self.rows["trial_id"].to_numpy()
        starts = range(0, n_samples, found.run)
        in_square = {
            trial_id: sum(
                -(-min(start + found.run, n_samples) // chunk) - start // chunk for start in starts
            )
            / -(-n_samples // chunk)
            for trial_id, chunk in chunks.items()
        }
        each = pd.Series(ids).map(in_square).to_numpy()
        total = sum(
            float(each[group.rows].sum())
            for square in found.squares
            for group in layout.groups_of(square)
        )
        return total / len(ids)

    def compute(self, square: Square, layout: Layout, run: int) -> Iterator[float | Part]:
        """The missing pairs of a square's tiles: shares of the work as they are done, then tiles.

        Raises
        ------
        HoleError, StoreError : a snapshot is absent or damaged, or holds no distributions.
        """
        n_samples, n_classes = shape = self._shape()
        groups = layout.groups_of(square)
        bounds = itertools.pairwise(itertools.accumulate(map(len, groups), initial=0))
        places = {group: slice(*ends) for group, ends in zip(groups, bounds, strict=True)}
        table = self.rows.iloc[np.concatenate([group.rows for group in groups])]
        first_trial = str(self.rows["trial_id"].iloc[0])
        labels = open_store(self.homes[first_trial]).labels(self.split, first_trial)
        with contextlib.ExitStack() as stack:
            kernels = stack.enter_context(self.kernels(*shape))
            shares = [
                _Share(
                    kernel, places, n_classes, [(t, pair) for t in part for pair in layout.pairs(t)]
                )
                for kernel, part in zip(kernels, _dealt(square, len(kernels)), strict=True)
            ]
            pool = stack.enter_context(ThreadPoolExecutor(len(shares)))
            rows = Rows(self.homes, table, self.split)
            runs = rows.runs(shape, run, kernels[0].step(n_classes))
            for samples, log_p in stack.enter_context(contextlib.closing(runs)):
                try:
                    added = functools.partial(_Share.add, log_p=log_p, labels=labels[samples])
                    list(pool.map(added, shares))
                except NotDistributionsError as error:
                    raise _no_distribution(log_p, samples, table) from error
                yield samples.stop / n_samples
            for share in shares:
                yield from share.parts(n_samples)

    def _shape(self) -> tuple[int, int]:
        """Samples and classes."""
        trial_id = str(self.rows["trial_id"].iloc[0])
        return open_store(self.homes[trial_id]).shape(self.split, trial_id)

    def _chunks(self) -> dict[str, int]:
        """Samples of each trial that are decoded together, with all its snapshots."""
        n_snapshots = self.rows.groupby("trial_id").size()
        shape = self._shape()
        return {str(t): sealed_layout((int(n), *shape))[0] for t, n in n_snapshots.items()}


class _Share:
    """What one kernel adds up of a square."""

    def __init__(
        self,
        kernel: Kernel,
        places: Mapping[Group, slice],
        n_classes: int,
        pairs: list[tuple[Tile, tuple[Group, Group]]],
    ) -> None:
        self._kernel, self._places, self._n_classes = kernel, places, n_classes
        self._pairs = [(tile, p, q, kernel.sums(len(p), len(q))) for tile, (p, q) in pairs]
        self._groups = list(dict.fromkeys(group for _, pair in pairs for group in pair))
        self._operands: dict[Group, Packed] = {}
        # Of each row that is paired with itself: sums with ignorance, and of log p at the truth.
        alone = [p for _, (p, q) in pairs if p is q]
        self._ignorance = {p: kernel.sums(len(p), 1) for p in alone}
        self._true = {p: np.zeros(len(p)) for p in alone}
        self._uniform: Packed | None = None

    def add(self, log_p: torch.Tensor, labels: npt.NDArray[np.int64]) -> None:
        """Add a run of samples, (n_rows, n_run, n_classes)."""
        kernel, n_run = self._kernel, log_p.shape[1]
        for group in self._groups:
            values = log_p[self._places[group]]
            self._operands[group] = kernel.pack(values, self._operands.get(group))
            if group in self._true:
                self._true[group] += _at(values, labels)
        uniform = torch.full((1, n_run, self._n_classes), -float(np.log(self._n_classes)))
        self._uniform = kernel.pack(uniform, self._uniform)
        kernel.accumulate(
            [(L, self._operands[p], self._operands[q]) for _, p, q, L in self._pairs]
            + [(L, self._operands[p], self._uniform) for p, L in self._ignorance.items()]
        )

    def parts(self, n_samples: int) -> Iterator[Part]:
        """What became of each tile, in order; sums are given up as they are turned into it."""
        while self._pairs:
            tile = self._pairs[0][0]
            pieces, references = [], []
            while self._pairs and self._pairs[0][0] == tile:
                _, p, q, L = self._pairs.pop(0)
                left, right = self._operands[p], self._operands[q]
                pieces.append(Piece(p, q, self._kernel.distances(L, left, right, n_samples)))
                if p is q:
                    references.append((p, self._references(p, n_samples)))
            yield Part(tile, pieces, references)

    def _references(self, group: Group, n_samples: int) -> Float64:
        """In closed form of the truth; ignorance is a snapshot like others."""
        operand, sums = self._operands[group], self._ignorance[group]
        assert self._uniform is not None
        ignorance = self._kernel.distances(sums, operand, self._uniform, n_samples)[:, 0]
        return np.stack([(operand.log_sums - self._true[group]) / (2 * n_samples), ignorance])


def _at(values: torch.Tensor, labels: npt.NDArray[np.int64]) -> Float64:
    """Σₙ of log p at each sample's label, (n_rows,); exact, as float64 sums of float16 are."""
    n_rows, n_run, n_classes = values.shape
    places = torch.from_numpy(np.arange(n_run) * n_classes + labels)
    flat = values.as_strided((n_rows, n_run * n_classes), (values.stride(0), 1))
    return flat.index_select(1, places).double().sum(1).numpy()


def _dealt(square: Square, n: int) -> Iterator[Square]:
    """The tiles of a square among so many kernels, neighbours together."""
    bounds = [len(square) * k // n for k in range(n + 1)]
    return (square[a:b] for a, b in itertools.pairwise(bounds))


def _no_distribution(log_p: torch.Tensor, samples: slice, table: pd.DataFrame) -> StoreError:
    """What is wrong with a run of samples that a kernel refused."""
    place, sample, found = worst_row(log_p) or (0, 0, "probabilities that do not sum to 1")
    row = table.iloc[place]
    return StoreError(
        f"trial {row['trial_id']}, snapshot {row['snapshot']}, sample {samples.start + sample}",
        found,
        "log-probabilities of a distribution",
    )
