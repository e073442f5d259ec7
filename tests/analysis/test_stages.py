"""The stages end to end, on a store; what is skipped, resumed and refused."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from typer.testing import CliRunner

from analysis import eigenpairs, stages, upper
from analysis.cli import _Progress, app
from analysis.inpca import inpca
from analysis.tiles import open_distances
from sweeper.errors import AnalysisError, MissingStoreError, StoreError
from sweeper.store import open_store


@pytest.fixture
def analysed(sweep: Path) -> Path:
    stages.distances(sweep)
    stages.embed(sweep)
    return sweep


def predictions(sweep: Path) -> np.ndarray:
    store = open_store(sweep)
    return np.concatenate([store.log_probs(t, "test") for t in ("t0", "t1", "t2", "t3")]).astype(
        float
    )


def test_distances_are_those_of_the_formula_in_the_order_of_the_rows(analysed):
    p = predictions(analysed)
    expected = -logsumexp((p[:, None] + p[None]) / 2, axis=-1).mean(axis=-1)
    d = open_distances(analysed)
    assert np.abs(d[:, :] - expected).max() < 1e-7
    rows = pd.read_parquet(analysed / "analysis" / "snapshots.parquet")
    assert list(rows.columns) == ["trial_id", "snapshot", "step", "epoch", "accuracy", "loss"]
    pd.testing.assert_frame_equal(rows, d.snapshots)


def test_references_are_half_the_loss_and_the_distance_to_uniform_rows(analysed):
    d, p = open_distances(analysed), predictions(analysed)
    labels = open_store(analysed).labels("test")
    half = -0.5 * p[:, np.arange(len(labels)), labels].mean(axis=1)
    assert d.references[0] == pytest.approx(half, abs=1e-7)
    assert d.references[0] == pytest.approx(d.snapshots["loss"] / 2, abs=2e-3)
    # Snapshot 0 of every trial is uniform: ignorance itself, ½ ln C from the truth.
    assert d.references[1, 0] == pytest.approx(0, abs=1e-6)
    assert d.references[0, 0] == pytest.approx(math.log(4) / 2, abs=1e-4)


def test_the_embedding_holds_the_keys_axes_and_numbers(analysed):
    folder = analysed / "analysis"
    table, document = (
        pd.read_parquet(folder / "embedding.parquet"),
        json.loads((folder / "inpca.json").read_text()),
    )
    found = inpca(open_distances(analysed), 10)
    assert list(table.columns)[6:] == [f"pc{i}" for i in range(1, 11)]
    assert table[[f"pc{i}" for i in range(1, 11)]].to_numpy() == pytest.approx(found.coordinates)
    assert document["eigenvalues"] == pytest.approx(found.eigenvalues.tolist())
    for name in ("explained_stress", "explained_frobenius", "explained_l1", "residuals"):
        assert document[name] == pytest.approx(getattr(found, name).tolist(), abs=1e-12), name
    for name in ("time_like_share", "bound", "n_certified"):
        assert document[name] == pytest.approx(getattr(found, name)), name
    placed = pd.read_parquet(folder / "references.parquet")
    assert list(placed["trial_id"]) == ["truth", "ignorance"]
    # Ignorance is snapshot 0, so it lies where snapshot 0 was embedded.
    assert placed.iloc[1, 1:4].to_list() == pytest.approx(table.iloc[0, 6:9].to_list(), abs=1e-4)


def test_unchanged_stages_are_skipped_and_say_so(analysed):
    stages.report(analysed)
    before = {p: p.stat().st_mtime_ns for p in (analysed / "analysis").rglob("*") if p.is_file()}
    said: list[str] = []
    stages.distances(analysed, say=said.append)
    stages.embed(analysed, say=said.append)
    stages.report(analysed, say=said.append)
    assert [line for line in said if "unchanged" in line] == [
        f"{stage}: unchanged" for stage in ("distances", "inpca", "report")
    ]
    kept = ("analysis/inpca.json", "embedding.parquet", "report.html", "c.0.0", ".png")
    for path, time in before.items():
        if str(path).endswith(kept):
            assert path.stat().st_mtime_ns == time


def test_a_new_trial_changes_every_stage(analysed, write_trial):
    write_trial(analysed, "t4", {"model.name": "cnn", "seed": 9})
    said: list[str] = []
    stages.report(analysed, say=said.append)
    assert "1 trials have completed since" in said[0]
    stages.distances(analysed, say=said.append)
    with pytest.raises(AnalysisError, match="the embedding is not of the distances here"):
        stages.report(analysed)
    stages.embed(analysed, say=said.append)
    stages.report(analysed, say=said.append)
    assert not [line for line in said if "unchanged" in line]
    table = pd.read_parquet(analysed / "analysis" / "embedding.parquet")
    assert set(table["trial_id"]) == {"t0", "t1", "t2", "t3", "t4"}


def test_a_selection_is_kept_in_every_artifact(sweep):
    stages.distances(sweep, "model.name == 'vit'")
    stages.embed(sweep, 3)
    stages.report(sweep)
    document = json.loads((sweep / "analysis" / "inpca.json").read_text())
    about = document["provenance"]
    assert about["parameters"]["where"] == "model.name == 'vit'"
    assert set(about["inputs"]["digests"]) == {"t2", "t3"}
    assert about["left_out"] == {"incomplete": ["t9"], "not selected": ["t0", "t1", "t8"]}
    assert about["parameters"]["coefficient_floor"] == 2.0**-60
    assert len(document["eigenvalues"]) == 3


def page_data(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def test_the_report_is_one_file_that_names_every_trial(analysed):
    page, *figures = stages.report(analysed)
    text = page.read_text(encoding="utf-8")
    own = text.replace(re.search(r"<script>(.*?)</script>", text, re.S)[1], "")
    assert not re.findall(r"(?:src|href)=|@import|url\(", own)
    data = page_data(page)
    assert [row[0] for row in data["trials"]["rows"]] == ["t0", "t1", "t2", "t3", "t8", "t9"]
    assert data["trials"]["kept"] == [True] * 4 + [False] * 2
    assert data["left_out"] == {"diverged": ["t8"], "incomplete": ["t9"]}
    assert {point["trial"] for point in data["points"]} == {"t0", "t1", "t2", "t3"}
    assert {point["name"] for point in data["references"]} == {"truth", "ignorance"}
    columns = {column["name"]: column for column in data["columns"]}
    assert columns["model.name"]["values"] == ["fc", "vit"]
    assert columns["model.name"]["of"] == [0, 0, 1, 1]
    assert list(columns) == ["model.name", "optim.lr", "seed"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert len(figures) == 4


def test_text_of_a_configuration_cannot_end_the_pages_script(sweep, write_trial):
    write_trial(sweep, "t4", {"model.name": "</script><b>"})
    stages.distances(sweep)
    stages.embed(sweep)
    page, *_ = stages.report(sweep)
    columns = {column["name"]: column for column in page_data(page)["columns"]}
    assert "</script><b>" in columns["model.name"]["values"]


def test_a_sweep_of_two_snapshots_is_analysed_and_drawn(tmp_path, write_trial):
    write_trial(tmp_path, "t0", n_snapshots=2)
    stages.distances(tmp_path)
    stages.embed(tmp_path)
    stages.report(tmp_path)
    assert len(json.loads((tmp_path / "analysis" / "inpca.json").read_text())["eigenvalues"]) == 1


def test_a_time_like_axis_is_called_so(analysed):
    from analysis.contents import gather

    contents = gather(analysed, analysed / "analysis")
    contents.spectrum["eigenvalues"][1] = -0.5
    assert contents.axis(1) == "PC 1"
    assert contents.axis(2) == "PC 2 (time-like)"


@pytest.mark.parametrize(
    ("stage", "message"),
    [(stages.embed, "no distances here"), (stages.report, "no embedding here")],
)
def test_a_stage_before_its_predecessor_says_what_to_run(sweep, stage, message):
    with pytest.raises(AnalysisError, match=message) as caught:
        stage(sweep)
    assert "run `sweeper analyze" in caught.value.hint


def test_a_damaged_table_is_made_again(analysed):
    table = analysed / "analysis" / "embedding.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"embedding\.parquet: unreadable"):
        stages.report(analysed)
    stages.embed(analysed)
    stages.report(analysed)


def test_a_failed_analysis_leaves_the_previous_one_as_it_was(sweep):
    stages.distances(sweep, "trial_id != 't3'")
    stages.embed(sweep)
    stages.report(sweep)
    folder = sweep / "analysis"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    [chunk] = (sweep / "predictions.zarr" / "trials" / "t3").rglob("log_probs/c.*")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(StoreError, match="t3"):
        stages.distances(sweep)
    assert {path: path.read_bytes() for path in before} == before
    assert list(open_distances(sweep).snapshots["trial_id"].unique()) == ["t0", "t1", "t2"]
    said: list[str] = []
    stages.embed(sweep, say=said.append)
    stages.report(sweep, say=said.append)
    assert said == ["inpca: unchanged", "report: unchanged"]


def test_no_store_and_a_store_without_a_sweep_are_refused(sweep, tmp_path):
    with pytest.raises(MissingStoreError):
        stages.distances(tmp_path / "nothing")
    with pytest.raises(AnalysisError, match="a store, not a sweep directory"):
        stages.distances(sweep / "predictions.zarr")
    assert not (sweep / "predictions.zarr" / "analysis").exists()


def test_the_commands_print_paths_to_stdout_and_messages_to_stderr(sweep):
    result = CliRunner().invoke(app, ["all", str(sweep), "--components", "4"])
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in paths][:6] == [
        "distances.zarr",
        "snapshots.parquet",
        "embedding.parquet",
        "references.parquet",
        "inpca.json",
        "report.html",
    ]
    assert all(path.exists() for path in paths)
    assert "4 trials, 20 snapshots" in result.stderr
    assert "left out, diverged: 1 (t8)" in result.stderr


def test_trials_may_count_alike_whatever_their_number_of_snapshots(sweep, write_trial):
    write_trial(sweep, "t4", {"model.name": "cnn", "seed": 9}, n_snapshots=12)
    stages.distances(sweep)
    stages.embed(sweep)
    plain = pd.read_parquet(sweep / "analysis" / "embedding.parquet")
    result = CliRunner().invoke(app, ["inpca", str(sweep), "--weigh", "trials"])
    assert result.exit_code == 0, result.output
    assert "unchanged" not in result.stderr
    document = json.loads((sweep / "analysis" / "inpca.json").read_text())
    assert document["provenance"]["parameters"]["weigh"] == "trials"
    table = pd.read_parquet(sweep / "analysis" / "embedding.parquet")
    axes = [f"pc{i}" for i in range(1, 11)]
    means = table.groupby("trial_id")[axes].mean()
    assert means.mean().abs().max() < 1e-12  # of trials' means, not of snapshots
    assert plain[axes].mean().abs().max() < 1e-12
    assert plain.groupby("trial_id")[axes].mean().mean().abs().max() > 1e-3
    references = pd.read_parquet(sweep / "analysis" / "references.parquet")
    assert references.loc[1, axes[:3]].to_list() == pytest.approx(
        table.loc[0, axes[:3]].to_list(), abs=1e-4
    )
    stages.report(sweep)


def test_axes_that_have_not_converged_are_said(sweep, monkeypatch):
    stages.distances(sweep)
    for module, name, value in (
        (eigenpairs, "DENSE", 0),
        (eigenpairs, "PASSES", 1),
        (eigenpairs, "WIDTH", 3),
        (upper, "RESIDENT", 0),
    ):
        monkeypatch.setattr(module, name, value)
    said: list[str] = []
    stages.embed(sweep, 2, said.append)
    assert [line for line in said if "is uncertain by" in line]


def test_what_cannot_be_weighed_is_refused(sweep):
    stages.distances(sweep)
    with pytest.raises(AnalysisError, match="--weigh: `trial`; trials") as caught:
        stages.embed(sweep, weigh="trial")
    assert caught.value.hint == "did you mean `trials`?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weigh", "nonsense"), "--weigh: `nonsense`; trials"),
        (("--components", "0"), "--components: `0`; 1 or more, fewer than there are snapshots"),
        (("--components", "-3"), "--components: `-3`; 1 or more"),
        (("--components", "20"), "--components: `20`; 1 or more, fewer than the 20 snapshots"),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_distances_are_computed(sweep, options, message):
    result = CliRunner().invoke(app, ["all", str(sweep), *options])
    assert isinstance(result.exception, AnalysisError)
    assert str(result.exception).startswith(message)
    assert not list(sweep.glob("analysis/distances*"))


def test_too_many_components_are_refused(sweep):
    stages.distances(sweep)
    with pytest.raises(AnalysisError, match="--components: `20`; 1 or more, fewer than the 20"):
        stages.embed(sweep, 20)


def test_progress_on_a_terminal_never_goes_back(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = _Progress("distances")
    for done in (0, 1.5, 3.0, 1, 2, 3):  # a square under way, done, and its three tiles stored
        shown(done, 3)
    lines = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert [line.split("/")[0].split()[-1] for line in lines] == ["0", "2", "3"]
    assert lines[-1].endswith("3/3 tiles\n")


def test_importing_the_command_line_loads_nothing_heavy():
    script = (
        "import sys, analysis.cli; "
        "print([m for m in ('torch', 'zarr', 'pandas', 'numpy', 'ray') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
