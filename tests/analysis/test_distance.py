"""A matrix of another distance: through all stages, kept apart, never mixed with others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from typer.testing import CliRunner, Result

from analysis import maps, stages
from analysis.cli import app
from analysis.distance import KINDS, distance_of
from analysis.earlier import earlier_of
from analysis.inpca import inpca
from analysis.places import asked
from analysis.resampling import measure, stratified_counts
from analysis.tiles import aside, attributes_of, open_distances
from sweeper.errors import AnalysisError
from sweeper.store import open_store
from tests.analysis.test_stages import page_data

OTHERS = ["hellinger", "symmetrised-kl"]
EXACT = 1e-7  # float32, relative


def analyze(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )


def predictions(sweep: Path) -> np.ndarray:
    store = open_store(sweep)
    trials = [trial_id for trial_id in store.complete_ids() if trial_id != "t8"]  # it diverged
    return np.concatenate([store.log_probs(trial_id, "test") for trial_id in trials])


def measured(sweep: Path, name: str) -> np.ndarray:
    """What `check` computes, in another way."""
    log_p = predictions(sweep)
    n = log_p.shape[1]
    found = measure([(slice(0, n), torch.from_numpy(log_p))], stratified_counts(np.zeros(n), 2))
    return getattr(found, name.replace("-", "_"))


def check_equals(folder: Path, expected: np.ndarray) -> None:
    np.testing.assert_allclose(open_distances(folder)[:, :], expected, rtol=EXACT, atol=1e-13)


@pytest.mark.parametrize("name", OTHERS)
def test_all_stages_are_of_the_distance_and_leave_the_sweeps_own_as_they_were(sweep, name):
    analyze("all", sweep)
    own = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    folder = sweep / name
    done = analyze("all", sweep, "--distance", name, "--out", folder, "--components", 5)
    assert done.exit_code == 0, done.output
    assert "were there before" not in done.stderr
    check_equals(folder, measured(sweep, name))
    document = json.loads((folder / "analysis" / "inpca.json").read_bytes())
    assert distance_of(document["provenance"]) == name
    expected = inpca(measured(sweep, name), 5)
    np.testing.assert_allclose(document["eigenvalues"], expected.eigenvalues, rtol=1e-6)
    page = folder / "analysis" / "report.html"
    assert page_data(page)["distance"] == KINDS[name].text
    text = page.read_text(encoding="utf-8")
    assert f"Distances are {KINDS[name].text}, embedded by InPCA" in text
    assert {path: path.read_bytes() for path in own} == own
    for command in ("inpca", "report"):
        options = ("--components", 5) if command == "inpca" else ()
        assert "unchanged" in analyze(command, folder, *options).stderr


def test_the_page_of_a_sweep_says_that_it_is_of_bhattacharyya_distances(sweep):
    analyze("all", sweep)
    text = (sweep / "analysis" / "report.html").read_text(encoding="utf-8")
    assert "Distances are mean Bhattacharyya distances, embedded by InPCA" in text


@pytest.mark.parametrize("name", OTHERS)
def test_truth_and_ignorance_are_where_the_formula_places_them(sweep, tmp_path, name):
    stages.distances(tmp_path / "out", places=[str(sweep)], distance=name)
    log_p = log_softmax(predictions(sweep).astype(float), axis=-1)
    p, truth = np.exp(log_p), np.eye(4)[open_store(sweep).labels("test")]
    for found, q in zip(
        open_distances(tmp_path / "out").references, (truth, np.full(4, 0.25)), strict=True
    ):
        if name == "hellinger":
            expected = 1 - np.sqrt(p * q).sum(-1).mean(-1)
        else:
            log_q = np.log(np.maximum(q, 2.0**-60))
            expected = ((p - q) * (log_p - log_q)).sum(-1).mean(-1)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_a_new_trial_computes_only_its_rows(sweep, write_trial, name, monkeypatch):
    monkeypatch.setattr(stages, "TILE", 6)
    stages.distances(sweep / name, places=[str(sweep)], distance=name)
    write_trial(sweep, "t4", {"model.name": "cnn"})
    said: list[str] = []
    stages.distances(sweep / name, say=said.append, distance=name)
    assert f"{20 * 19 // 2} of {25 * 24 // 2} distances were there before" in said
    check_equals(sweep / name, measured(sweep, name))


KILLED = """
import sys
from pathlib import Path
from analysis import stages
stages.TILE = 6
stages.distances(Path(sys.argv[1]), places=[sys.argv[2]], distance=sys.argv[3])
"""


@pytest.mark.parametrize("name", OTHERS)
def test_a_killed_run_goes_on(sweep, tmp_path, name, monkeypatch):
    monkeypatch.setattr(stages, "TILE", 6)
    folder = tmp_path / "out"
    environment = os.environ | {"SWEEPER_CRASH_AT": "tile:4"}
    command = [sys.executable, "-c", KILLED, str(folder), str(sweep), name]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    with pytest.raises(AnalysisError, match=f"distances of the kind `{name}` are there"):
        stages.distances(folder)
    seen: list[float] = []
    progress = lambda done, total: seen.append(done)  # noqa: E731
    stages.distances(folder, progress=progress, distance=name)
    assert seen[0] >= 4
    check_equals(folder, measured(sweep, name))


# --- kept apart -----------------------------------------------------------------------------


def about_of(folder: Path) -> dict:
    return attributes_of(folder / "analysis" / "distances.zarr")["about"]


def test_an_earlier_matrix_of_another_distance_is_not_reused(sweep, tmp_path):
    for name in KINDS:
        stages.distances(tmp_path / name, places=[str(sweep)], distance=name)
    for name in KINDS:
        path = tmp_path / name / "analysis" / "distances.zarr"
        for other in KINDS:
            assert (earlier_of([path], about_of(tmp_path / other)) is None) == (name != other)


def test_an_earlier_matrix_that_names_no_distance_is_of_bhattacharyya_distances(sweep):
    stages.distances(sweep)
    path = sweep / "analysis" / "distances.zarr"
    now = about_of(sweep)
    attributes = json.loads((path / "zarr.json").read_bytes())
    del attributes["attributes"]["about"]["parameters"]["distance"]
    attributes["attributes"]["about"]["fingerprint"] = "before"
    (path / "zarr.json").write_text(json.dumps(attributes))
    assert earlier_of([path], now) is not None
    for name in OTHERS:
        other = json.loads(json.dumps(now))
        other["parameters"]["distance"] = name
        assert earlier_of([path], other) is None
    said: list[str] = []
    stages.distances(sweep, say=said.append)
    assert "190 of 190 distances were there before" in said


@pytest.mark.parametrize(("there", "wanted"), [("hellinger", "bhattacharyya"), OTHERS])
def test_distances_of_another_kind_are_not_replaced(sweep, tmp_path, there, wanted):
    folder = tmp_path / "out"
    stages.distances(folder, places=[str(sweep)], distance=there)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(AnalysisError) as caught:
        stages.distances(folder, distance=wanted)
    assert str(caught.value).startswith(f"{folder}: distances of the kind `{there}` are there;")
    assert f"--distance {there}" in caught.value.hint
    assert {path: path.read_bytes() for path in before} == before


def test_of_another_kind_that_was_refused_before_its_first_tile_nothing_is_there(sweep, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(AnalysisError, match="--memory"):
        stages.distances(folder, places=[str(sweep)], distance="symmetrised-kl", memory=1)
    stages.distances(folder, places=[str(sweep)], distance="hellinger")
    check_equals(folder, measured(sweep, "hellinger"))


def test_distances_of_another_kind_that_wait_to_be_reused_are_not_replaced(sweep, tmp_path):
    folder, places = tmp_path / "out", [str(sweep)]

    def stop(done: float, total: int) -> None:
        if isinstance(done, int) and done == 1:  # and not under way
            raise InterruptedError

    with pytest.raises(InterruptedError):  # when a tile is stored
        stages.distances(folder, "seed < 3", places=places, distance="hellinger", progress=stop)
    with pytest.raises(AnalysisError, match="--memory"):
        stages.distances(folder, places=places, distance="hellinger", memory=1)
    kept = sorted(aside(folder / "analysis" / "distances.zarr").rglob("*"))
    assert kept
    with pytest.raises(AnalysisError, match="distances of the kind `hellinger` are there"):
        stages.distances(folder, places=places)
    assert sorted(aside(folder / "analysis" / "distances.zarr").rglob("*")) == kept


def test_damaged_distances_of_any_kind_are_made_again(sweep, tmp_path):
    folder = tmp_path / "out"
    stages.distances(folder, places=[str(sweep)], distance="hellinger")
    (folder / "analysis" / "distances.zarr" / "zarr.json").write_text("{")
    stages.distances(folder, places=[str(sweep)], distance="hellinger")
    check_equals(folder, measured(sweep, "hellinger"))


@pytest.mark.parametrize("name", OTHERS)
def test_there_is_no_map_of_another_distance(sweep, name):
    analyze("all", sweep, "--distance", name, "--out", sweep / name, "--components", 3)
    match = f"of distances of the kind `{name}`; `bhattacharyya`"
    with pytest.raises(AnalysisError, match=match) as caught:
        maps.freeze(sweep / name)
    assert caught.value.hint == "name the sweep directory itself"
    assert not (sweep / name / "analysis" / "map.npz").exists()


@pytest.mark.parametrize("command", ["distances", "all"])
@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            ("--distance", "hellinger"),
            "--out: missing, for mean Hellinger distances, 1 − Σ √(pq); a folder of their own",
            "for example `--out tiny/hellinger`",
        ),
        (
            ("--distance", "symmetrised-kl", "--out", "tiny"),
            "--out: `tiny` is a sweep directory, whose artifacts are of mean Bhattacharyya dist",
            "for example `--out tiny/symmetrised-kl`",
        ),
        (
            ("--distance", "helinger", "--out", "x"),
            "--distance: `helinger`; one of bhattacharyya, hellinger, symmetrised-kl",
            "did you mean `hellinger`?",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    sweep, monkeypatch, command, options, message, hint
):
    monkeypatch.chdir(sweep.parent)
    before = sorted(sweep.parent.rglob("*"))
    with pytest.raises(AnalysisError) as caught:
        analyze(command, "tiny", *options)
    assert str(caught.value).startswith(message)
    assert caught.value.hint == hint
    assert sorted(sweep.parent.rglob("*")) == before


def test_the_folder_of_another_distance_may_be_named_by_itself(sweep):
    analyze("distances", sweep, "--distance", "hellinger", "--out", sweep / "hellinger")
    assert asked([str(sweep / "hellinger")], None, "hellinger")[0] == sweep / "hellinger"
    again = analyze("distances", sweep / "hellinger", "--distance", "hellinger")
    assert "distances: unchanged" in again.stderr
    shutil.rmtree(sweep / "predictions.zarr" / "trials" / "t3")
    analyze("distances", sweep / "hellinger", "--distance", "hellinger")
    check_equals(sweep / "hellinger", measured(sweep, "hellinger"))
