"""A matrix of distances survives kills, and refuses what is absent or damaged by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fill import fill
from analysis.provenance import write_table
from analysis.squares import Part, Piece, Plan
from analysis.tiles import Tiling, open_distances
from sweeper.errors import AnalysisError, FormatVersionError, HoleError, StoreError

ABOUT = {"fingerprint": "one", "parameters": {}}
M = 11
TILING = Tiling(M, 4)  # three by three tiles, the last one of 3 snapshots


class Blocks:
    """D[i, j] = |i − j| / 7 and references i, i + 100; each tile a square, and counted."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def plan(self, missing, layout, ask, begun):
        return Plan(tuple((tile,) for tile in missing), 1)

    def compute(self, square, layout, run, underway):
        for tile in square:
            self.asked.append(tile)
            pieces, references = [], []
            for p, q in layout.pairs(tile):
                pieces.append(Piece(p, q, np.abs(p.rows[:, None] - q.rows) / 7))
                if p is q:
                    references.append((p, p.rows + np.array([[0.0], [100.0]])))
            yield Part(tile, pieces, references)


EXPECTED = np.abs(np.arange(M)[:, None] - np.arange(M)[None, :]).astype(float) / 7
TILES = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "analysis" / "distances.zarr"
    fill(path, Blocks(), TILING, ABOUT)
    return path


def chunk(path: Path, i: int, j: int) -> Path:
    return path / "d" / f"c.{i}.{j}"


def test_only_tiles_on_and_above_the_diagonal_are_computed(tmp_path):
    blocks = Blocks()
    assert fill(tmp_path / "d", blocks, TILING, ABOUT) == 6
    assert blocks.asked == TILES


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), slice(None)),
        (slice(0, 3), slice(2, 9)),
        (slice(7, 11), slice(0, 5)),
        (slice(5, 5), slice(None)),
        (slice(-2, None), 3),
        (4, 9),
        (-1, 0),
        (np.int64(1), 2),
        (slice(np.int32(2), np.int64(9)), np.uint8(10)),
    ],
)
def test_any_block_is_that_of_the_full_symmetric_matrix(path, key):
    found = open_distances(path)[key]
    assert np.array_equal(found, EXPECTED.astype(np.float32)[key])


def test_references_are_kept_exactly(path):
    expected = np.arange(M) + np.array([[0.0], [100.0]])
    assert np.array_equal(open_distances(path).references, expected)


def test_a_finished_matrix_is_not_computed_again(path):
    blocks = Blocks()
    assert fill(path, blocks, TILING, ABOUT) == 0
    assert blocks.asked == []


def test_a_matrix_of_something_else_is_replaced(path):
    blocks = Blocks()
    fill(path, blocks, TILING, {**ABOUT, "fingerprint": "two"})
    assert blocks.asked == TILES
    assert open_distances(path).about["fingerprint"] == "two"


def test_progress_counts_what_is_finished(tmp_path):
    seen: list[tuple[int, int]] = []
    fill(tmp_path / "d", Blocks(), TILING, ABOUT, progress=lambda *counts: seen.append(counts))
    assert seen == [(i, 6) for i in range(7)]


def test_tiles_may_be_mapped_in_any_order(tmp_path):
    def backwards(function, tiles, unfit):
        return [list(function(tile)) for tile in reversed(list(tiles))]

    fill(tmp_path / "d", Blocks(), TILING, ABOUT, map=backwards)
    assert np.array_equal(open_distances(tmp_path / "d")[:, :], EXPECTED.astype(np.float32))


