"""`sweeper verify` and `sweeper seal` as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sweeper.store import open_store
from sweeper.store.index import read_index
from sweeper.sweep_dir import SweepDir

GRID = """\
name: two
base: {data.name: digits, model.name: fc, optim.name: sgd, optim.lr: 0.1, epochs: 1}
axes: {seed: {range: [0, 2]}}
"""


def digests(folder: Path) -> dict[str, str]:
    return open_store(folder).trials()["digest"].to_dict()


@pytest.fixture
def launch(here, tmp_path: Path):
    """Launch, or launch again, the sweep of two trials."""
    grid, folder = tmp_path / "two.yaml", tmp_path / "two"
    grid.write_text(GRID)

    def run() -> Path:
        done = here("launch", grid, "--sweep-dir", folder, "--executor", "local", "-y")
        assert done.returncode == 0, done.stderr
        return folder

    return run


def test_a_damaged_trial_is_named_taken_out_and_run_again(here, launch):
    folder = launch()
    expected = digests(folder)
    trial, other = sorted(expected)
    (shard,) = (folder / f"predictions.zarr/trials/{trial}").rglob("c.0.0.0")
    shard.write_bytes(shard.read_bytes()[:-7])

    found = here("verify", folder)
    assert found.returncode == 5
    assert f"damaged: trial {trial}: " in found.stdout
    assert "--repair" in found.stdout

    repaired = here("verify", folder, "--repair")
    assert repaired.returncode == 0
    assert f"1 trials to be run again: {trial}" in repaired.stderr
    assert "sweeper resume" in repaired.stderr
    assert list(digests(folder)) == [other]
    assert here("verify", folder).returncode == 0
    assert json.loads(here("status", folder, "--json").stdout)["counts"]["waiting"] == 1

    launch()
    assert digests(folder) == expected
    assert here("verify", folder, "--repair").returncode == 0


def test_a_trial_that_somebody_removed_is_missed(here, launch):
    folder = launch()
    expected = digests(folder)
    trial = min(expected)
    shutil.rmtree(folder / f"predictions.zarr/trials/{trial}")
    found = here("verify", folder, "--json")
    assert found.returncode == 5
    (damage,) = json.loads(found.stdout)["damages"]
    assert damage["key"] == trial
    assert "not in the store" in damage["found"]
    assert "launch again" in damage["remedy"]
    launch()
    assert here("verify", folder).returncode == 0
    assert digests(folder) == expected


def test_a_damaged_set_of_samples_is_written_anew_from_the_data(here, launch):
    folder = launch()
    (labels,) = (folder / "predictions.zarr/samples").rglob("labels/c.0")
    expected = labels.read_bytes()
    labels.write_bytes(b"not labels")
    assert here("verify", folder).returncode == 5
    done = here("verify", folder, "--repair")
    assert (done.returncode, "1 sample sets written anew" in done.stderr) == (0, True)
    (labels,) = (folder / "predictions.zarr/samples").rglob("labels/c.0")
    assert labels.read_bytes() == expected
    assert here("verify", folder).returncode == 0


def test_nothing_is_repaired_while_a_driver_holds_the_directory(here, launch):
    folder = launch()
    (shard, *_) = (folder / "predictions.zarr/trials").rglob("c.0.0.0")
    shard.write_bytes(b"")
    with SweepDir(folder).locked():
        for place in (folder, f"file://{folder}", folder / "predictions.zarr"):
            done = here("verify", place, "--repair")
            assert done.returncode == 2
            assert "held by another driver" in done.stderr
    assert shard.exists()


def test_a_launch_leaves_an_index_and_verify_makes_it_anew(here, launch):
    folder = launch()
    objects = open_store(folder).objects
    assert len(read_index(objects).rows) == 2
    (folder / "predictions.zarr/index.parquet").write_bytes(b"")
    assert read_index(objects).rows == {}
    done = here("verify", folder, "--rebuild-index")
    assert (done.returncode, "2 trials indexed" in done.stderr) == (0, True)
    assert len(read_index(objects).rows) == 2


def test_what_was_recorded_to_its_end_is_sealed(here, tiny):
    ended, cut = tiny.record(1).header.trial_id, tiny.record(2, stop=2).header.trial_id
    done = here("seal", tiny.path)
    assert done.returncode == 0
    assert done.stdout == "1 trials sealed, 1 not recorded to their end\n"
    assert open_store(tiny.path).complete_ids() == [ended]
    assert open_store(tiny.path).trials().loc[cut, "state"] == "incomplete"
    assert tiny.objects.names("staging") == [cut]
    assert len(read_index(tiny.objects).rows) == 1
    assert here("seal", tiny.path).stdout == "0 trials sealed, 1 not recorded to their end\n"


def test_what_cannot_be_sealed_is_an_error_that_changes_nothing(here, tiny):
    trial = tiny.record(1).header.trial_id
    (tiny.path / f"staging/{trial}/1/test/log_probs/c.2.0.0").write_bytes(b"cut")
    done = here("seal", tiny.path)
    assert done.returncode == 5
    assert f"error: trial {trial}, snapshot 2: " in done.stderr
    assert "hint: " in done.stderr
    assert open_store(tiny.path).complete_ids() == []


# --- where a sweep cannot go -----------------------------------------------------------------


@pytest.fixture
def plan(here, tmp_path: Path):
    """Plan the sweep of two trials with these options."""
    grid = tmp_path / "two.yaml"
    grid.write_text(GRID)
    return lambda *options: here("plan", grid, *options)


def test_a_disk_that_is_too_small_is_refused_when_it_is_planned(plan, tmp_path, monkeypatch):
    from sweeper import room

    monkeypatch.setattr(room, "free_room", lambda folder: room.Room(40_000, 9))
    done = plan("--sweep-dir", tmp_path / "two")
    assert done.returncode == 2
    assert "two.yaml: 2 trials" in done.stdout  # the plan is shown all the same
    assert "bytes to write, 40,000 are free" in done.stderr
    assert "--force" in done.stderr
    forced = plan("--sweep-dir", tmp_path / "two", "--force")
    assert forced.returncode == 0
    assert forced.stderr.count("warning: ") == 2
    assert not (tmp_path / "two").exists()


def test_a_store_inside_another_store_is_refused(plan, launch, tmp_path):
    inside = launch() / "predictions.zarr" / "more"
    for options in (("--sweep-dir", inside), ("--sweep-dir", tmp_path / "x", "--store", inside)):
        done = plan(*options)
        assert done.returncode == 2
        assert "inside the store" in done.stderr
    assert not inside.exists()


@pytest.mark.parametrize(
    ("store", "found"),
    [
        ("s3://key:secret@bucket/x", "credentials or parameters in the URL"),
        ("s3://bucket/x?token=secret", "credentials or parameters in the URL"),
        ("ftp://bucket/x", "unknown scheme `ftp`"),
        ("s3://bucket/a//b", "a prefix that not every store can have"),
        ("memory://x", "which no worker could find"),
        ("", "which no worker could find"),
        ("s3://bucket/" + "a" * 1000, "a prefix of 100"),
    ],
)
def test_a_url_that_cannot_be_a_stores_is_refused_without_showing_secrets(plan, store, found):
    done = plan("--store", store)
    assert done.returncode == 2
    assert found in done.stderr
    assert "hint: " in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_path_that_is_too_long_is_refused(plan, tmp_path):
    done = plan("--sweep-dir", tmp_path / ("a" * 300))
    assert done.returncode == 2
    assert "a name of 300 characters" in done.stderr
