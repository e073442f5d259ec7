"""The GPUs of a machine as PyTorch sees them, asked in a process of its own.

A process that has used a GPU holds memory of it until it ends, and cannot be told of others: the
worker that answers for a node may become a slot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper.attempt import CONTEXT_BYTES
from sweeper.doctor.finding import Finding, failed, passed, warned
from sweeper.errors import first_line

ASK_SECONDS = 30.0
TAKEN = 0.1  # of a GPU's memory by others, from which on that is worth a word

_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/proc/driver/nvidia/version")
_HIDDEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_CURE = (
    "install a PyTorch for this machine's driver (https://pytorch.org/get-started/locally), or a "
    "newer driver; in a container, give it the GPUs (`docker run --gpus all`); "
    'CUDA_VISIBLE_DEVICES="" if trials are to run on the CPU'
)


def check_gpus() -> Iterator[Finding]:
    """That each GPU of this machine works with this PyTorch, is free, and may be shared."""
    hidden = [name for name in _HIDDEN if os.environ.get(name) in ("", "-1")]
    if hidden:
        yield passed("gpu", f"none: {hidden[0]} hides them, and trials run on the CPU")
    elif not any(Path(sign).exists() for sign in _SIGNS):
        yield passed("gpu", "none: trials run on the CPU")
    else:
        yield from findings(_asked(), _modes())


def findings(seen: Mapping[str, Any], modes: Mapping[str, str]) -> Iterator[Finding]:
    """What is to be said of GPUs.

    Parameters
    ----------
    seen : see `seen_by_torch`.
    modes : by a GPU's UUID who may use it at a time, as `nvidia-smi` has it.
    """
    if not seen["gpus"]:
        text = f"this machine has one, but PyTorch {seen['built_for']} cannot use it"
        yield failed("gpu", f"{text}: {seen['problem']}", _CURE)
        return
    yield passed("cuda", str(seen["built_for"]))
    for number, gpu in enumerate(seen["gpus"]):
        yield _finding(f"gpu {number}", gpu, modes.get(gpu["uuid"], "Default"))


def _finding(check: str, gpu: Mapping[str, Any], mode: str) -> Finding:
    if gpu["problem"]:
        return failed(check, f"{gpu['name']}: {gpu['problem']}", _CURE)
    free, total = gpu["free"] / 2**30, gpu["total"] / 2**30
    text = f"{gpu['name']}, {free:.1f} GiB free of {total:.1f} GiB"
    if mode != "Default":
        cure = "`nvidia-smi -c DEFAULT` lets trials share it; else launch with `--per-gpu 1`"
        return warned(check, f"{text}, in compute mode {mode}: one process at a time", cure)
    if gpu["total"] - gpu["free"] - CONTEXT_BYTES > TAKEN * gpu["total"]:
        cure = "`nvidia-smi` names the processes that use it; end them, or leave this GPU out"
        return warned(check, f"{text}: others use it", cure)
    return passed(check, text)


def seen_by_torch() -> dict[str, Any]:
    """What PyTorch has been built for, the GPUs that it can use, or why there is none."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    built_for = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "for CPUs alone"
    found: dict[str, Any] = {"built_for": built_for, "problem": "", "gpus": []}
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found["gpus"] = [_seen(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # an old driver, a broken one, none that is let in
        found["problem"] = first_line(error)
    return found


def _seen(index: int) -> dict[str, Any]:
    """One GPU, which has to do a sum."""
    import torch

    about = torch.cuda.get_device_properties(index)
    found = {"name": about.name, "uuid": f"GPU-{about.uuid}", "problem": "", "free": 0, "total": 0}
    try:
        found["free"], found["total"] = torch.cuda.mem_get_info(index)
        torch.ones(2, device=f"cuda:{index}").sum().item()
    except Exception as error:  # no code for its architecture, in use by another, broken
        found["problem"] = first_line(error)
    return found


def _asked() -> dict[str, Any]:
    """The same, of a new process."""
    ask = (
        f"import json, sys; sys.path[:] = {sys.path!r}; "
        "from sweeper.doctor.gpus import seen_by_torch; print(json.dumps(seen_by_torch()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, timeout=ASK_SECONDS
    )
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"built_for": "", "problem": problem, "gpus": []}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _modes() -> dict[str, str]:
    """By UUID who may use a GPU at a time; empty where `nvidia-smi` does not tell."""
    ask = ["nvidia-smi", "--query-gpu=uuid,compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.partition(", ") for line in done.stdout.splitlines())
    return {uuid: mode for uuid, _, mode in rows if mode}
