"""How missing tiles are cut into squares, each computed in one go over all samples.

While the samples are gone through, a square's sums and what is read of its snapshots are in memory.
Every snapshot is read once for each square that it is in, so squares are as large as memory allows.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.ahead import held
from analysis.memory import size_text
from analysis.tiles import Array, Tile, Tiling
from sweeper.errors import AnalysisError

SECONDS = 120.0  # of computing a square, where smaller ones cost little: then its tiles are stored
READING = 5e8  # predictions that are read and decoded each second, about
COMPUTING = 8.0  # times as long as reading, which then matters little
SQUARES = 4  # for each of several machines, which are not done at the same time
GAIN = 0.1  # of the time, for which no machine is left out and no square larger
PANEL = 32  # snapshots of which kernels pad groups to a multiple, at most

Square = tuple[Tile, ...]


def padded(n: int) -> int:
    """Snapshots that so many of them take memory for, packed together."""
    return -(-n // PANEL) * PANEL


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a tile that are packed together.

    Attributes
    ----------
    rows : their places in the matrix, ascending.
    is_known : whether an earlier matrix may have the distances between them.
    """

    rows: Array
    is_known: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded(self) -> int:
        """Rows that it takes memory for."""
        return padded(len(self.rows))


@dataclass(frozen=True)
class Piece:
    """Distances between two groups of a tile, (len(p), len(q)) float64 in nats."""

    p: Group
    q: Group
    D: Array


@dataclass(frozen=True)
class Part:
    """What was computed of a tile: all pairs that `Layout.pairs` gives.

    Attributes
    ----------
    references : for each group that is paired with itself, the distances of truth (first) and
        ignorance to its rows, (2, len(group)).
    """

    tile: Tile
    pieces: Sequence[Piece]
    references: Sequence[tuple[Group, Array]]


class Layout:
    """Which rows of each tile are packed together, and of which pairs a tile is computed.

    Parameters
    ----------
    known : (M,) bool, the rows whose distances to each other an earlier matrix may have.
    reusable : the tiles of which it has them.
    """

    def __init__(
        self, tiling: Tiling, known: Array | None = None, reusable: frozenset[Tile] = frozenset()
    ) -> None:
        self.tiling, self.reusable = tiling, reusable
        known = np.zeros(tiling.M, bool) if known is None else known
        self.groups = [tuple(self._groups(tiling.span(i), known)) for i in range(tiling.n)]

    def _groups(self, span: slice, known: Array) -> Iterator[Group]:
        for is_known in (False, True):
            rows = span.start + np.flatnonzero(known[span] == is_known)
            if len(rows):
                yield Group(rows, is_known)

    def pairs(self, tile: Tile) -> Iterator[tuple[Group, Group]]:
        """Groups of a tile's rows and columns whose pairs are to be computed.

        Of a tile of the diagonal every pair of groups is given once.
        """
        rows, columns = self.groups[tile[0]], self.groups[tile[1]]
        for place, p in enumerate(rows):
            for q in columns[place:] if tile[0] == tile[1] else columns:
                if not (p.is_known and q.is_known and tile in self.reusable):
                    yield p, q

    def groups_of(self, square: Square) -> list[Group]:
        """Those that some tiles are of, in order."""
        indices = sorted({index for tile in square for index in tile})
        return [group for index in indices for group in self.groups[index]]

    def n_known(self, tile: Tile) -> int:
        """Pairs of different rows of a tile that are not to be computed."""
        if tile not in self.reusable:
            return 0
        rows, columns = (sum(len(g) for g in self.groups[i] if g.is_known) for i in tile)
        return rows * columns if tile[0] < tile[1] else rows * (rows - 1) // 2

    def size(self, square: Square) -> Size:
        """What a square needs memory for."""
        groups = self.groups_of(square)
        pairs = [pair for tile in square for pair in self.pairs(tile)]
        return Size(
            sum(group.padded for group in groups), sum(p.padded * q.padded for p, q in pairs)
        )


@dataclass(frozen=True)
class Size:
    """Of a square: snapshots that are read, and pairs that are computed."""

    n_rows: int
    n_pairs: int


