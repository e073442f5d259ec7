"""A sweep that other drivers go on with, each in a directory of its own, by its store alone."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sweeper.plan import planned_ids
from sweeper.shard import Shard
from sweeper.store import open_store

LOCAL = ("--executor", "local", "-y")
SHORT = {"model": {"name": "fc", "widths": [16]}, "epochs": 1}


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seeds(grid_file, base) -> Callable[..., Path]:
    """Write a grid of so many short trials."""

    def write(n: int, name: str = "g") -> Path:
        return grid_file(name=name, base=base | SHORT, axes={"seed": {"range": [0, n]}})

    return write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def digests(place: Path | str) -> dict[str, str]:
    return dict(open_store(place).trials()["digest"])


def notes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def finished(folder: Path) -> Counter[str]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return Counter(line["trial"] for line in lines if line["event"] == "finished")


def test_a_store_alone_goes_on_where_the_directory_is_lost(here, seeds, store: Path):
    grid = seeds(3)
    assert here("launch", grid, "--sweep-dir", "whole", *LOCAL).returncode == 0
    here("launch", grid, "--store", store, "--limit", "1", *LOCAL)
    (done,) = digests(store)
    shutil.rmtree("runs")
    grid.unlink()

    resumed = here("resume", store, *LOCAL)
    assert resumed.returncode == 0, resumed.stderr
    assert "as it is kept in" in resumed.stderr
    assert "3 trials, 1 complete, 2 to run" in resumed.stderr
    folder = Path("runs/g")
    assert digests(folder) == digests(store) == digests("whole")
    assert finished(folder) == dict.fromkeys(digests(store), 1)
    lines = list(map(json.loads, (folder / "journal.jsonl").read_text().splitlines()))
    assert (lines[0]["event"], lines[0]["trial"], lines[0]["state"]) == (
        "finished",
        done,
        "complete",
    )
    assert [line["trial"] for line in lines if line["event"] == "started"].count(done) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["store"], len(manifest["launches"])) == (str(store), 2)

    again = here("resume", f"{store}/sweeps/g/", *LOCAL)
    assert again.returncode == 0
    assert "0 to run" in again.stderr
    assert "as it is kept in" not in again.stderr
    assert sorted(path.name for path in (store / "sweeps/g").iterdir()) == [
        *("grid.yaml", "plan.parquet", "sweep.json")
    ]


def test_the_same_launch_line_goes_on_anywhere(here, seeds, store: Path):
    here("launch", seeds(2), "--store", store, "--sweep-dir", "one", "--limit", "1", *LOCAL)
    done = here("launch", seeds(2), "--store", store, "--sweep-dir", "two", *LOCAL)
    assert done.returncode == 0
    assert "2 trials, 1 complete, 1 to run" in done.stderr
    one, two = (json.loads(Path(name, "manifest.json").read_text()) for name in ("one", "two"))
    assert one["created"] == two["created"]
    assert two["launches"][:1] == one["launches"]


def test_a_grid_that_was_extended_elsewhere_is_known(here, seeds, store: Path):
    here("launch", seeds(2), "--store", store, "--sweep-dir", "one", *LOCAL)
    here("resume", store, "--sweep-dir", "two", *LOCAL)
    extended = seeds(4)
    assert here("launch", extended, "--sweep-dir", "two", "--limit", "1", *LOCAL).returncode == 0
    for place in ("one", str(store)):
        options = () if place == "one" else ("--sweep-dir", "three")
        done = here("resume", place, *options, "--limit", "1", *LOCAL)
        assert "4 trials" in done.stderr, done.stderr
    assert len(planned_ids(Path("one/plan.parquet"))) == 4
    assert Path("one/grid.yaml").read_text() == extended.read_text()
    assert len(digests(store)) == 4
    launches = json.loads((store / "sweeps/g/sweep.json").read_text())["launches"]
    assert len(launches) == 5


def test_a_directory_of_another_sweep_is_left_alone(here, seeds, store: Path):
    here("launch", seeds(1), "--store", store, "--sweep-dir", "one", *LOCAL)
    here("launch", seeds(1), "--sweep-dir", "other", *LOCAL)
    before = notes(Path("other"))
    refused = here("resume", store, "--sweep-dir", "other", *LOCAL)
    assert refused.returncode == 2
    assert "other: not the sweep that is kept in `" in refused.stderr
    assert "hint: another --sweep-dir" in refused.stderr
    assert notes(Path("other")) == before
    refused = here("resume", "one", "--sweep-dir", "two", *LOCAL)
    assert "--sweep-dir: given, and `one` is a sweep directory" in refused.stderr


def test_another_grid_of_the_name_does_not_take_a_sweep_over(
    here, seeds, grid_file, base, store: Path
):
    here("launch", seeds(1), "--store", store, "--sweep-dir", "one", *LOCAL)
    before = notes(store / "sweeps/g")
    other = grid_file(name="g", base=base | SHORT | {"epochs": 2})
    for _ in range(2):
        refused = here("launch", other, "--store", store, "--sweep-dir", "two", *LOCAL)
        assert refused.returncode == 2
        assert "sweeps/g: a sweep that has none of the 1 trials of this grid" in refused.stderr
        assert "hint: give the grid another name" in refused.stderr
    assert notes(store / "sweeps/g") == before
    edited = here("launch", other, "--sweep-dir", "one", *LOCAL)
    assert edited.returncode == 0, "whose directory it is may change the grid"


def test_one_of_several_sweeps_is_named(here, seeds, store: Path):
    for name in ("g", "h"):
        here("launch", seeds(1, name), "--store", store, "--limit", "1", *LOCAL)
    shutil.rmtree("runs")
    refused = here("resume", store, *LOCAL)
    assert refused.returncode == 2
    assert f"{store}: holds 2 sweeps: `g`, `h`; one sweep" in refused.stderr
    assert here("resume", store / "sweeps" / "h", *LOCAL).returncode == 0
    assert [path.name for path in Path("runs").iterdir()] == ["h"]


def test_shards_may_share_a_store(here, seeds, store: Path):
    grid = seeds(4)
    for i in (1, 2):
        done = here("launch", grid, "--shard", f"{i}/2", "--store", store, "--limit", "1", *LOCAL)
        assert "are not in this plan" not in done.stderr
    shutil.rmtree("runs")
    assert sorted(path.name for path in (store / "sweeps").iterdir()) == ["g-1-of-2", "g-2-of-2"]
    for i in (1, 2):
        done = here("resume", store / f"sweeps/g-{i}-of-2", *LOCAL)
        assert done.returncode == 0
        manifest = json.loads(Path(f"runs/g-{i}-of-2/manifest.json").read_text())
        assert manifest["shard"] == str(Shard(i, 2))
    assert len(digests(store)) == 4
    folders = [Path(f"runs/g-{i}-of-2") for i in (1, 2)]
    assert sum((finished(folder) for folder in folders), Counter()) == dict.fromkeys(
        digests(store), 1
    )


@pytest.mark.parametrize("place", ["nothing", ".", "memory://nowhere/at-all"])
def test_a_place_without_a_sweep_is_refused(here, place: str):
    for command in (("resume", place, *LOCAL), ("status", place)):
        refused = here(*command)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {'--store' if '://' in place else place}: ")
        assert "hint: " in refused.stderr
    assert not list(Path().iterdir())


# --- one driver at a time --------------------------------------------------------------------


def leave_claim(store: Path, age: float) -> None:
    """The claim of a driver on another machine, renewed so long ago."""
    found = {"host": "elsewhere", "pid": 4321, "t": time.time() - age, "token": "theirs"}
    (store / "sweeps/g/driver.json").write_text(json.dumps(found))


def test_a_second_driver_is_refused_while_the_first_lives(here, seeds, store: Path):
    grid = seeds(2)
    here("launch", grid, "--store", store, "--sweep-dir", "one", "--limit", "1", *LOCAL)
    leave_claim(store, age=5.0)
    for command in (
        ("launch", grid, "--store", store, "--sweep-dir", "two"),
        ("launch", grid, "--sweep-dir", "one"),
        ("resume", "one"),
        ("resume", store, "--sweep-dir", "three"),
    ):
        refused = here(*command, *LOCAL)
        assert refused.returncode == 2
        assert f"{store}/sweeps/g: held by another driver, process 4321 on elsewhere" in (
            refused.stderr
        )
        assert "another can take over in 5" in refused.stderr
    assert not Path("three").exists()
    assert len(digests(store)) == 1
    shown = here("status", store).stdout.splitlines()
    assert shown[0] == f"{store}: 2 trials, driven by process 4321 on elsewhere"
    counts = json.loads(here("status", store, "--json", "--state", "waiting").stdout)["counts"]
    assert (counts["complete"], counts["waiting"]) == (0, 1)

    leave_claim(store, age=500.0)
    assert here("resume", store, *LOCAL).returncode == 0
    assert not (store / "sweeps/g/driver.json").exists()


def test_a_sweep_with_its_store_has_no_claim(here, seeds):
    assert here("launch", seeds(1), "--sweep-dir", "one", *LOCAL).returncode == 0
    assert not Path("one/sweeps").exists()
