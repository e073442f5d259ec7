"""Distances between the snapshots of a selection, a square of tiles at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from analysis.ahead import Rows, no_distribution
from analysis.bhattacharyya import (
    Kernel,
    NotDistributionsError,
    local_kernels,
)
from analysis.bhattacharyya.kernel import Float64, unpacked
from analysis.squares import Cost, Group, Layout, Part, Piece, Plan, Square, plan
from analysis.tiles import Tile, tile_name
from analysis.underway import Saved, Underway
from sweeper.errors import StoreError, few
from sweeper.store import open_store

Kernels = Callable[[int, int], contextlib.AbstractContextManager[Sequence[Kernel]]]
Ask = Callable[[Callable[[], Cost]], Sequence[tuple[str, Cost]]]  # machines, and their answers


@dataclass(frozen=True)
class DistanceBlocks:
    """Reads predictions from stores and reduces them; picklable, so that workers can call it.

    Attributes
    ----------
    homes : the folder or URL of the store that has a trial, by trial id.
    rows : the snapshots, as `analysis.select.Selection.rows`.
    split : the samples whose predictions are compared.
    memory : gives the bytes that this may take, on the machine that it is called on.
    kernels : gives the kernels to use, by numbers of samples and classes: one a GPU, or one.
    has_closed_truth : whether the distance to the truth is half the cross-entropy, exactly, as of
        Bhattacharyya distances; else the truth is a snapshot like others, of ones and zeros.
    """

    homes: Mapping[str, str]
    rows: pd.DataFrame
    split: str
    memory: Callable[[], int]
    kernels: Kernels = local_kernels
    has_closed_truth: bool = True

    def plan(
        self, missing: Sequence[Tile], layout: Layout, ask: Ask, begun: Sequence[Square] = ()
    ) -> Plan:
        """Squares of all that is missing, of which some was begun; see `analysis.squares.plan`.

        Whatever the squares and the machines, distances are the same to the bit if all machines
        have the C kernel, or all the Triton kernel on GPUs of one kind. Else they are within
        1e-7·max(1, d) of the exact ones, and which bits they have depends on who computes what.

        Parameters
        ----------
        ask : calls a function on every machine that is to share the work.

        Raises
        ------
        AnalysisError : not even a tile fits into memory, on any machine.
        """
        shape = self._shape()
        chunks = Rows(self.homes, self.rows, self.split).chunks(shape)
        run = max(chunks.values())
        asked = ask(functools.partial(_cost, self.memory, self.kernels, *shape, run))
        found = plan(missing, layout, [cost for _, cost in asked], begun)
        often = self._decodes(found, layout, shape[0], chunks)
        notes = [f"each snapshot is decoded {'once' if often == 1 else f'{often:.3g} times'}"]
        unfit: dict[str, list[str]] = {}
        for name, cost in asked:
            if reason := found.unfit(cost):
                unfit.setdefault(reason, []).append(name)
        for reason, names in unfit.items():
            notes.append(f"not used, {reason}: {few(names)}")
        return dataclasses.replace(found, note="; ".join(notes))

    def _decodes(
        self, found: Plan, layout: Layout, n_samples: int, chunks: Mapping[str, int]
    ) -> float:
        """How often a snapshot's predictions are decoded, on average over all snapshots."""
        ids = self.rows["trial_id"].to_numpy()
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

    def compute(
        self, square: Square, layout: Layout, run: int, underway: Underway | None = None
    ) -> Iterator[float | Part]:
        """The missing pairs of a square's tiles: shares of the work as they are done, then tiles.

        Parameters
        ----------
        underway : where sums are stored meanwhile, and may be from before; None for nowhere.

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
            step = _step(kernels, n_classes)

            def fresh() -> list[_Share]:
                return [
                    _Share(
                        kernel,
                        places,
                        n_classes,
                        [(t, pair) for t in part for pair in layout.pairs(t)],
                        self.has_closed_truth,
                    )
                    for kernel, part in zip(kernels, _dealt(square, len(kernels)), strict=True)
                    if part  # of more kernels than tiles, some have nothing to do
                ]

            shares, first = _begun(fresh, underway.found(step) if underway else ())
            if first:
                yield first / n_samples
            pool = stack.enter_context(ThreadPoolExecutor(len(shares)))
            rows = Rows(self.homes, table, self.split)
            runs = rows.runs(shape, run, step, first)
            for samples, log_p in stack.enter_context(contextlib.closing(runs)):
                try:
                    added = functools.partial(_Share.add, log_p=log_p, labels=labels[samples])
                    list(pool.map(added, shares))
                except NotDistributionsError as error:
                    raise no_distribution(log_p, samples, table) from error
                done = samples.stop / n_samples
                if underway and underway.is_due() and done < 1:
                    sums = dict(itertools.chain.from_iterable(share.sums() for share in shares))
                    underway.save(samples.stop, done, sums)
                yield done
            for share in shares:
                yield from share.parts(n_samples)

    def _shape(self) -> tuple[int, int]:
        """Samples and classes."""
        trial_id = str(self.rows["trial_id"].iloc[0])
        return open_store(self.homes[trial_id]).shape(self.split, trial_id)


def _cost(
    memory: Callable[[], int], kernels: Kernels, n_samples: int, n_classes: int, run: int
) -> Cost:
    """What distances take on this machine; GPUs have equal shares, so the least of them decides."""
    with kernels(n_samples, n_classes) as found:
        on_devices = [kernel.memory for kernel in found if kernel.memory is not None]
        return Cost(
            memory=memory(),
            on_device=min(on_devices, default=None),
            n_devices=len(found),
            packed=max(kernel.packed_bytes(n_classes) for kernel in found),
            pair=8,
            rate=min(kernel.rate for kernel in found) * len(found),
            n_samples=n_samples,
            n_classes=n_classes,
            step=min(_step(found, n_classes), n_samples),
            run=run,
        )


def _step(kernels: Sequence[Kernel], n_classes: int) -> int:
    """Samples of which runs are multiples, for all kernels of this machine."""
    return math.lcm(*(kernel.step(n_classes) for kernel in kernels))


class _Share:
    """What one kernel adds up of a square."""

    def __init__(
        self,
        kernel: Kernel,
        places: Mapping[Group, slice],
        n_classes: int,
        pairs: list[tuple[Tile, tuple[Group, Group]]],
        has_closed_truth: bool,
    ) -> None:
        self._kernel, self._places, self._n_classes = kernel, places, n_classes
        self._pairs = [(tile, p, q, kernel.sums(len(p), len(q))) for tile, (p, q) in pairs]
        self._groups = list(dict.fromkeys(group for _, pair in pairs for group in pair))
        self._operands = {group: unpacked(len(group)) for group in self._groups}
        # Of each row that is paired with itself: sums with the references that are packed, and of
        # log p at the truth where that is enough.
        alone = [p for _, (p, q) in pairs if p is q]
        self._first = int(has_closed_truth)
        self._with_references = {p: kernel.sums(len(p), 2 - self._first) for p in alone}
        self._true = {p: np.zeros(len(p)) for p in alone if has_closed_truth}
        self._packed = unpacked(2 - self._first)

    def sums(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that is added up so far, in its place; names say by which kernel, and of what."""
        for name, values in self._sums():
            yield f"{type(self._kernel).__name__} {name}", torch.as_tensor(values)

    def _sums(self) -> Iterator[tuple[str, Any]]:
        for tile, p, q, L in self._pairs:
            yield f"{tile_name(tile)} {_name(p)} {_name(q)}", L
        yield from ((f"references {_name(p)}", L) for p, L in self._with_references.items())
        yield from ((f"truth {_name(p)}", sums) for p, sums in self._true.items())
        packed = {_name(group): packed for group, packed in self._operands.items()}
        for name, operand in {**packed, "references": self._packed}.items():
            yield f"own {name}", operand.own
            yield f"log sums {name}", operand.log_sums

    def restore(self, saved: Saved) -> None:
        """Go on from sums of all that this adds up.

        Raises
        ------
        StoreError : some are not there, or damaged. What this has then must not be used.
        """
        for name, into in self.sums():
            saved.copy(name, into)

    def add(self, log_p: torch.Tensor, labels: npt.NDArray[np.int64]) -> None:
        """Add a run of samples, (n_rows, n_run, n_classes)."""
        kernel = self._kernel
        for group in self._groups:
            values = log_p[self._places[group]]
            self._operands[group] = kernel.pack(values, self._operands[group])
            if group in self._true:
                self._true[group] += _at(values, labels)
        references = _truth_and_ignorance(labels, self._n_classes)[self._first :]
        self._packed = kernel.pack(references, self._packed)
        kernel.accumulate(
            [(L, self._operands[p], self._operands[q]) for _, p, q, L in self._pairs]
            + [(L, self._operands[p], self._packed) for p, L in self._with_references.items()]
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
        """Distances of truth and ignorance, (2, len(group))."""
        operand, sums = self._operands[group], self._with_references[group]
        found = self._kernel.distances(sums, operand, self._packed, n_samples).T
        if group in self._true:
            truth = (operand.log_sums - self._true[group]) / (2 * n_samples)
            found = np.concatenate([truth[None], found])
        return found


def _name(group: Group) -> str:
    """Says which rows it has."""
    return f"{group.rows[0]}+{len(group)}:{zlib.crc32(group.rows.tobytes()):08x}"


def _begun(fresh: Callable[[], list[_Share]], stored: Iterable[Saved]) -> tuple[list[_Share], int]:
    """Shares of a square that go on from the most samples whose sums are stored, and how many."""
    for saved in stored:
        shares = fresh()
        if _restored(shares, saved):
            return shares, saved.n_samples
        del shares  # others are made in as much memory
    return fresh(), 0


def _restored(shares: Sequence[_Share], saved: Saved) -> bool:
    """Whether the sums are whole, and of the same kernels, rows and pairs."""
    try:
        for share in shares:
            share.restore(saved)
    except StoreError:
        return False
    return True


def _truth_and_ignorance(labels: npt.NDArray[np.int64], n_classes: int) -> torch.Tensor:
    """Their log-probabilities, (2, n_run, n_classes)."""
    log_p = torch.full((2, len(labels), n_classes), -math.inf)
    log_p[0, torch.arange(len(labels)), torch.from_numpy(labels)] = 0.0
    log_p[1] = -math.log(n_classes)
    return log_p


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
