"""What is installed, here and where the sweep is started."""

from __future__ import annotations

import importlib
from importlib import metadata

import pytest

from analysis.bhattacharyya import cpu
from sweeper.doctor import software
from sweeper.doctor.software import (
    SLOW_IMPORT,
    SLOW_SECONDS,
    check_alike,
    check_import,
    check_kernels,
    check_versions,
    versions,
)
from sweeper.schedule.code import own_hash


def verdicts(findings):
    return {finding.check: finding.verdict for finding in findings}


def test_what_runs_here_fits_itself():
    here = versions()
    assert set(verdicts(check_versions(here)).values()) == {"pass"}
    for name in ("torch", "torchvision"):
        assert verdicts(check_import(name, here)) == {name: "pass"}
    assert list(check_alike(here)) == []


@pytest.mark.parametrize("name", ["sweeper", "python", "ray", "numpy", "torch", "torchvision"])
def test_another_version_than_the_drivers_is_named(name):
    here = versions()
    drivers = here | {name: "0.0.1"}
    (found,) = check_alike(drivers)
    assert (found.check, found.verdict) == (name, "fail")
    assert f"{here[name]}, but 0.0.1 where it is started" in found.text
    found = check_import(name, drivers) if "torch" in name else check_versions(drivers)
    assert verdicts(found)[name] == "fail"


def test_what_the_preflight_lets_pass_slots_accept():
    """A slot compares for itself when it starts: nothing must stop there that was fit before."""
    from sweeper.schedule.code import code_here

    assert {name.lower() for name in code_here(())} <= set(versions())
    edited = versions()["sweeper"].replace(own_hash(), 16 * "0")
    assert [finding.check for finding in check_alike(versions() | {"sweeper": edited})] == [
        "sweeper"
    ]


def test_ray_may_be_absent(monkeypatch):
    here = versions() | {"ray": ""}
    monkeypatch.setattr(software, "versions", lambda: here)
    found = {finding.check: finding for finding in check_versions(here)}
    assert found["ray"].verdict == "warn"
    assert "--executor local" in found["ray"].cure


def test_a_requirement_that_is_not_met_is_named(monkeypatch):
    real = metadata.version

    def fake(name):
        if name == "zarr":
            raise metadata.PackageNotFoundError(name)
        return {"numpy": "1.26.4"}.get(name) or real(name)

    here = versions()
    monkeypatch.setattr(metadata, "version", fake)
    found = {finding.check: finding for finding in check_versions(here)}["requirements"]
    assert found.verdict == "fail"
    assert "numpy 1.26.4 is installed, numpy<3,>=2.0 is needed" in found.text
    assert "zarr is not installed" in found.text


def test_a_torchvision_built_for_another_torch_is_told(monkeypatch):
    """It says so at import: the usual end of an upgrade of one of the two."""
    real = importlib.import_module

    def fake(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", fake)
    (torchvision,) = check_import("torchvision", versions())
    assert torchvision.verdict == "fail"
    assert "torchvision::nms" in torchvision.text
    assert "torch torchvision" in torchvision.cure


def test_an_import_that_takes_long_is_worth_a_warning(monkeypatch):
    moments = iter([100.0, 100.0 + SLOW_SECONDS + 8])
    monkeypatch.setattr(software.time, "monotonic", lambda: next(moments))
    (found,) = check_import("torchvision", versions())
    assert (found.verdict, found.cure) == ("warn", SLOW_IMPORT)
    assert found.text.endswith("and importing it took 13.0 s")


def test_the_instructions_of_the_distance_kernel_are_told_or_why_there_is_none(monkeypatch):
    monkeypatch.setattr(cpu, "missing", lambda: None)
    monkeypatch.setattr(cpu, "lanes", lambda: 8)
    distances, _ = check_kernels()
    assert (distances.verdict, distances.text) == ("pass", "C kernel, AVX2")
    monkeypatch.setattr(cpu, "missing", lambda: "it was not compiled")
    distances, _ = check_kernels()
    assert (distances.check, distances.verdict) == ("distances", "warn")
    assert "PyTorch" in distances.text
    assert distances.text.endswith("it was not compiled")
    assert "gcc" in distances.cure


def test_triton_is_there_or_says_why_not(monkeypatch):
    monkeypatch.setattr(software.util, "find_spec", lambda _: None)
    assert "not installed" in software._triton().text
    monkeypatch.setattr(software.util, "find_spec", lambda _: object())

    def fail(name):
        raise ImportError("libLLVM is missing")

    monkeypatch.setattr(importlib, "import_module", fail)
    found = software._triton()
    assert found.verdict == "warn"
    assert "libLLVM" in found.text
