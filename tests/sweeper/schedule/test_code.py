"""Whether two nodes run the same code, and what is said where they do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sweeper
from sweeper.registry import source_hash
from sweeper.schedule.code import code_here, difference, own_hash


def test_a_node_like_the_drivers_does_not_differ():
    assert difference(code_here(["json:dumps"]), code_here(["json:dumps"])) == ""


def test_it_covers_python_sweeper_its_libraries_and_the_plug_ins():
    found = code_here(["json:dumps"])
    assert set(found) == {
        *("Python", "sweeper", "numpy", "torch", "torchvision"),
        "the source of `json:dumps`",
    }
    assert found["Python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert found["the source of `json:dumps`"] == source_hash("json:dumps")


@pytest.mark.parametrize("name", list(code_here(["json:dumps"])))
def test_the_first_difference_is_named(name: str):
    here = code_here(["json:dumps"])
    theirs = here | {name: "another"}
    assert difference(theirs, here) == (
        f"{name} is another there, and {here[name]} where the driver runs"
    )
    del theirs[name]
    assert "is absent there" in difference(theirs, here)


def test_a_plug_in_that_cannot_be_imported_is_a_difference(tmp_path, monkeypatch):
    (tmp_path / "broken_plug_in.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = difference(code_here(["broken_plug_in:x"]), {"the source of `broken_plug_in:x`": "1"})
    assert "not to be imported (ModuleNotFoundError: No module named 'no_such_library')" in found


def test_which_devices_torch_was_built_for_does_not_matter(monkeypatch):
    versions = {"torch": "2.11.0+cpu"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions.get(name, "1"))
    assert code_here([])["torch"] == "2.11.0"


HASH = "from sweeper.schedule.code import own_hash; print(own_hash())"


def test_the_source_is_hashed_as_it_is_on_the_disk(tmp_path: Path):
    def hashed() -> str:
        done = subprocess.run(
            [sys.executable, "-c", HASH], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    copy = tmp_path / "sweeper"
    shutil.copytree(Path(sweeper.__file__).parent, copy)
    before = hashed()
    (copy / "__pycache__").mkdir(exist_ok=True)
    (copy / "notes.txt").write_text("no code")
    (copy / ".#loop.py").symlink_to("an editor's lock")
    assert hashed() == before
    changed = copy / "schedule" / "code.py"
    changed.write_text(changed.read_text() + "\n# a comment\n")
    assert hashed() != before


def test_a_file_more_or_by_another_name_is_other_code(tmp_path: Path, monkeypatch):
    root = tmp_path / "sweeper"
    root.mkdir()
    (root / "__init__.py").write_text("")
    monkeypatch.setattr(sweeper, "__file__", str(root / "__init__.py"))
    seen = [own_hash()]
    (root / "one.py").write_text("x = 1")
    seen.append(own_hash())
    (root / "one.py").rename(root / "two.py")
    seen.append(own_hash())
    assert len(set(seen)) == 3