KILLED = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_tiles import ABOUT, TILING, Blocks
from analysis.fill import fill
fill(Path(sys.argv[1]), Blocks(), TILING, ABOUT)
"""


def fill_until_killed(path: Path, crash_at: str) -> None:
    environment = {**os.environ, "SWEEPER_CRASH_AT": crash_at}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = KILLED.format(folder=str(Path(__file__).parent))
    killed = subprocess.run([sys.executable, "-c", script, str(path)], env=environment)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("crash_at", "left"), [("tile:3", TILES[3:]), ("tile-data:3", TILES[2:])])
def test_a_run_killed_after_three_tiles_goes_on_where_it_stopped(tmp_path, crash_at, left):
    path = tmp_path / "d"
    fill_until_killed(path, crash_at)
    with pytest.raises(AnalysisError) as caught:
        open_distances(path)
    n_tiles = len(TILES) - len(left)
    assert f"{path}: no distances here yet, {n_tiles} tiles of them" in str(caught.value)
    assert caught.value.hint.startswith("run `sweeper analyze distances DIR` again")
    blocks = Blocks()
    fill(path, blocks, TILING, ABOUT)
    assert blocks.asked == left
    assert np.array_equal(open_distances(path)[:, :], EXPECTED.astype(np.float32))


PREVIOUS = {**ABOUT, "fingerprint": "two"}


def test_the_previous_matrix_is_read_until_the_last_tile_of_the_next_is_finished(tmp_path):
    path = tmp_path / "d"
    fill(path, Blocks(), TILING, PREVIOUS)
    fill_until_killed(path, "tile:5")
    found = open_distances(path)
    assert found.about["fingerprint"] == "two"
    assert np.array_equal(found[:, :], EXPECTED.astype(np.float32))
    blocks = Blocks()
    fill(path, blocks, TILING, ABOUT)
    assert blocks.asked == TILES[5:]
    assert open_distances(path).about["fingerprint"] == "one"
    assert [child.name for child in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("about", [ABOUT, PREVIOUS])
def test_a_run_killed_between_the_two_renames_loses_neither_matrix(tmp_path, about):
    path = tmp_path / "d"
    fill(path, Blocks(), TILING, PREVIOUS)
    fill_until_killed(path, "publish")
    with pytest.raises(AnalysisError, match="no distances here yet, 6 tiles of them"):
        open_distances(path)
    blocks = Blocks()
    assert fill(path, blocks, TILING, about) == 0
    assert open_distances(path).about == about
    assert np.array_equal(open_distances(path)[:, :], EXPECTED.astype(np.float32))


def test_a_torn_last_record_is_dropped_and_its_tile_computed_again(path):
    record = path / "d" / "finished.jsonl"
    record.write_bytes(record.read_bytes()[:-9])
    blocks = Blocks()
    fill(path, blocks, TILING, ABOUT)
    assert blocks.asked == [(2, 2)]
    assert len(record.read_text().splitlines()) == 6


def test_a_missing_tile_is_refused_by_name_and_can_be_computed_again(path):
    chunk(path, 0, 2).unlink()
    d = open_distances(path)
    assert np.array_equal(d[0:8, 0:8], EXPECTED.astype(np.float32)[:8, :8])
    with pytest.raises(HoleError) as caught:
        d[8:9, 0:1]
    assert str(caught.value) == f"{path}: tile 0.2: absent, though recorded as finished"
    assert "run `sweeper analyze distances DIR` again" in caught.value.hint
    assert fill(path, Blocks(), TILING, ABOUT) == 1
    assert np.array_equal(open_distances(path)[:, :], EXPECTED.astype(np.float32))


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_bit_is_refused_by_the_tiles_name(path, position):
    data = bytearray(chunk(path, 1, 2).read_bytes())
    data[position] ^= 4
    chunk(path, 1, 2).write_bytes(data)
    with pytest.raises(StoreError, match=r"tile 1\.2: damaged"):
        open_distances(path)[:, :]
    assert fill(path, Blocks(), TILING, ABOUT) == 1


def test_a_tile_of_another_run_is_refused(path):
    chunk(path, 0, 1).write_bytes(chunk(path, 0, 0).read_bytes())
    with pytest.raises(StoreError, match=r"tile 0\.1: does not match its recorded checksum"):
        open_distances(path)[0:1, 4:5]


def test_damaged_references_are_refused(path):
    chunk = path / "references" / "c.0.1"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(StoreError, match=r"tile 1\.1"):
        _ = open_distances(path).references
    assert fill(path, Blocks(), TILING, ABOUT) == 1


def test_rows_of_another_matrix_are_refused(path):
    table = pd.DataFrame({"trial_id": ["t0"] * M})
    write_table(path.with_name("snapshots.parquet"), table, {**ABOUT, "fingerprint": "two"})
    with pytest.raises(StoreError, match="not the rows of this matrix"):
        _ = open_distances(path).snapshots


def test_a_folder_without_distances_says_what_to_run(tmp_path):
    with pytest.raises(AnalysisError) as caught:
        open_distances(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no distances here"
    assert caught.value.hint == "run `sweeper analyze distances DIR` first"


def test_a_newer_format_is_refused(path):
    group = json.loads((path / "zarr.json").read_text())
    group["attributes"]["analysis_format"] = 99
    (path / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(FormatVersionError, match="format `99`; this sweeper reads up to 1"):
        open_distances(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "D: index `3`; a pair of slices or indices"),
        ((11, 0), "D: index `11`; 0 to 10"),
        ((slice(None, None, 2), 0), "D: a step of `2`; slices of step 1"),
        (([1, 2], slice(None)), "D: index `[1, 2]`; a slice or an integer"),
        ((0, 1.0), "D: index `1.0`; a slice or an integer"),
        ((slice("t0", None), 0), "D: index `slice('t0', None, None)`; a slice or an integer"),
    ],
)
def test_an_index_that_is_no_block_is_refused(path, key, message):
    with pytest.raises(AnalysisError) as caught:
        open_distances(path)[key]
    assert str(caught.value) == message
