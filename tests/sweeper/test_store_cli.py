"""`sweeper export` and `sweeper import` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.tiles import open_distances
from sweeper.store import open_store
from sweeper.store.index import read_index
from sweeper.sweep_dir import SweepDir

GRID = """\
name: two
base: {data.name: digits, model.name: fc, optim.name: sgd, optim.lr: 0.1, epochs: 2}
axes: {seed: {range: [0, 2]}}
"""
TRIAL = """\
data.name: digits
model: {name: external/theirs}
optim: {name: sgd, lr: 0.1}
epochs: 2
"""


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(done, code: int = 2) -> str:
    """Assert the house's form of an error; returns its text."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert re.search(r"^error: .+\n\nhint: .", done.stderr, re.MULTILINE), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def launched() -> dict[str, Path]:
    """The finished sweep, launched once, by `runs`."""
    return {}


@pytest.fixture
def runs(here, launched, tmp_path_factory, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with `two.yaml` and the finished sweep `runs/two` of two trials."""
    if not launched:
        made = tmp_path_factory.mktemp("launched")
        monkeypatch.chdir(made)
        (made / "two.yaml").write_text(GRID)
        done = here("launch", "two.yaml", "--executor", "local", "-y")
        assert done.returncode == 0, done.stderr
        launched["made"] = made
    shutil.copytree(launched["made"], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def theirs(runs: Path) -> Callable[..., Path]:
    """Write the arrays of one of our trials, changed, and a configuration of somebody else's."""

    def write(config: str = TRIAL, **changes: object) -> tuple[str, str, str, str]:
        store = open_store("runs/two")
        trial = store.complete_ids()[0]
        moments = store.snapshots(trial)
        arrays = {
            "log_probs": store.log_probs(trial, "test"),
            "steps": moments["step"],
            "epochs": moments["epoch"],
            "labels": store.labels("test", trial),
        }
        np.savez("theirs.npz", **(arrays | changes))
        Path("trial.yaml").write_text(config)
        return "two", "theirs.npz", "--config", "trial.yaml"

    return write


# --- export -----------------------------------------------------------------------------------


def test_an_export_lies_in_the_sweep_directory_and_says_how_many_rows_it_has(here, runs):
    before = tree(runs)
    done = here("export", "runs/two", "--predictions")
    assert done.stdout.splitlines() == [
        "runs/two/export/predictions.parquet: 2,160 rows",
        "runs/two/export/snapshots.parquet: 6 rows",
        "runs/two/export/trials.parquet: 2 rows",
    ]
    trials = pd.read_parquet("runs/two/export/trials.parquet").set_index("trial_id")
    expected = open_store("runs/two").trials()
    assert trials["digest"].equals(expected["digest"].astype(trials["digest"].dtype))
    assert list(trials.columns) == list(expected.columns)
    assert {path: data for path, data in tree(runs).items() if path in before} == before


def test_an_export_of_some_trials_goes_where_it_is_asked_to(here, runs):
    done = here(
        "export", "runs/two", "--out", "here", "--where", "seed == 1", "--format", "parquet"
    )
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet("here/trials.parquet")["seed"].tolist() == [1]
    assert not Path("runs/two/export").exists()


@pytest.mark.parametrize("place", ["runs/two/predictions.zarr", "file://{}/runs/two"])
def test_a_store_without_its_sweep_directory_has_to_be_told_where_to(here, runs, place):
    place = place.format(runs)
    before = tree(runs)
    message = fails(here("export", place))
    assert "--out: missing" in message
    assert tree(runs) == before
    assert here("export", place, "--out", "here").returncode == 0
    assert len(pd.read_parquet("here/trials.parquet")) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "no prediction store here"),
        (("runs/two", "--where", "sead == 1"), "did you mean `seed`?"),
        (("runs/two", "--where", "seed =="), "--where"),
        (("runs/two", "--where", "seed == 7"), "holds for none of 2 trials"),
        (("runs/two", "--out", "two.yaml"), "two.yaml"),
    ],
)
def test_an_export_that_cannot_be_made_changes_nothing(here, runs, arguments, said):
    before = tree(runs)
    assert said in fails(here("export", *arguments))
    assert tree(runs) == before