@dataclass(frozen=True)
class Cost:
    """What a computation takes on a machine, and what there is.

    Attributes
    ----------
    memory : bytes for what is read, and for sums and operands unless they are on a device.
    on_device : bytes for sums and operands on each GPU; None without one.
    n_devices : GPUs, or 1, that share the sums.
    packed, pair : bytes of a snapshot's sample as an operand, and of a pair's sum.
    rate : products of a pair, a sample and a class each second, of all GPUs together.
    n_samples, n_classes : of the predictions.
    step : samples of which what is worked on at once is a multiple.
    run : samples that are best read at once.
    """

    memory: int
    on_device: int | None
    n_devices: int
    packed: int
    pair: int
    rate: float
    n_samples: int
    n_classes: int
    step: int
    run: int

    def bytes(self, size: Size, run: int) -> tuple[int, int]:
        """In this machine's memory, and on each GPU."""
        run, read = held(size.n_rows, (self.n_samples, self.n_classes), run, self.step)
        # Ignorance is packed as well, and paired with every row.
        operands = (size.n_rows + PANEL) * run * self.packed
        sums = (size.n_pairs // self.n_devices + size.n_rows * PANEL) * self.pair
        kept = operands + sums
        return (read + kept, 0) if self.on_device is None else (read, kept)

    def fits(self, size: Size, run: int) -> bool:
        """Whether there is as much memory."""
        here, there = self.bytes(size, run)
        return here <= self.memory and there <= (self.on_device or 0)

    def reading(self, size: Size) -> float:
        """Seconds that reading a square once takes, about."""
        return size.n_rows * self.n_samples * self.n_classes / READING

    def computing(self, size: Size) -> float:
        """Seconds that computing a square takes, about."""
        return size.n_pairs * self.n_samples * self.n_classes / self.rate

    def seconds(self, size: Size, run: int) -> float:
        """Those that both take, about: one run is read while another is worked on."""
        often = self.run / run  # what is decoded together is decoded for each run of it
        return max(often * self.reading(size), self.computing(size))

    def is_soon_done(self, size: Size) -> bool:
        """Whether a square's tiles are soon there, or smaller ones would be read too often.

        Its tiles are stored when it is done, and reading binds where it takes longer than
        computing. So a square takes at most two minutes, or as long as reading its snapshots; eight
        times as long where computing binds. Of 50,000 samples and 1,000 classes, each takes 0.1 s:
        at most 2 and 13 minutes for 1,000 snapshots, 17 and 133 minutes for 10,000. The sums of
        those that take long are stored meanwhile, see `analysis.underway`.
        """
        return self.computing(size) <= max(SECONDS, COMPUTING * self.reading(size))


@dataclass(frozen=True)
class Plan:
    """Squares in order, how many samples are read at once, and what to say about it.

    Attributes
    ----------
    sizes : those of the squares.
    rate : that a machine must have at least to compute some, see `Cost`.
    """

    squares: tuple[Square, ...]
    run: int
    note: str = ""
    sizes: frozenset[Size] = frozenset()
    rate: float = 0.0

    def unfit(self, cost: Cost) -> str:
        """Why a machine is to compute none of the squares; empty if it may."""
        if not all(cost.fits(size, self.run) for size in self.sizes):
            return "too little memory"
        return "too slow" if cost.rate < self.rate else ""


def plan(
    missing: Sequence[Tile],
    layout: Layout,
    costs: Sequence[Cost],
    begun: Sequence[Square] = (),
) -> Plan:
    """As few squares as memory allows and are soon done, and several a machine.

    Machines are left out where the others are done sooner without them: those that are less than
    half as fast as another, which would have to be waited for in the end, and those with less
    memory, for which all squares would have to be small. Where reading binds, there are fewer
    squares than several a machine, as long as all are done sooner.

    Parameters
    ----------
    costs : of each machine, for the same predictions.
    begun : missing tiles that go on from common sums. They come first, in squares of their own.

    Raises
    ------
    AnalysisError : not even a tile fits, on any machine.
    """
    sides = tuple(_sides(max((j for _, j in missing), default=0) + 1))
    longest, step = costs[0].run, min(cost.step for cost in costs)
    shorter = range((longest - 1) // step * step, 0, -step)
    # From the largest squares down to single tiles, of which then fewer samples are read at once.
    ways = [*((side, longest) for side in sides), *((1, run) for run in shorter)]

    @functools.cache
    def cut(side: int) -> tuple[tuple[Square, ...], list[Size], frozenset[Size]]:
        squares = tuple(_cut(missing, side))
        sizes = [layout.size(square) for square in squares]
        return squares, sizes, frozenset(sizes)

    @functools.cache
    def fits(cost: Cost, way: int) -> bool:
        side, run = ways[way]
        return all(cost.fits(size, run) for size in cut(side)[2])

    def suitable(team: Sequence[Cost]) -> Iterator[int]:
        """The ways in which all of them can, until there are several squares for each."""
        wanted = min(len(missing), 1 if len(team) == 1 else SQUARES * len(team))
        slowest = min(team, key=lambda cost: cost.rate)
        for way, (side, _) in enumerate(ways):
            squares, _, sizes = cut(side)
            is_last = side == 1
            if all(fits(cost, way) for cost in team) and (
                is_last or all(slowest.is_soon_done(size) for size in sizes)
            ):
                yield way
                if is_last or len(squares) >= wanted:
                    return

    firsts = {
        cost: next((way for way in range(len(ways)) if fits(cost, way)), len(ways))
        for cost in costs
    }
    teams = {
        tuple(cost for cost in costs if firsts[cost] <= way and cost.rate >= rate): rate
        for way in {*firsts.values()} - {len(ways)}
        for rate in sorted(cost.rate / 2 for cost in costs)
    }
    found = [
        (_seconds(team, cut(ways[way][0])[1], ways[way][1]), len(team), way, rate)
        for team, rate in teams.items()
        if team
        for way in suitable(team)
    ]
    if not found:
        raise _too_little(max(costs, key=lambda cost: cost.memory), cut(1)[1])
    enough = (1 + GAIN) * min(seconds for seconds, *_ in found)
    _, _, way, rate = max((f for f in found if f[0] <= enough), key=lambda f: (f[1], f[2], -f[0]))
    side, run = ways[way]
    rest = sorted(set(missing).difference(*begun))
    squares = tuple(square for tiles in (*begun, rest) for square in _cut(tiles, side))
    return Plan(squares, run, sizes=frozenset(map(layout.size, squares)), rate=rate)


def _seconds(team: Sequence[Cost], sizes: Sequence[Size], run: int) -> float:
    """Until the last square is done, if at worst the slowest machine is the first to have one."""
    team = sorted(team, key=lambda cost: cost.rate)
    free = [(0.0, place) for place in range(len(team))]
    for size in sizes:
        since, place = free[0]
        heapq.heapreplace(free, (since + team[place].seconds(size, run), place))
    return max(free)[0]


def _sides(most: int) -> Iterator[int]:
    """How many rows of tiles a square has, so that it takes 1, 2, 3, … of equal size; down to 1."""
    side = n = 0
    while side != 1:
        n += 1
        if -(-most // n) != side:
            side = -(-most // n)
            yield side


def _cut(missing: Sequence[Tile], side: int) -> Iterator[Square]:
    found: dict[Tile, list[Tile]] = {}
    for i, j in missing:
        found.setdefault((i // side, j // side), []).append((i, j))
    return (tuple(tiles) for tiles in found.values())


def _too_little(cost: Cost, sizes: Sequence[Size]) -> AnalysisError:
    run = min(cost.step, cost.run)
    here, there = (max(needed) for needed in zip(*(cost.bytes(s, run) for s in sizes), strict=True))
    if here <= cost.memory:
        found = f"{size_text(cost.on_device or 0)} are free"
        return AnalysisError("GPU", found, f"{size_text(there)} for one tile")
    return AnalysisError(
        "--memory",
        f"{size_text(max(0, cost.memory))} are left for distances",
        f"at least {size_text(here)} for one tile of them",
        f"give {size_text(here - cost.memory)} more, or free as much",
    )
