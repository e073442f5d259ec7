"""Where an analysis reads and where it writes, from the command line on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analysis import stages
from analysis.cli import app
from analysis.tiles import open_distances
from sweeper.errors import AnalysisError, StoreURLError, UnavailableStoreError
from sweeper.store import url
from sweeper.store.objects import open_objects
from sweeper.sweep_dir import SweepDir
from tests.s3_server import ACCESS_KEY, SECRET_KEY


def analyze(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )


@pytest.fixture
def runs(sweep: Path, tmp_path: Path, copy_trials, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sweeps `a` and `b`, which is the working directory."""
    folder = tmp_path / "runs"
    copy_trials(sweep, ("t0", "t3"), folder / "a")
    copy_trials(sweep, ("t1", "t2"), folder / "b")
    monkeypatch.chdir(folder)
    return folder


def trials_of(folder: Path | str) -> set[str]:
    return set(open_distances(folder).snapshots["trial_id"])


def test_each_stage_after_the_first_finds_the_places_by_itself(runs):
    done = analyze("distances", "a", "b", "--out", "merged")
    assert done.stdout.splitlines()[0] == "merged/analysis/distances.zarr"
    assert analyze("inpca", "merged", "--components", "3").exit_code == 0
    paths = analyze("report", "merged").stdout.splitlines()
    assert all(Path(path).is_relative_to("merged/analysis") for path in paths)
    assert trials_of("merged") == {"t0", "t1", "t2", "t3"}


def test_all_of_an_earlier_analysis_is_of_its_places_and_of_what_is_new_in_them(
    runs, sweep, copy_trials
):
    analyze("distances", "a", "b", "--out", "merged")
    assert "distances: unchanged" in analyze("distances", "merged").stderr
    copy_trials(sweep, ("t2",), runs / "c")
    shutil.rmtree(runs / "b")
    shutil.move(runs / "c", runs / "b")
    analyze("distances", "merged")
    assert trials_of("merged") == {"t0", "t2", "t3"}
    copy_trials(sweep, ("t1",), runs / "c")
    analyze("distances", "merged", "c", "--out", "more")
    places = [record["place"] for record in open_distances("more").about["places"]]
    assert places == ["../a", "../b", "../c"]


def test_a_sweep_whose_store_is_elsewhere_may_be_named_by_either(runs):
    SweepDir("seen").path.mkdir()
    SweepDir("seen").write_manifest({"name": "seen", "store": str(runs / "a")})
    assert analyze("distances", "a", "--out", "seen").exit_code == 0
    assert "distances: unchanged" in analyze("distances", "seen").stderr


def test_an_interrupted_first_analysis_goes_on_in_its_places(runs, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("analysis.fill._publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stages.distances(runs / "merged", places=["a", "b"])
    said: list[str] = []
    stages.distances(runs / "merged", say=said.append)
    assert "distances: unchanged" in said
    assert trials_of("merged") == {"t0", "t1", "t2", "t3"}


def test_artifacts_and_places_may_be_moved_together(runs, tmp_path, monkeypatch):
    analyze("all", "a", "b", "--out", "merged")
    shutil.move(runs, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert "report: unchanged" in analyze("report", "elsewhere/merged").stderr


def test_a_place_that_has_gone_is_named(runs):
    analyze("distances", "a", "b", "--out", "merged")
    analyze("inpca", "merged")
    shutil.rmtree(runs / "b")
    with pytest.raises(AnalysisError) as caught:
        analyze("report", "merged")
    assert "merged: an analysis of `merged/../b`, where there is no store" in str(caught.value)
    assert "sweeper analyze all PLACE... --out merged" in caught.value.hint
    assert analyze("inpca", "merged").stderr == "inpca: unchanged\n"  # it reads no predictions


def test_one_directory_keeps_its_artifacts_or_has_them_elsewhere(runs):
    analyze("distances", "a")
    assert open_distances("a").about["places"] == [{"place": ".", "trials": 2, "repeated": 0}]
    analyze("distances", f"file://{runs / 'a'}", "--out", runs / "here")
    assert trials_of("here") == {"t0", "t3"}
    assert "distances: unchanged" in analyze("distances", "a", "--out", "a").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b"), "--out: missing, for 2 places; a folder"),
        (("memory://sweeps/x",), "--out: missing, for `memory://sweeps/x`; a folder"),
        (("none",), "none: no such directory; a sweep directory, or what `--out` named"),
        (("a", "--out", "s3://bucket/x"), "--out: a URL; a folder on this machine"),
        (("a", "b", "--out", "b"), "--out: `b` is a sweep directory, whose artifacts are of its"),
        (("a", "--out", "c"), "--out: `c` is a sweep directory, whose artifacts are of its own"),
        (("a/predictions.zarr",), "a/predictions.zarr: a store, not a sweep directory"),
        (("a", "--out", "a/predictions.zarr"), "a/predictions.zarr: a store, not a sweep direct"),
    ],
)
@pytest.mark.parametrize("command", ["distances", "all"])
def test_what_cannot_be_is_refused_and_leaves_nothing(runs, command, arguments, message):
    SweepDir(runs / "c").path.mkdir()
    SweepDir(runs / "c").write_manifest({"store": "memory://sweeps/c"})
    before = sorted(runs.rglob("*"))
    with pytest.raises(AnalysisError) as caught:
        analyze(command, *arguments)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize("command", ["inpca", "report"])
def test_a_later_stage_of_a_url_or_of_nothing_is_refused(runs, command):
    with pytest.raises(AnalysisError, match="DIR: a URL; a folder on this machine"):
        analyze(command, "s3://bucket/prefix")
    with pytest.raises(AnalysisError, match="merged: no such directory"):
        analyze(command, "merged")


# --- buckets ----------------------------------------------------------------------------------


def upload(folder: Path, place: str) -> None:
    objects = open_objects(place)
    for path in filter(Path.is_file, folder.rglob("*")):
        objects.write(path.relative_to(folder).as_posix(), path.read_bytes())


def test_a_bucket_and_a_folder_are_analysed_together(runs, sweep, s3_url):
    upload(runs / "b", s3_url)
    done = analyze("all", "a", s3_url, "--out", "merged")
    assert done.exit_code == 0
    analyze("distances", sweep)
    merged, whole = open_distances("merged"), open_distances(sweep)
    assert (merged[:, :] == whole[:, :]).all()
    assert [record["place"] for record in merged.about["places"]] == ["../a", s3_url]
    assert "report: unchanged" in analyze("report", "merged").stderr
    kept = b"".join(path.read_bytes() for path in Path("merged").rglob("*") if path.is_file())
    assert ACCESS_KEY.encode() not in kept
    assert SECRET_KEY.encode() not in kept


def test_a_bucket_alone_needs_a_folder_and_is_named_by_its_prefix(runs, s3_url):
    upload(runs / "b", s3_url)
    analyze("all", s3_url + "/", "--out", "here")
    assert trials_of("here") == {"t1", "t2"}
    assert "<title>sweep" in Path("here/analysis/report.html").read_text(encoding="utf-8")


def test_credentials_in_a_url_are_refused_unseen(runs):
    with pytest.raises(StoreURLError, match="credentials") as caught:
        analyze("all", "a", "s3://key:secret@bucket/x", "--out", "merged")
    assert "secret" not in str(caught.value) + caught.value.hint


def test_a_bucket_out_of_reach_is_one_error_and_leaves_nothing(runs, s3_url, monkeypatch):
    monkeypatch.setattr(url, "MAX_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnavailableStoreError):
        analyze("all", "a", s3_url, "--out", "merged")
    assert not Path("merged").exists()
