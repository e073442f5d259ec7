"""README is true: what it shows runs, what it links exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.grid import expand, load_grid
from sweeper.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """The commands that README shows after a `$`, without their comments."""
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].partition("#")[0].strip() for line in lines]


def run(command: str, cwd: Path) -> subprocess.CompletedProcess:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_make_targets_that_readme_names_exist():
    named = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert named == ["demo", "test"]
    for target in named:
        done = run(f"make --dry-run {target}", ROOT)
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_and_the_reader_that_readme_shows_run_in_this_order(tmp_path: Path):
    (tmp_path / "grids").symlink_to(ROOT / "grids")
    commands = [line for line in shell_lines() if line.startswith("sweeper ")]
    assert len(commands) == 9
    for command in commands:
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/digits/analysis/report.html").is_file()

    reader = next(block for block in blocks("python") if "open_store" in block)
    (tmp_path / "read.py").write_text(reader + "assert D.shape == (10, 10)\n")
    done = run("python -W error read.py", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "executor",
    ["local", pytest.param("tune", marks=[pytest.mark.ray, pytest.mark.slow])],
)
def test_the_grid_and_the_model_that_readme_shows_run(executor: str, tmp_path: Path):
    for language, name in (("yaml", "mine.yaml"), ("python", "my_models.py")):
        block = next(text for text in blocks(language) if text.startswith(f"# {name}\n"))
        (tmp_path / name).write_text(block)
    done = run(f"sweeper launch mine.yaml --executor {executor} -y", tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(run("sweeper status runs/mine --json", tmp_path).stdout)
    assert shown["counts"]["complete"] == shown["n_planned"] == 10
    own = run("sweeper plan mine.yaml", tmp_path).stdout
    assert "10 trials of 12 combinations" in own


def test_every_relative_link_of_the_documents_leads_somewhere():
    documents = [path for path in ROOT.glob("**/*.md") if ".venv" not in path.parts]
    assert ROOT / "README.md" in documents
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_readme_names_the_ready_grids_and_their_trials():
    said = re.search(r"\[grids/\]\(grids\) holds ready ones:(.*?)\n\n", README, re.DOTALL)[1]
    assert sorted(re.findall(r"`(\w+)`", said)) == sorted(p.stem for p in ROOT.glob("grids/*.yaml"))
    counts = dict(re.findall(r"`(\w+)` \(([\d,]+)", said))
    assert sorted(counts) == ["cifar10", "digits", "imagenet"]
    for name, count in counts.items():
        found = expand(load_grid(ROOT / f"grids/{name}.yaml"))
        assert len(found.trials) == int(count.replace(",", ""))


def test_readme_names_every_entry_of_every_axis():
    table = re.search(r"## What a trial can be\n(.*?)\n## ", README, re.DOTALL)[1]
    for axis, names in BUILT_IN.items():
        assert [name for name in names if f"`{name}`" not in table] == [], axis


def test_the_tests_that_are_named_as_answers_exist():
    page = (ROOT / "tests" / "README.md").read_text()
    named = set(re.findall(r"`(test_\w+|Test\w+)`", page))
    assert len(named) > 20
    found = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = {name for name in named if not re.search(rf"\b(def )?{name}\b( =|\()", found)}
    assert not missing
    for path in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (ROOT / path).is_file(), path
