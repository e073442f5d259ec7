"""The command line as a user meets it: what it prints, how it ends, what it leaves alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper import __version__
from sweeper.grid import expand, load_grid, text_of
from sweeper.store import open_store

GRID = """\
name: small
base: {data.name: digits, optim.name: sgd, optim.lr: 0.1, epochs: 1}
axes:
  model.name: [fc, cnn]
  seed: {range: [0, 2]}
"""


def sweeper(*arguments: object, cwd: Path | None = None, **environment: str):
    """Run the command line in a process of its own; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "sweeper", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep directory; tests only read it, or copy it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(GRID)
    done = sweeper("launch", folder / "small.yaml", "--executor", "local", "-y", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "small"


# --- what goes well -------------------------------------------------------------------------


def test_version_is_printed(here):
    assert here("--version").stdout == f"sweeper {__version__}\n"


ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
]


@pytest.mark.parametrize("locale", ASCII)
def test_a_terminal_that_knows_ascii_alone_is_shown_all_else(locale, tmp_path):
    grid = tmp_path / "g.yaml"
    grid.write_text(GRID.replace("[fc, cnn]", "[wrn]\n  model.depth: [7]"))
    done = sweeper("doctor", grid.name, cwd=tmp_path, **locale)
    assert (done.returncode, done.stderr) == (2, "")
    assert "6 n + 4 is needed: 10, 16, 22, 28, 40, ?" in done.stdout


ANALYZE = ("distances", "inpca", "report", "map", "project", "check", "all")


def test_every_command_has_help(here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    commands = ["plan", "launch", "resume", "status", "verify"]
    for command in [
        *commands,
        *(("analyze", name) for name in ANALYZE),
    ]:
        words = [command] if isinstance(command, str) else command
        done = here(*words, "--help")
        assert done.returncode == 0
        usage, description = [line.strip() for line in done.stdout.splitlines() if line.strip()][:2]
        assert usage.startswith("Usage:")
        assert len(description.split()) > 3, f"{words} has no description"


def test_plan_counts_trials_and_changes_nothing(here, grid: Path):
    before = tree(grid.parent)
    done = here("plan", grid, "--json", "--set", "epochs=3")
    fields = json.loads(done.stdout)
    assert (fields["n_trials"], fields["n_todo"]) == (4, 4)
    assert fields["n_snapshots"] == 4 * 4, "before training and after each of 3 epochs"
    assert fields["n_bytes"] == 16 * 360 * 10 * 2
    assert tree(grid.parent) == before


def test_what_a_plug_in_prints_is_no_part_of_the_plan(
    here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "talkative.py").write_text(
        "from torch import nn\n"
        "print('imported')\n"
        "def build(shape, n_classes):\n"
        "    print('built')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    )
    (tmp_path / "grid.yaml").write_text(GRID.replace("[fc, cnn]", "['talkative:build']"))
    monkeypatch.chdir(tmp_path)
    done = here("plan", "grid.yaml", "--json")
    assert json.loads(done.stdout)["n_trials"] == 2
    assert "imported" in done.stderr
    assert "built" in done.stderr


def test_plan_shows_the_values_of_each_axis(here, grid: Path):
    shown = here("plan", grid).stdout
    assert re.search(r"axis model.name +2: fc, cnn\n", shown)
    assert re.search(r"axis seed +2: 0, 1\n", shown)


def test_the_grid_that_is_kept_gives_the_trials_that_were_asked_for(here, grid: Path):
    loaded = load_grid(grid, ["optim.lr=0.25", "record.train=none"])
    kept = grid.with_name("kept.yaml")
    kept.write_text(text_of(loaded, ["optim.lr=0.25", "record.train=none"]))
    assert expand(load_grid(kept)).trials == expand(loaded).trials
    assert text_of(load_grid(grid), ()) == GRID


def test_launch_again_runs_nothing_and_an_extended_grid_only_what_is_new(here, tmp_path: Path):
    small, large = tmp_path / "grid.yaml", tmp_path / "larger.yaml"
    small.write_text(GRID.replace("[0, 2]", "[0, 1]"))
    large.write_text(GRID)
    options = ("--sweep-dir", tmp_path / "sweep", "--executor", "local", "-y")
    assert here("launch", small, *options).returncode == 0
    first = open_store(tmp_path / "sweep").trials()
    written = tree(tmp_path / "sweep" / "predictions.zarr" / "trials")

    again = here("launch", small, *options)
    assert "2 complete, 0 to run" in again.stderr
    more = here("launch", large, *options)
    assert "4 trials, 2 complete, 2 to run" in more.stderr
    assert "2/2 trials complete" in more.stderr

    both = open_store(tmp_path / "sweep").trials()
    assert both.loc[first.index, "digest"].equals(first["digest"])
    assert tree(tmp_path / "sweep" / "predictions.zarr" / "trials").items() >= written.items()


def test_limit_runs_so_many_and_resume_the_rest_without_the_grid(here, grid: Path, tmp_path: Path):
    folder = tmp_path / "sweep"
    here("launch", grid, "--sweep-dir", folder, "--executor", "local", "--limit", 1, "-y")
    shown = json.loads(here("status", folder, "--json").stdout)
    assert (shown["counts"]["complete"], shown["counts"]["waiting"]) == (1, 3)
    grid.unlink()
    assert here("resume", folder, "--executor", "local", "-y").returncode == 0
    shown = json.loads(here("status", folder, "--json").stdout)
    assert shown["counts"]["complete"] == shown["n_planned"] == 4


def test_verify_finds_a_healthy_store_healthy(here, finished: Path):
    done = here("verify", finished, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["n_trials"], report["n_snapshots"], report["damages"]) == (4, 8, [])


# --- failures, signals ----------------------------------------------------------------------


def test_a_failing_trial_is_reported_exits_3_and_runs_again_on_the_next_launch(
    here, tmp_path: Path
):
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape, n_classes):\n"
        "        super().__init__()\n"
        "        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
        "        self.n_batches = 0\n"
        "    def forward(self, x):\n"
        "        self.n_batches += self.training\n"
        "        if self.n_batches > 5 and not Path('cured').exists():\n"
        "            raise RuntimeError('no such luck')\n"
        "        return self.inner(x)\n"
        "def build(shape, n_classes): return Net(shape, n_classes)\n"
    )
    (tmp_path / "grid.yaml").write_text(GRID.replace("[fc, cnn]", "[fc, 'mine:build']"))
    launch = ("launch", "grid.yaml", "--executor", "local", "-y")

    failed = sweeper(*launch, cwd=tmp_path)
    assert failed.returncode == 3
    assert "RuntimeError: no such luck" in failed.stderr
    assert "Traceback" not in failed.stderr
    shown = here("status", tmp_path / "runs" / "small").stdout
    assert "2 failed with RuntimeError: no such luck" in shown

    (tmp_path / "cured").touch()
    assert sweeper(*launch, cwd=tmp_path).returncode == 0
    shown = json.loads(here("status", tmp_path / "runs" / "small", "--json").stdout)
    assert shown["counts"]["complete"] == 4


