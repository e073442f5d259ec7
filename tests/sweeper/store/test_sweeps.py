"""What is kept of a sweep beside its store, and whose notes are the newer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import SweepDirError
from sweeper.plan import Size, make_plan, write_plan
from sweeper.store.sweeps import StoredSweep, _overlap, find_sweep
from sweeper.sweep_dir import SweepDir


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "folder" else f"memory://b/{tmp_path.name}"


def written(path: Path, *launches: float, created: float = 1.0, text: str = "plan") -> SweepDir:
    """A sweep directory, launched at these times."""
    folder = SweepDir(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.plan.write_text(f"{text} {launches}")
    folder.grid.write_text(f"grid {launches}")
    entries = [{"t": t} for t in launches]
    folder.write_manifest({"name": "x", "created": created, "launches": entries})
    return folder


def contents(folder: SweepDir) -> list[Any]:
    manifest = {key: value for key, value in folder.read_manifest().items() if key != "store"}
    return [folder.plan.read_text(), folder.grid.read_text(), manifest]


def test_a_new_directory_is_made_of_what_is_kept(root: str, tmp_path: Path):
    sweep, here, there = (
        StoredSweep(root, "x"),
        written(tmp_path / "a", 1),
        SweepDir(tmp_path / "b"),
    )
    assert not sweep.is_ahead_of(there)
    sweep.bring_up_to_date(there)
    assert not there.path.exists(), "nothing is kept yet"
    sweep.keep(here)
    assert sweep.is_ahead_of(there)
    sweep.bring_up_to_date(there)
    assert contents(there) == contents(here)
    assert there.root() == root
    assert not sweep.is_ahead_of(there)
    assert sorted(sweep.objects.names("")) == ["grid.yaml", "plan.parquet", "sweep.json"]


def test_a_grid_that_is_not_known_is_not_kept(root: str, tmp_path: Path):
    here = written(tmp_path / "a", 1)
    here.grid.unlink()
    sweep, there = StoredSweep(root, "x"), SweepDir(tmp_path / "b")
    sweep.keep(here)
    sweep.bring_up_to_date(there)
    assert not there.grid.exists()
    assert there.plan.read_text() == here.plan.read_text()


@pytest.mark.parametrize(
    ("here", "kept", "is_ahead"),
    [
        ((1,), (1,), False),
        ((1,), (1, 2), True),  # launched elsewhere
        ((1, 2), (1,), False),  # died before it was kept
        ((1, 2), (1, 3), True),  # both: what was never kept never ran
        ((1, 2, 3), (1, 3), True),
    ],
)
def test_the_one_that_ran_last_counts(here, kept, is_ahead, root: str, tmp_path: Path):
    sweep = StoredSweep(root, "x")
    sweep.keep(written(tmp_path / "a", *kept))
    folder = written(tmp_path / "b", *here)
    before = contents(folder)
    assert sweep.is_ahead_of(folder) is is_ahead
    sweep.bring_up_to_date(folder)
    assert contents(folder) == (contents(SweepDir(tmp_path / "a")) if is_ahead else before)


def test_another_sweep_is_left_alone(root: str, tmp_path: Path):
    sweep, other = StoredSweep(root, "x"), written(tmp_path / "b", 1, created=2.0)
    sweep.keep(written(tmp_path / "a", 1, 2))
    before = contents(other)
    with pytest.raises(SweepDirError, match="not the sweep that is kept in"):
        sweep.bring_up_to_date(other)
    assert contents(other) == before


def test_what_is_refused_leaves_the_directory_as_it_was(root: str, tmp_path: Path):
    sweep, kept = StoredSweep(root, "x"), written(tmp_path / "a", 1)
    write_plan(kept.plan, make_plan([], (), lambda config: Size(1, 1, 1)))
    sweep.keep(kept)
    folder = SweepDir(tmp_path / "b")
    folder.path.mkdir()
    folder.grid.write_text("mine")
    folder.plan.write_text("mine, too")
    with pytest.raises(SweepDirError, match="none of the 1 trials of this grid"):
        sweep.bring_up_to_date(folder, ["t1"])
    sweep.objects.write("plan.parquet", b"damaged")
    with pytest.raises(SweepDirError, match=r"x/plan\.parquet: no readable plan"):
        sweep.bring_up_to_date(folder, ["t1"])
    assert (folder.grid.read_text(), folder.plan.read_text()) == ("mine", "mine, too")
    assert not folder.manifest.exists()


@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        ("g", "g-1-of-2", True),
        ("g-1-of-2", "g-1-of-4", True),
        ("g-1-of-2", "g-2-of-2", False),
        ("g-1-of-2", "g-1-of-2", False),  # that is one claim
        ("g", "h-1-of-2", False),
        ("g", "h", False),
        ("g-1-of-2", "g-1-of-2-3-of-4", True),  # a sweep may be called so
    ],
)
def test_which_names_may_have_trials_in_common(one: str, other: str, may: bool):
    assert _overlap(one, other) is _overlap(other, one) is may


def test_what_is_damaged_is_said(root: str, tmp_path: Path):
    sweep = StoredSweep(root, "x")
    sweep.keep(written(tmp_path / "a", 1))
    sweep.objects.delete("plan.parquet")
    with pytest.raises(SweepDirError, match=r"x/plan\.parquet: missing"):
        sweep.bring_up_to_date(SweepDir(tmp_path / "b"))
    for data in (b"{", b"[]"):
        sweep.objects.write("sweep.json", data)
        with pytest.raises(SweepDirError, match=r"x/sweep\.json: (unreadable|not a mapping)"):
            sweep.bring_up_to_date(SweepDir(tmp_path / "b"))
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_the_only_sweep_is_found_and_one_of_several_is_named(root: str, tmp_path: Path):
    assert find_sweep(root) is None
    folder = written(tmp_path / "a", 1)
    StoredSweep(root, "one").keep(folder)
    StoredSweep(root, "begun").objects.write("plan.parquet", b"")  # its driver died in between
    for place in (root, f"{root}/sweeps/one"):
        found = find_sweep(place)
        assert found is not None
        assert (found.root, found.name) == (root, "one")
    assert find_sweep(f"{root}/sweeps/begun") is None

    StoredSweep(root, "two").keep(folder)
    with pytest.raises(SweepDirError) as caught:
        find_sweep(root)
    assert caught.value.found == "holds 2 sweeps: `one`, `two`"
    assert f"{root}/sweeps/one" in caught.value.hint
    found = find_sweep(f"{root}/sweeps/two")
    assert found is not None
    assert found.name == "two"


def test_many_sweeps_are_not_all_named(root: str, tmp_path: Path):
    folder = written(tmp_path / "a", 1)
    for i in range(1, 13):
        StoredSweep(root, f"x-{i:02}-of-12").keep(folder)
    with pytest.raises(SweepDirError, match=r"holds 12 sweeps: `x-01-of-12`.* and 9 more"):
        find_sweep(root)


@pytest.mark.parametrize("root", ["memory://sweeps", "memory://b/sweeps/x"])
def test_a_root_may_itself_be_called_so(root: str, tmp_path: Path):
    StoredSweep(root, "one").keep(written(tmp_path / "a", 1))
    found = find_sweep(root)
    assert found is not None
    assert (found.root, found.name) == (root, "one")