def test_another_format_is_refused(here, runs):
    done = here("export", "runs/two", "--format", "csv")
    assert done.returncode == 2
    assert "parquet" in done.stderr
    assert not Path("runs/two/export").exists()


def test_damage_ends_an_export_with_exit_code_5(here, runs):
    assert here("export", "runs/two", "--predictions").returncode == 0
    (shard, *_) = Path("runs/two/predictions.zarr/trials").rglob("c.0.0.0")
    shard.write_bytes(shard.read_bytes()[:-9])
    before = tree(runs)
    assert "damaged" in fails(here("export", "runs/two", "--predictions"), code=5)
    assert tree(runs) == before


# --- import -----------------------------------------------------------------------------------


def test_what_others_trained_is_beside_ours_in_every_command(here, runs, theirs):
    arguments = theirs()
    done = here("import", *arguments)
    assert done.returncode == 0, done.stderr
    trial, digest = done.stdout.split()
    assert "3 snapshots imported" in done.stderr

    store = open_store("runs/two")
    trials = store.trials()
    assert (len(trials), trials.loc[trial, "digest"]) == (3, digest)
    assert trial in read_index(store.objects).rows
    ours = store.complete_ids()[0]
    np.testing.assert_allclose(
        store.log_probs(trial, "test"), store.log_probs(ours, "test"), rtol=2e-3, atol=2e-3
    )
    assert here("verify", "runs/two").returncode == 0
    assert here("export", "runs/two").stdout.splitlines()[-1].endswith("3 rows")

    before = tree(runs)
    again = here("import", *arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "was there already" in again.stderr
    assert tree(runs) == before

    status = here("status", "runs/two").stdout
    assert re.search(r"complete +2\n", status), "the two that are planned"
    later = here("launch", "two.yaml", "--executor", "local", "-y")
    assert "1 complete trials are not in this plan; they stay stored" in later.stderr
    assert "2 complete, 0 to run" in later.stderr
    assert open_store("runs/two").trials().loc[trial, "digest"] == digest

    analysed = here("analyze", "all", "runs/two")
    assert analysed.returncode == 0, analysed.stderr
    rows = pd.read_parquet("runs/two/analysis/snapshots.parquet")
    distances = open_distances("runs/two")[:, :]
    of_ours, of_theirs = (np.flatnonzero(rows["trial_id"] == name) for name in (ours, trial))
    np.testing.assert_allclose(distances[of_ours, of_theirs], 0, atol=1e-4)
    assert "external/theirs" in Path("runs/two/analysis/report.html").read_text()


def test_a_sweep_is_named_or_its_directory_is_given(here, runs, theirs):
    _, *rest = theirs()
    assert here("import", runs / "runs/two", *rest).returncode == 0
    assert "was there already" in here("import", "two", *rest).stderr
    assert "did you mean `two`?" in fails(here("import", "twoo", *rest))
    assert "sweeper launch" in fails(here("import", "another", *rest))


def test_the_loss_and_accuracy_that_we_recorded_agree_with_float16_predictions(here, runs, theirs):
    store = open_store("runs/two")
    recorded = store.snapshots(store.complete_ids()[0])[["test_loss", "test_accuracy"]]
    arguments = theirs(**{name: recorded[name] for name in recorded})
    assert here("import", *arguments).returncode == 0


def test_arrays_in_another_order_are_refused_and_nothing_changes(here, runs, theirs):
    store = open_store("runs/two")
    labels = store.labels("test")
    arguments = theirs(labels=labels[::-1])
    before = tree(runs)
    message = fails(here("import", *arguments))
    assert "theirs.npz: sample 0 has label" in message
    assert "of 360 differ" in message
    assert tree(runs) == before


def test_another_trajectory_of_an_imported_trial_is_refused_and_nothing_changes(here, runs, theirs):
    assert here("import", *theirs()).returncode == 0
    log_probs = open_store("runs/two").log_probs(open_store("runs/two").complete_ids()[0], "test")
    arguments = theirs(log_probs=log_probs[[0, 2, 1]])
    before = tree(runs)
    message = fails(here("import", *arguments))
    assert "snapshot 1 differ" in message
    assert tree(runs) == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TRIAL.replace("epochs: 2", "epoch: 2"), "trial.yaml: epoch: unknown key"),
        (TRIAL.replace("epochs: 2", ""), "trial.yaml: epochs: missing"),
        (TRIAL.replace("external/theirs", "[external/a, external/b]"), "trial.yaml: model.name"),
        (TRIAL.replace("external/theirs", "thiers"), "unknown model `thiers`"),
        (TRIAL.replace("external/theirs", "fc"), "is trained here"),
        (TRIAL.replace("theirs", "theirs, width: 3"), "no option `width`"),
        (TRIAL.replace("0.1", "-0.1"), "optim.lr"),
        (TRIAL + "epochs: 3\n", "epochs"),
        (TRIAL + "model.name: external/other\n", "model.name: given twice"),
        (TRIAL + "}: {", "malformed YAML"),
        (TRIAL + "seed: ${epochs}", "interpolation"),
        ("3", "not a mapping"),
        (f"name: two\nbase:\n  {TRIAL}".replace("\n", "\n  "), "trial.yaml"),
    ],
    ids=str,
)
def test_a_configuration_that_is_no_trial_of_others_is_refused(here, runs, theirs, config, said):
    arguments = theirs(config)
    before = tree(runs)
    assert said in fails(here("import", *arguments))
    assert tree(runs) == before


