"""What a page shows is of its sources: the artifacts, the store, and the code that draws."""

from __future__ import annotations

import ast
import shutil
from importlib import resources
from pathlib import Path

import pytest

from analysis import contents, stages
from analysis.contents import gather
from analysis.places import artifacts

HERE = Path(contents.__file__).parent
DRAWN_BY = sorted(contents._DRAWING)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's files, which the page is then of."""
    copy = shutil.copytree(HERE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(resources, "files", lambda package: copy)
    return Path(copy)


def test_the_code_that_draws_is_all_that_the_pages_modules_import_to_draw():
    others = {"provenance", "select", "tiles", "union"}  # of artifacts and stores, for `gather`
    imported = set()
    for name in ("contents.py", "figures.py", "report.py"):
        for node in ast.walk(ast.parse((HERE / name).read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("analysis."):
                imported.add(str(node.module).removeprefix("analysis."))
    pages = {f"page/{path.name}" for path in (HERE / "page").iterdir()}
    modules = {f"{name}.py" for name in imported - others} | {"figures.py", "report.py"}
    assert modules | pages == set(DRAWN_BY)


def test_an_edit_of_any_of_it_makes_another_page(sweep, code):
    stages.distances(sweep)
    stages.embed(sweep)

    def fingerprint() -> str:
        return gather(sweep, artifacts(sweep)).about["fingerprint"]

    seen = {fingerprint(), fingerprint()}
    assert len(seen) == 1
    for name in DRAWN_BY:
        (code / name).write_text((code / name).read_text() + "\n")
        seen.add(fingerprint())
    assert len(seen) == 1 + len(DRAWN_BY)


def test_what_older_code_drew_is_drawn_again(sweep, code):
    stages.distances(sweep)
    stages.embed(sweep)
    page, *figures = stages.report(sweep)
    for path in figures:
        path.write_bytes(b"old")
    (code / "page" / "page.css").write_text("body { color: teal }")
    said: list[str] = []
    stages.report(sweep, say=said.append)
    stages.report(sweep, say=said.append)
    assert said == ["report: unchanged"]
    assert "color: teal" in page.read_text(encoding="utf-8")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
