"""What may load what, and what must stay true of the tree."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray", "zarr", "pandas", "pyarrow", "scipy", "matplotlib")


def loaded_after(statement: str) -> set[str]:
    """Which heavy packages a fresh process has loaded after a statement."""
    check = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_command_line_loads_nothing_heavy():
    assert loaded_after("import sweeper.cli") == set()


def test_status_loads_neither_torch_nor_zarr_nor_pandas():
    assert loaded_after("import sweeper.status, sweeper.plan") <= {"pyarrow"}


def test_training_and_analysis_work_without_ray():
    hide = "sys.modules['ray'] = None"
    assert "torch" in loaded_after(f"{hide}; import sweeper.trial, analysis.stages")


def test_analysis_opens_a_store_without_training_code():
    hide = "sys.modules['ray'] = sys.modules['torchvision'] = sys.modules['sweeper.train'] = None"
    loaded_after(f"{hide}; import analysis.stages, analysis.report")


def test_no_module_is_a_catch_all():
    names = {
        path.stem for package in ("sweeper", "analysis") for path in (ROOT / package).rglob("*.py")
    }
    assert not names & {"utils", "util", "helpers", "helper", "manager", "misc", "common", "base"}


def test_files_stay_readable():
    for package in ("sweeper", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, f"{path}: split it"


def test_every_module_is_under_the_contracts_that_keep_a_package_in_its_place():
    """A new module must be listed, or named here as the one place for that package."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    homes = {
        "ray": {"sweeper.schedule"},
        "zarr": {"sweeper.store", "analysis.tiles"},
        "omegaconf": {"sweeper.yaml_file"},
    }
    modules = {
        f"{package}.{path.stem}"
        for package in ("sweeper", "analysis")
        for path in (ROOT / package).iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("__"))
        or (path / "__init__.py").exists()
    }
    for contract in contracts:
        package = contract.get("forbidden_modules", [""])[0]
        if len(contract.get("forbidden_modules", [])) == 1:
            listed = set(contract["source_modules"])
            if "analysis" in listed:
                listed |= {name for name in modules if name.startswith("analysis.")}
            assert modules - listed == homes[package], package