@pytest.mark.parametrize("name", ["theirs.npz", "trial.yaml"])
def test_a_file_that_is_not_there_is_refused(here, runs, theirs, name):
    arguments = theirs()
    Path(name).unlink()
    before = tree(runs)
    assert f"{name}: " in fails(here("import", *arguments))
    assert tree(runs) == before


def test_arrays_that_are_no_trajectory_are_refused(here, runs, theirs):
    arguments = theirs(steps=np.array([0, 2, 1]))
    before = tree(runs)
    assert "theirs.npz: steps: 1 after 2" in fails(here("import", *arguments))
    assert tree(runs) == before


def test_nothing_is_imported_while_a_driver_holds_the_directory(here, runs, theirs):
    arguments = theirs()
    with SweepDir("runs/two").locked():
        message = fails(here("import", *arguments))
    assert "held by another driver" in message
    assert len(open_store("runs/two").trials()) == 2


def test_the_first_trial_of_a_sweep_can_be_an_imported_one(here, runs, theirs):
    ids = open_store("runs/two").sample_ids("test")
    arguments = theirs()
    shutil.rmtree("runs/two/predictions.zarr")
    assert here("import", *arguments).returncode == 0
    np.testing.assert_array_equal(open_store("runs/two").sample_ids("test"), ids)


# --- what was trained elsewhere is not trained here --------------------------------------------


@pytest.mark.parametrize(
    "key", ["model.name", "optim.name", "optim.schedule.name", "augment.name", "init.name"]
)
def test_a_grid_that_names_an_external_entry_is_refused(here, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    base = yaml.safe_load(GRID)["base"] | {key: "external/theirs"}
    Path("two.yaml").write_text(json.dumps({"name": "two", "base": base}))
    before = tree(tmp_path)
    for command in (("plan",), ("launch", "--executor", "local", "-y")):
        message = fails(here(*command, "two.yaml"))
        assert "two.yaml: " in message
        assert f"{key}: " in message
        assert "`external/theirs` was trained elsewhere" in message
        assert "hint: `sweeper import` brings its predictions" in message
    assert tree(tmp_path) == before
