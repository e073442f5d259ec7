"""InPCA of a matrix that is read from disk: time a pass, the disk's own speed, error, memory.

    python -m tests.benchmarks.inpca [--models 30000] [--components 10] [--folder DIR]

The matrix has a known spectrum, which falls as that of real sweeps does and has negative values
among its largest. Its tiles are written as `sweeper analyze distances` does, and the page cache is
told to forget each tile after it was read, so that every pass reads the disk. What is measured runs
with as much memory as `--memory` allows (`RLIMIT_DATA`). The tiles are removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from analysis.inpca import inpca
from analysis.tiles import (
    TILE,
    Array,
    Distances,
    Tile,
    Tiling,
    create,
    record_of,
    tile_name,
    write_tile,
)
from sweeper.processors import n_cores

RANK = 400


class OfSpectrum:
    """Distances whose W is U diag(values) Uᵀ."""

    def __init__(self, M: int) -> None:
        values = np.arange(1, RANK + 1) ** -1.2
        values[1::3] *= -1
        rng = np.random.default_rng(0)
        random = rng.standard_normal((M, RANK))
        self.values = values
        self.U = np.linalg.qr(random - random.mean(axis=0))[0]
        self.heights = np.square(self.U) @ values

    def distances(self, rows: slice, columns: slice) -> Array:
        """D[rows, columns]."""
        W = (self.U[rows] * self.values) @ self.U[columns].T
        D = self.heights[rows, None] + self.heights[columns] - 2 * W
        if rows == columns:
            np.fill_diagonal(D, 0)
        return D


def write(path: Path, made: OfSpectrum, tiling: Tiling) -> None:
    """Its tiles, as they are stored."""
    create(path, tiling, {})
    with record_of(path).open("w") as record:
        for tile in tiling.upper():
            rows, columns = map(tiling.span, tile)
            references = np.zeros((2, rows.stop - rows.start)) if rows == columns else None
            entry = write_tile(path, tile, made.distances(rows, columns), references)
            record.write(json.dumps(entry) + "\n")


class Cold(Distances):
    """Distances whose tiles are not in the page cache when they are read."""

    def file(self, tile: Tile) -> Path:
        """Where a tile is."""
        return self.path / "d" / f"c.{tile_name(tile)}"

    def tile(self, tile: Tile) -> Array:
        """The tile, forgotten afterwards."""
        values = super().tile(tile)
        forget(self.file(tile))
        return values


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def disk_seconds(D: Cold) -> float:
    """To read all files, as many at once as a pass does, and do nothing with them."""
    tiles = list(D.tiling.upper())
    for tile in tiles:
        forget(D.file(tile))

    def read(tile: Tile) -> None:
        D.file(tile).read_bytes()
        forget(D.file(tile))

    started = time.perf_counter()
    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(read, tiles))
    return time.perf_counter() - started


def peak() -> float:
    """Of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(folder: Path, M: int, n: int, memory: float) -> None:
    """Print the table."""
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    made, path = OfSpectrum(M), folder / "distances.zarr"
    started = time.perf_counter()
    write(path, made, Tiling(M, TILE))
    D = Cold(path)
    tiles = list(D.tiling.upper())
    size = sum(D.file(tile).stat().st_size for tile in tiles)
    print(
        f"M = {M:,}, {len(tiles)} tiles, {size / 1e9:.2f} GB, written in "
        f"{time.perf_counter() - started:.0f} s; {n_cores()} cores, load {os.getloadavg()[0]:.1f}, "
        f"limit {memory:g} GiB"
    )
    before, disk = peak(), [disk_seconds(D)]
    moments = [(time.perf_counter(), time.process_time())]

    def progress(done: int, total: int) -> None:
        if done % len(tiles) == 0:
            moments.append((time.perf_counter(), time.process_time()))

    started = time.perf_counter()
    found = inpca(D, n, progress=progress)
    elapsed = time.perf_counter() - started
    disk.append(disk_seconds(D))
    passes, busy = np.diff(moments, axis=0).T
    order = np.argsort(-np.abs(made.values), kind="stable")
    true, U = made.values[order], found.coordinates / np.sqrt(np.abs(found.eigenvalues))
    dots = (U * made.U[:, order[:n]]).sum(axis=0)
    angle = np.linalg.norm(U - made.U[:, order[:n]] * np.sign(dots), axis=0)
    print("\n| | seconds | GB/s | of processors |\n|---|---|---|---|")
    for name, seconds, times, cpu in (
        ("the disk alone, before", disk[0], 1, None),
        ("the disk alone, after", disk[1], 1, None),
        ("first pass, with checksums and statistics", passes[0], 1, busy[0]),
        (
            f"each of {len(passes) - 2} more, median",
            statistics.median(passes[1:-1]),
            1,
            statistics.median(busy[1:-1]),
        ),
        ("the pass of L1", passes[-1], 1, busy[-1]),
        (f"all {len(passes)} passes", elapsed, len(passes), busy.sum()),
    ):
        rate, used = size * times / 1e9 / seconds, "" if cpu is None else f"{cpu:.2f}"
        print(f"| {name} | {seconds:.2f} | {rate:.2f} | {used} |")
    left = np.abs(true[len(found.spectrum) :])
    print(
        f"\nof {n} eigenvalues the largest relative error "
        f"{np.abs(found.eigenvalues / true[:n] - 1).max():.1e}, of their vectors "
        f"{angle.max():.1e}, residual {found.residuals.max() / abs(true[0]):.1e} |λ₁|; "
        f"{found.n_certified} certified by {len(found.spectrum)} pairs: bound {found.bound:.4f}, "
        f"the next is {left.max(initial=0):.4f}, λ{n} {true[n - 1]:.4f}; peak memory "
        f"{before:.2f} GiB before, {peak():.2f} GiB after"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=30_000)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--memory", type=float, default=8.0)
    parser.add_argument("--folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        measure(Path(scratch), asked.models, asked.components, asked.memory)
