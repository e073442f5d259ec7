"""A trained sweep has one picture, whichever way it is computed: kernels, memory, machines.

The picture that others are compared with shares nothing with them: distances by the formula in
float64, eigenpairs by LAPACK. The Triton kernel is interpreted, as `test_gpu_kernel` says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from analysis import eigenpairs, upper
from analysis.bhattacharyya import Kernel, cpu, pairwise, to_ignorance, to_truth
from analysis.bhattacharyya.portable import Portable, threads
from analysis.blocks import DistanceBlocks
from analysis.cli import app
from analysis.fill import ask_here, fill, map_here
from analysis.inpca import InPCA, inpca
from analysis.select import select
from analysis.tiles import Tiling, open_distances
from analysis.union import open_union
from sweeper.store import open_store

ROOT = Path(__file__).parents[2]
GRID = """
name: digits
base: {data.name: digits, optim.batch_size: 128, epochs: 4, record.schedule: manifold}
axes:
  model.name: [fc, cnn]
  optim: [{name: sgd, lr: 0.2}, {name: adam, lr: 2.0e-3}]
  seed: [0, 1]
"""
TILE = 24
# Of the largest coordinate on an axis. Distances below 1 are stored with errors of up to 3e-8, and
# kernels add as much, in no common direction. To first order such an error δ turns an axis by
# ½ δ √M / gap, which M coordinates share: each is off by ½ δ / gap, 3e-7 for the gap of 0.05 that
# is next to the third eigenvalue.
TOLERANCE = 1e-6

Kernels = Callable[[int, int], contextlib.AbstractContextManager[list[Kernel]]]


def run(script: list[object], cwd: Path, **environment: str) -> None:
    known = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, script)]
    done = subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight trained networks, analysed by commands."""
    folder = tmp_path_factory.mktemp("picture")
    (folder / "grid.yaml").write_text(GRID)
    run(["-m", "sweeper", "launch", "grid.yaml", "--executor", "local", "-y"], folder)
    sweep = folder / "runs" / "digits"
    for command in (["distances", str(sweep)], ["inpca", str(sweep), "--components", "3"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return sweep


@pytest.fixture(scope="module")
def expected(sweep: Path) -> np.ndarray:
    """(M + 2, 3): the snapshots, truth and ignorance."""
    store = open_store(sweep)
    ids = store.complete_ids()
    p = np.concatenate([store.log_probs(t, "test", dtype="float16") for t in ids])
    found = inpca(pairwise(p, kernel="reference"), 3)
    labels = store.labels("test", ids[0])
    return picture(found, np.stack([to_truth(p, labels), to_ignorance(p)]))


def picture(found: InPCA, references: np.ndarray) -> np.ndarray:
    return np.concatenate([found.coordinates, found.project(references)])


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float((np.abs(found - expected) / np.abs(expected).max(axis=0)).max())


@contextlib.contextmanager
def compiled(n_samples: int, n_classes: int) -> Iterator[list[Kernel]]:
    with ThreadPoolExecutor(2) as pool:
        yield [cpu.Cpu(pool, 2)]


@contextlib.contextmanager
def in_float32(n_samples: int, n_classes: int) -> Iterator[list[Kernel]]:
    with threads(2) as pool:
        yield [Portable(pool, 2, torch.device("cpu"), n_samples)]


@contextlib.contextmanager
def in_float64(n_samples: int, n_classes: int) -> Iterator[list[Kernel]]:
    with threads(2) as pool:
        yield [Portable(pool, 2, torch.device("cpu"), 1)]  # as of one sample


def plenty() -> int:
    return 1 << 40


def little() -> int:
    return 4_500_000


def on_two_machines(task, squares, unfit):
    """Two threads, to which everything is sent as to another machine."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda square: list(pickle.loads(pickle.dumps(task))(square)), squares)


def ask_two(question):
    return [(name, question()) for name in ("first", "second")]


def compute(
    sweep: Path, to: Path, kernels: Kernels, memory: Callable[[], int], tile: int = TILE
) -> list[str]:
    """All distances, and what was said; with little memory on two machines."""
    selection, said = select(open_union([sweep])), []
    homes = {trial_id: str(sweep) for trial_id in selection.homes}
    source = DistanceBlocks(homes, selection.rows, "test", memory, kernels)
    how = (map_here, ask_here) if memory is plenty else (on_two_machines, ask_two)
    tiling = Tiling(len(selection.rows), tile)
    fill(to, source, tiling, {"fingerprint": "x"}, map=how[0], ask=how[1], say=said.append)
    return said


def embedded(D: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[np.ndarray]:
    """By each way to the eigenpairs: of the matrix, in memory, and from the disk."""
    for dense, resident in ((10**6, 1 << 30), (0, 1 << 30), (0, 0)):
        monkeypatch.setattr(eigenpairs, "DENSE", dense)
        monkeypatch.setattr(upper, "RESIDENT", resident)
        yield picture(inpca(D, 3), D.references)


def test_the_picture_of_the_commands_is_that_of_the_formula(sweep, expected):
    tables = [sweep / "analysis" / f"{name}.parquet" for name in ("embedding", "references")]
    axes = ["pc1", "pc2", "pc3"]
    found = np.concatenate([pd.read_parquet(path)[axes].to_numpy() for path in tables])
    assert error(found, expected) < TOLERANCE


@pytest.mark.parametrize("memory", [plenty, little])
@pytest.mark.parametrize("kernels", [compiled, in_float32, in_float64])
def test_kernels_memory_and_machines_do_not_change_it(
    sweep, expected, tmp_path, monkeypatch, kernels, memory
):
    if kernels is compiled and cpu.missing():
        pytest.skip(cpu.missing())
    [said] = compute(sweep, tmp_path / "d", kernels, memory)
    assert ("decoded once" in said) == (memory is plenty)
    for found in embedded(open_distances(tmp_path / "d"), monkeypatch):
        assert error(found, expected) < TOLERANCE


INTERPRETED = """
import contextlib
import sys
from pathlib import Path
import torch
from analysis.bhattacharyya import gpu
from tests.analysis.test_one_picture import compute, plenty

gpu._DTYPE = torch.float32  # the interpreter's products of bfloat16 are wrong

@contextlib.contextmanager
def kernels(n_samples, n_classes):
    yield [gpu.Gpu(torch.device("cpu")) for _ in range(2)]

# Few tiles, because each takes a second.
compute(Path(sys.argv[1]), Path(sys.argv[2]), kernels, plenty, tile=72)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_neither_does_the_gpus_kernel(sweep, expected, tmp_path, monkeypatch):
    run(["-c", INTERPRETED, sweep, tmp_path / "d"], ROOT, TRITON_INTERPRET="1")
    for found in embedded(open_distances(tmp_path / "d"), monkeypatch):
        assert error(found, expected) < TOLERANCE
