"""What is installed: whether it works, fits together, and is what the driver has."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata, util

from sweeper.doctor.finding import Finding, failed, passed, warned
from sweeper.schedule.code import own_hash
from sweeper.sweep_dir import environment

Versions = Mapping[str, str]  # by package, of `python`, too; empty where it is not installed

_COMPARED = ("sweeper", "python", "ray", "torch", "torchvision", "numpy")
_ALIKE = "install the same versions on every node, as from one image or one environment"
_TOGETHER = "`pip install --force-reinstall torch torchvision` installs two that fit"
SLOW_IMPORT = (
    "have the environment on the node's own disk, or in an image, if every run is to be spared it; "
    "asked again at once, what was read is still in memory"
)
SLOW_SECONDS = 5.0  # of an import: every worker that starts takes so long

_COMPILER = "have gcc or Clang, with C's headers, and install `sweeper` again"
_NO_RAY = "`pip install 'ray[tune]'`; without it there is `--executor local` alone"


def versions() -> dict[str, str]:
    """What this process runs; of sweeper also a hash of its source files as they are now."""
    found = environment()
    known = {**found["versions"], "python": found["python"]}
    # Which devices a library was built for may differ from node to node.
    here = {name: (known[name] or "").partition("+")[0] for name in _COMPARED}
    return here | {"sweeper": f"{here['sweeper']}, source {own_hash()}"}


def check_versions(drivers: Versions) -> Iterator[Finding]:
    """What is installed here, against what the driver has."""
    here = versions()
    for name in ("python", "sweeper", "ray", "numpy"):
        found = _differing(name, here[name], drivers)
        if found is not None:
            yield found
        elif here[name]:
            yield passed(name, here[name])
        else:
            yield warned(name, "not installed", _NO_RAY if name == "ray" else _ALIKE)
    unmet = list(_unmet())
    if unmet:
        yield failed("requirements", "; ".join(unmet), "`pip install sweeper` brings what it needs")


def check_alike(drivers: Versions) -> Iterator[Finding]:
    """Only what differs from what the driver has; nothing is imported."""
    here = versions()
    found = (_differing(name, here[name], drivers) for name in drivers)
    yield from (finding for finding in found if finding is not None)


def _differing(name: str, here: str, drivers: Versions) -> Finding | None:
    theirs = drivers.get(name, here)
    if theirs == here:
        return None
    text = f"{here or 'not installed'}, but {theirs or 'none'} where it is started"
    return failed(name, text, _ALIKE)


def _unmet() -> Iterator[str]:
    """What sweeper needs that is absent or of another version."""
    from packaging.requirements import Requirement

    for text in metadata.requires("sweeper") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            if needed.name != "ray":  # which has a line of its own
                yield f"{needed.name} is not installed"
            continue
        if not needed.specifier.contains(there, prereleases=True):
            yield f"{needed.name} {there} is installed, {needed.name}{needed.specifier} is needed"


def check_import(name: str, drivers: Versions) -> Iterator[Finding]:
    """That PyTorch or torchvision can be imported: one built for another PyTorch cannot."""
    started = time.monotonic()
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a library that does not fit raises what it likes
        said = " ".join(str(error).split())
        yield failed(name, f"importing it raised {type(error).__name__}: {said}", _TOGETHER)
        return
    took, version = time.monotonic() - started, str(module.__version__)
    if (compared := _differing(name, versions()[name], drivers)) is not None:
        yield compared
    elif took > SLOW_SECONDS:
        yield warned(name, f"{version}, and importing it took {took:.1f} s", SLOW_IMPORT)
    else:
        yield passed(name, version)


def check_kernels() -> Iterator[Finding]:
    """What distances are computed with, and whether Triton is there for GPUs and `compile`."""
    from analysis.bhattacharyya import cpu

    if reason := cpu.missing():
        text = f"PyTorch computes them, several times as long as the C kernel: {reason}"
        yield warned("distances", text, _COMPILER)
    else:
        yield passed("distances", f"C kernel, {cpu.INSTRUCTIONS[cpu.lanes()]}")
    yield _triton()


def _triton() -> Finding:
    if util.find_spec("triton") is None:
        return passed("triton", f"not installed ({sys.platform}); GPUs and `compile` need it")
    try:
        return passed("triton", str(importlib.import_module("triton").__version__))
    except Exception as error:
        text = f"importing it raised {type(error).__name__}: {' '.join(str(error).split())}"
        return warned("triton", text, "`pip install --force-reinstall torch` brings its own")