def test_a_changed_plug_in_is_refused_unless_allowed(tmp_path: Path):
    source = (
        "from torch import nn\n"
        "def build(shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    )
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "grid.yaml").write_text(GRID.replace("[fc, cnn]", "['mine:build']"))
    launch = ("launch", "grid.yaml", "--executor", "local", "-y")
    assert sweeper(*launch, "--limit", 1, cwd=tmp_path).returncode == 0
    (tmp_path / "mine.py").write_text(source + "# changed\n")

    refused = sweeper(*launch, cwd=tmp_path)
    assert refused.returncode == 2
    assert "the source of `mine:build` has changed" in refused.stderr
    assert "hint:" in refused.stderr
    assert sweeper(*launch, "--allow-code-change", cwd=tmp_path).returncode == 0


def test_a_grid_of_another_name_is_refused_in_a_directory_that_holds_a_sweep(
    here, finished: Path, tmp_path: Path
):
    (tmp_path / "other.yaml").write_text(GRID.replace("name: small", "name: other"))
    before = (finished / "manifest.json").read_bytes()
    done = here("launch", tmp_path / "other.yaml", "--sweep-dir", finished, "-y")
    assert "holds the sweep `small`" in fails(done)
    assert (finished / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_drains_and_exits_4(number: signal.Signals, here, tmp_path: Path):
    folder = tmp_path / "sweep"
    process = start_long_sweep(tmp_path, folder)
    process.send_signal(number)
    assert process.wait(60) == 4
    shown = json.loads(here("status", folder, "--json").stdout)
    assert shown["counts"]["interrupted"] == 1
    assert shown["driver"] is None
    assert list((folder / "checkpoints").glob("*/*.pt"))


def test_a_directory_held_by_a_live_driver_is_refused_and_left_alone(here, tmp_path: Path):
    folder = tmp_path / "sweep"
    process = start_long_sweep(tmp_path, folder)
    try:
        shown = json.loads(here("status", folder, "--json").stdout)
        assert shown["counts"]["running"] == 1
        assert shown["driver"]["pid"] == process.pid
        refused = here("resume", folder, "--executor", "local", "-y")
        assert refused.returncode == 2
        assert f"held by another driver, process {process.pid}" in refused.stderr
    finally:
        process.kill()
        process.wait()
    shown = json.loads(here("status", folder, "--json").stdout)
    assert (shown["counts"]["running"], shown["counts"]["interrupted"]) == (0, 1)


def start_long_sweep(tmp_path: Path, folder: Path) -> subprocess.Popen:
    """A launch of one trial that would take minutes, once its first snapshots are there."""
    (tmp_path / "long.yaml").write_text(
        GRID.replace("epochs: 1", "epochs: 100000, record.schedule: log").replace(
            "[0, 2]", "[0, 1]"
        )
    )
    command = [sys.executable, "-m", "sweeper", "launch", str(tmp_path / "long.yaml"), "-y"]
    command += ["--executor", "local", "--sweep-dir", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("predictions.zarr/staging/*/1/test/log_probs/c.*"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    return process


# --- bad input ------------------------------------------------------------------------------


def fails(done: Any, code: int = 2) -> str:
    """Assert the house's form of an error; returns its text."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^error: .+\n\nhint: .", done.stderr, re.MULTILINE), done.stderr
    return done.stderr


BAD_GRIDS = {
    "unknown-key": (GRID.replace("epochs: 1", "epoch: 1"), "epochs"),
    "unknown-model": (GRID.replace("cnn", "cmm"), "cnn"),
    "malformed": (GRID + "  - }", ""),
    "wrong-type": (GRID.replace("epochs: 1", "epochs: many"), "`many`"),
    "negative-lr": (GRID.replace("0.1", "-0.1"), "above 0"),
    "nan-lr": (GRID.replace("0.1", ".nan"), "finite"),
    "dropout-2": (GRID.replace("epochs: 1", "epochs: 1, regularize.dropout: 2"), "below 1"),
    "batch-0": (GRID.replace("epochs: 1", "epochs: 1, optim.batch_size: 0"), "at least 1"),
    "batch-larger-than-data": (
        GRID.replace("epochs: 1", "epochs: 1, optim.batch_size: 5000"),
        "1437",
    ),
    "empty-axis": (GRID.replace("[fc, cnn]", "[]"), "model.name"),
    "failing-derive": (GRID + "derive: {optim.momentum: 1 / (seed - seed)}", "zero"),
    "derive-is-no-expression": (GRID + "derive: {optim.momentum: 'import os'}", "import os"),
    "no-trials": (GRID + "exclude: ['seed >= 0']", "0"),
    "hundred-million": (GRID.replace("[0, 2]", "[0, 50000000]"), "100,000,000"),
    "patch-does-not-divide": (
        GRID.replace("[fc, cnn]", "[vit]").replace("epochs: 1", "epochs: 1, model.patch: 3"),
        "patch",
    ),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_a_bad_grid_is_an_error_that_names_file_and_cure(
    name: str, here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text, said = BAD_GRIDS[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    before = tree(tmp_path)
    started = time.monotonic()
    message = fails(here("launch", path, "--executor", "local", "-y"))
    assert "bad.yaml" in message
    assert said in message
    assert tree(tmp_path) == before
    assert time.monotonic() - started < 60, "a grid of any size answers at once"


def test_what_is_not_there_is_an_error_with_a_hint(here, tmp_path: Path):
    assert "no.yaml" in fails(here("plan", tmp_path / "no.yaml"))
    for command in ("status", "resume"):
        assert "hint: " in fails(here(command, tmp_path / "none"))
    assert "hint: " in fails(here("verify", tmp_path))
    for stage in ("distances", "inpca", "report", "all"):
        assert "hint: " in fails(here("analyze", stage, tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_analysis_of_a_sweep_without_a_complete_trial_is_refused(here, tmp_path: Path):
    folder = tmp_path / "sweep"
    process = start_long_sweep(tmp_path, folder)
    process.kill()
    process.wait()
    before = tree(folder)
    message = fails(here("analyze", "all", folder))
    assert "hint: " in message
    assert tree(folder) == before


def test_a_store_of_a_newer_format_is_refused_and_left_alone(here, grid: Path, tmp_path: Path):
    store = tmp_path / "sweep" / "predictions.zarr"
    store.mkdir(parents=True)
    attributes = {"sweeper_format": 2}
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    (store / "zarr.json").write_text(text)
    before = tree(tmp_path)
    for command in (("launch", grid, "--sweep-dir", store.parent, "-y"), ("verify", store)):
        assert "format `2`" in fails(here(*command))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("harm", ["delete", "flip", "truncate"])
def test_a_damaged_chunk_is_found_by_verify_and_refused_by_analysis(
    harm: str, here, finished: Path, tmp_path: Path
):
    copied = tmp_path / "sweep"
    subprocess.run(["cp", "-r", str(finished), str(copied)], check=True)
    chunk = next(path for path in sorted(copied.rglob("test/log_probs/c.*")))
    trial = chunk.relative_to(copied / "predictions.zarr" / "trials").parts[0]
    data = bytearray(chunk.read_bytes())
    if harm == "delete":
        chunk.unlink()
    elif harm == "flip":
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    else:
        chunk.write_bytes(data[: len(data) // 2])
    before = tree(copied)

    found = here("verify", copied, "--json")
    assert found.returncode == 5
    assert {damage["where"] for damage in json.loads(found.stdout)["damages"]} == {f"trial {trial}"}
    assert trial in fails(here("analyze", "distances", copied), code=5)
    assert {path: data for path, data in tree(copied).items() if path in before} == before
