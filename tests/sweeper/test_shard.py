"""Shares of a sweep's trials: for several drivers that know nothing of one another."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import SweeperError
from sweeper.grid import expand, load_grid
from sweeper.plan import planned_ids
from sweeper.shard import Shard, named
from sweeper.store import open_store

MODEL = {"model": {"name": "fc", "widths": [16]}, "epochs": 1}
N_SHARDS = 2

trial_ids = st.integers(0, 16**12 - 1).map(lambda number: f"t{number:012x}")


@pytest.mark.parametrize("text", ["1/1", "1/4", "4/4", "02/008"])
def test_a_share_is_read(text: str):
    number, count = map(int, text.split("/"))
    assert Shard.parse(text) == Shard(number, count)
    assert Shard.parse(str(Shard(number, count))) == Shard(number, count)


@pytest.mark.parametrize(
    "text",
    ["0/4", "5/4", "a/b", "1/0", "1", "", "/", "1/", "-1/4", "1/-4", "1/4/2", "1 /4", "１/4"],
)
def test_what_is_no_share_is_refused(text: str):
    with pytest.raises(SweeperError) as caught:
        Shard.parse(text)
    assert str(caught.value) == f"--shard: `{text}`; `i/N`, i from 1 to N"


@given(trial_ids, st.integers(1, 100))
def test_every_trial_is_in_one_share_of_any_number(trial_id: str, count: int):
    holders = [i for i in range(1, count + 1) if Shard(i, count).holds(trial_id)]
    assert len(holders) == 1


@pytest.mark.parametrize("count", [2, 3, 8, 100])
def test_shares_are_of_one_size_give_or_take_the_root_of_it(count: int):
    n_trials = 10_000
    ids = [f"t{hashlib.sha256(str(i).encode()).hexdigest()[:12]}" for i in range(n_trials)]
    sizes = [sum(map(Shard(i, count).holds, ids)) for i in range(1, count + 1)]
    mean = n_trials / count
    assert all(abs(size - mean) < 4 * math.sqrt(mean) for size in sizes)


def test_a_share_has_a_name_of_its_own():
    assert named("digits", None) == "digits"
    assert named("digits", Shard(2, 8)) == "digits-2-of-8"


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def seeds(grid_file, base):
    """Write a grid of so many short trials."""

    def write(n: int) -> Path:
        return grid_file(base=base | MODEL, axes={"seed": {"range": [0, n]}})

    return write


@pytest.fixture
def launch(here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Launch a share of a grid in the current folder."""
    monkeypatch.chdir(tmp_path)

    def run(grid: Path, shard: str, *options: object):
        return here("launch", grid, "--shard", shard, "--executor", "local", "-y", *options)

    return run


def planned(place: Path) -> set[str]:
    return set(planned_ids(place / "plan.parquet"))


def test_shares_are_planned_apart_and_add_up_to_the_grid(here, seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = seeds(40)
    whole = json.loads(here("plan", grid, "--json").stdout)
    assert (whole["shard"], whole["n_trials"], whole["n_other_shards"]) == (None, 40, 0)
    sizes = []
    for i in range(1, N_SHARDS + 1):
        share = f"{i}/{N_SHARDS}"
        found = json.loads(here("plan", grid, "--shard", share, "--json").stdout)
        assert found["shard"] == share
        assert found["sweep_dir"] == f"runs/g-{i}-of-{N_SHARDS}"
        assert found["n_trials"] + found["n_other_shards"] == 40
        sizes.append(found["n_trials"])
        said = " ".join(here("plan", grid, "--shard", share).stdout.split())
        assert f"shard {share} {sizes[-1]} of 40 trials" in said
    assert sum(sizes) == 40


def test_shares_run_in_directories_of_their_own_and_no_trial_moves(here, seeds, launch):
    for i in range(1, N_SHARDS + 1):
        assert launch(seeds(6), f"{i}/{N_SHARDS}").returncode == 0
    folders = [Path(f"runs/g-{i}-of-{N_SHARDS}") for i in range(1, N_SHARDS + 1)]
    before = [planned(folder) for folder in folders]
    assert sum(map(len, before)) == len(set.union(*before)) == 6
    assert [set(open_store(folder).complete_ids()) for folder in folders] == before

    for i, folder in enumerate(folders, 1):
        done = launch(seeds(9), f"{i}/{N_SHARDS}", "--limit", "1")
        assert done.returncode in (0, 4)
        assert before[i - 1] <= planned(folder)
        assert here("resume", folder, "--executor", "local", "-y").returncode == 0
        assert set(open_store(folder).complete_ids()) == planned(folder)
    after = [planned(folder) for folder in folders]
    assert sum(map(len, after)) == len(set.union(*after)) == 9


def test_a_directory_has_one_share(seeds, launch, here):
    grid = seeds(4)
    assert launch(grid, "1/2", "--sweep-dir", "one").returncode == 0
    before = planned(Path("one"))
    for options, wanted in ((["--shard", "2/2"], "shard 2/2"), ([], "all trials")):
        refused = here("launch", grid, "--sweep-dir", "one", "--executor", "local", "-y", *options)
        assert refused.returncode == 2
        assert f"one: holds shard 1/2 of `g`, and {wanted} would be launched" in refused.stderr
        assert "hint: leave out --sweep-dir" in refused.stderr
    assert planned(Path("one")) == before
    assert launch(grid, "1/2", "--sweep-dir", "one").returncode == 0


def test_a_directory_of_the_whole_sweep_takes_no_share(here, seeds, tmp_path):
    grid, folder = seeds(2), tmp_path / "whole"
    run = ("launch", grid, "--sweep-dir", folder, "--executor", "local", "-y")
    assert here(*run).returncode == 0
    refused = here(*run, "--shard", "1/2")
    assert refused.returncode == 2
    assert "holds all trials of `g`, and shard 1/2 would be launched" in refused.stderr


def test_an_empty_share_is_complete(here, seeds, launch):
    grid, count = seeds(2), 50
    ids = [trial.trial_id for trial in expand(load_grid(grid)).trials]
    empty = next(i for i in range(1, count) if not any(map(Shard(i, count).holds, ids)))
    done = launch(grid, f"{empty}/{count}")
    assert (done.returncode, "0 trials" in done.stderr) == (0, True)
    folder = Path(f"runs/g-{empty}-of-{count}")
    assert json.loads(here("status", folder, "--json").stdout)["n_planned"] == 0
    assert here("resume", folder, "--executor", "local", "-y").returncode == 0
    assert here("verify", folder).returncode == 0
    assert open_store(folder).trial_ids() == []


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b"])
def test_a_share_that_is_none_is_an_error_of_two_lines(here, seeds, text):
    for command in ("plan", "launch"):
        refused = here(command, seeds(2), "--shard", text)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[0] == f"error: --shard: `{text}`; `i/N`, i from 1 to N"
        assert refused.stderr.splitlines()[-1].startswith("hint: ")
