"""A sweep that other drivers go on with, each in a directory of its own, by its store alone."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.plan import planned_ids
from sweeper.shard import Shard
from sweeper.store import claim, open_store

LOCAL = ("--executor", "local", "-y")
SHORT = {"model": {"name": "fc", "widths": [16]}, "epochs": 1}


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def leave_claim(store: Path, age: float = 5.0, name: str = "g", **others: object) -> None:
    """The claim of a driver on another machine, renewed so long ago."""
    found = {"host": "elsewhere", "pid": 4321, "t": time.time() - age, "token": "theirs"}
    path = store / "sweeps" / name / "driver.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {"directory": "/far/runs/g"} | others))


@pytest.fixture
def claims(store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the driver elsewhere, of the sweep of a name, renews while it is waited for."""
    lives: dict[str, bool] = {}

    def pause(seconds: float) -> None:
        for name in lives:
            if lives[name]:
                leave_claim(store, name=name, n=time.monotonic_ns())

    monkeypatch.setattr(claim, "_pause", pause)
    return lives


HELD = "held by another driver, process 4321 on elsewhere"


def test_a_second_driver_is_refused_while_the_first_lives(here, seeds, store: Path, claims):
    grid = seeds(2)
    here("launch", grid, "--store", store, "--sweep-dir", "one", "--limit", "1", *LOCAL)
    claims["g"] = True
    leave_claim(store)
    for command in (
        ("launch", grid, "--store", store, "--sweep-dir", "two"),
        ("launch", grid, "--sweep-dir", "one"),
        ("resume", "one"),
        ("resume", store, "--sweep-dir", "three"),
    ):
        refused = here(*command, *LOCAL)
        assert refused.returncode == 2
        assert f"{store}/sweeps/g: {HELD}" in refused.stderr
        assert "`sweeper stop /far/runs/g` on elsewhere" in refused.stderr
    assert not Path("three").exists()
    assert len(digests(store)) == 1

    claims["g"] = False
    resumed = here("resume", store, *LOCAL)
    assert resumed.returncode == 0
    assert resumed.stderr.count("waiting up to 60 s") == 1
    assert not (store / "sweeps/g/driver.json").exists()


def test_a_sweep_and_a_share_of_it_are_not_driven_at_once(here, seeds, store: Path, claims):
    grid = seeds(2)
    launch = ("launch", grid, "--store", store, *LOCAL)
    for theirs, ours, name in (
        ("g", ("--shard", "1/2"), "g-1-of-2"),
        ("g-1-of-2", (), "g"),
        ("g-1-of-4", ("--shard", "1/2"), "g-1-of-2"),
    ):
        claims[theirs] = True
        leave_claim(store, name=theirs)
        refused = here(*launch, *ours)
        assert refused.returncode == 2
        assert f"sweeps/{theirs}: {HELD}" in refused.stderr
        assert f"one driver at a time, and `{name}` has trials of `{theirs}`" in refused.stderr
        assert not (store / f"sweeps/{name}/driver.json").exists()
        claims.clear()
        (store / f"sweeps/{theirs}/driver.json").unlink()
    claims["g-1-of-2"] = True
    leave_claim(store, name="g-1-of-2")
    assert here(*launch, "--shard", "2/2").returncode == 0
    claims["g-1-of-2"] = False
    assert here(*launch).returncode == 0, "that driver is dead"
    assert len(digests(store)) == 2


@pytest.mark.parametrize("age", [5.0, 7200.0, -7200.0])
def test_a_driver_elsewhere_is_shown_and_is_stopped_there(here, seeds, store: Path, age: float):
    here("launch", seeds(2), "--store", store, "--sweep-dir", "one", "--limit", "1", *LOCAL)
    assert here("status", "one").stdout.startswith("one: 2 trials, not running")
    leave_claim(store, age)
    for place in ("one", str(store)):
        said = here("status", place).stdout.splitlines()[0]
        assert said.startswith(f"{place}: 2 trials, driven by process 4321 on elsewhere, heard of")
        found = json.loads(here("status", place, "--json", "--state", "waiting").stdout)
        assert (found["counts"]["complete"], found["counts"]["waiting"]) == (0, 1)
        assert (found["driver"]["host"], found["driver"]["pid"]) == ("elsewhere", 4321)
    refused = here("stop", "one")
    assert refused.returncode == 2
    assert "one: driven by process 4321 on elsewhere, heard of" in refused.stderr
    assert "hint: `sweeper stop /far/runs/g` on elsewhere" in refused.stderr
    assert not Path("one/stop.request").exists()


def test_whom_nobody_hears_of_is_not_watched_for_good(here, seeds, store: Path, monkeypatch):
    here("launch", seeds(1), "--store", store, "--sweep-dir", "one", *LOCAL)
    leave_claim(store)
    passed = itertools.count(0, 25)
    monkeypatch.setattr("sweeper.status.stored.time.monotonic", lambda: float(next(passed)))
    monkeypatch.setattr("sweeper.status.watch.watch.__defaults__", (lambda seconds: None,))
    *lines, _ = here("status", "one", "--watch").stdout.splitlines()
    assert lines[-1] == "one: 1 trials, complete"
    assert len(lines) > 2


def test_what_writes_into_a_store_waits_for_no_driver(here, seeds, store: Path, grid_file):
    here("launch", seeds(1), "--store", store, "--sweep-dir", "one", *LOCAL)
    leave_claim(store, age=5000.0, name="other")
    before = digests(store)
    for place in ("one", store, store / "predictions.zarr"):
        for command in (("verify", "--repair"), ("seal",)):
            refused = here(command[0], place, *command[1:])
            assert refused.returncode == 2
            assert f"{store}/sweeps/other: {HELD}, heard of 1 h 2" in refused.stderr
    assert here("verify", "one").returncode == 0, "it only reads"
    (store / "sweeps/other/driver.json").unlink()
    assert here("verify", "one", "--repair").returncode == 0
    assert digests(store) == before


def test_a_store_has_logs_and_no_journal(here, seeds, store: Path):
    here("launch", seeds(1), "--store", store, "--sweep-dir", "one", *LOCAL)
    (trial,) = digests(store)
    assert "snapshot" in here("logs", "one", trial).stdout
    for place in (str(store), f"file://{store}"):
        assert here("logs", place, trial).stdout == here("logs", "one", trial).stdout
        for command in ("failures", "stop"):
            refused = here(command, place)
            assert refused.returncode == 2
            assert f"{place}: a store, which has no journal" in refused.stderr
            assert "hint: the journal is in the directory of the sweep's" in refused.stderr
    followed = here("logs", store, trial, "--follow")
    assert (followed.returncode, followed.stderr) == (0, f"trial {trial} is complete\n")
    leave_claim(store)
    refused = here("failures", store)
    assert "hint: the journal is in `/far/runs/g` on elsewhere" in refused.stderr


def test_a_sweep_with_its_store_has_no_claim(here, seeds):
    assert here("launch", seeds(1), "--sweep-dir", "one", *LOCAL).returncode == 0
    assert not Path("one/sweeps").exists()
