"""GPUs that work, that are used by others, that cannot be shared, and that PyTorch cannot use."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from sweeper.doctor import gpus
from sweeper.doctor.gpus import check_gpus, findings, seen_by_torch

GiB = 1 << 30


def gpu(**changes):
    found = {"name": "H100", "uuid": "GPU-1", "problem": "", "free": 79 * GiB, "total": 80 * GiB}
    return found | changes


def seen(*gpus, built_for="for CUDA 13.0", problem=""):
    return {"built_for": built_for, "problem": problem, "gpus": list(gpus)}


@pytest.mark.parametrize(
    ("found", "mode", "verdict", "text"),
    [
        (gpu(), "Default", "pass", "H100, 79.0 GiB free of 80.0 GiB"),
        (gpu(free=60 * GiB), "Default", "warn", "others use it"),
        (gpu(), "Exclusive_Process", "warn", "one process at a time"),
        (gpu(problem="no kernel image"), "Default", "fail", "H100: no kernel image"),
        (gpu(free=int(3.3 * GiB), total=4 * GiB), "Default", "pass", "3.3 GiB free"),
    ],
)
def test_each_gpu_is_judged(found, mode, verdict, text):
    cuda, judged = findings(seen(found), {"GPU-1": mode})
    assert (cuda.check, cuda.verdict) == ("cuda", "pass")
    assert (judged.check, judged.verdict) == ("gpu 0", verdict)
    assert text in judged.text
    assert bool(judged.cure) == (verdict != "pass")


def test_a_gpu_that_pytorch_cannot_use_is_a_failure():
    (found,) = findings(seen(built_for="for CPUs alone", problem="no CUDA in it"), {})
    assert found.verdict == "fail"
    assert "PyTorch for CPUs alone cannot use it: no CUDA in it" in found.text
    assert "--gpus all" in found.cure


def test_a_machine_without_gpus_is_asked_nothing(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_SIGNS", ("/absent",))
    monkeypatch.setattr(gpus, "_asked", lambda: pytest.fail("asked"))
    (found,) = check_gpus()
    assert (found.verdict, found.text) == ("pass", "none: trials run on the CPU")
    monkeypatch.setattr(gpus, "_SIGNS", (__file__,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = check_gpus()
    assert found.verdict == "pass"
    assert "CUDA_VISIBLE_DEVICES hides them" in found.text


def test_another_process_is_asked(monkeypatch):
    """This one must not hold a GPU's memory, nor fix which GPUs it sees."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_SIGNS", (__file__,))
    asked = []

    def run(command, **_):
        asked.append(command)
        done = {"returncode": 0, "stderr": "", "stdout": "GPU-1, Exclusive_Process\n"}
        if command[0] == sys.executable:
            compile(command[2], "asked", "exec")
            done["stdout"] = json.dumps(seen(gpu()))
        return SimpleNamespace(**done)

    monkeypatch.setattr(gpus.subprocess, "run", run)
    _, found = check_gpus()
    assert "Exclusive_Process" in found.text
    assert [command[0] for command in asked] == [sys.executable, "nvidia-smi"]


def test_a_process_that_fails_says_why(monkeypatch):
    said = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nImportError: libcuda")
    monkeypatch.setattr(gpus.subprocess, "run", lambda *_, **__: said)
    assert gpus._asked()["problem"] == "ImportError: libcuda"


@pytest.fixture
def two_gpus(monkeypatch):
    """PyTorch with two GPUs, of which the second does not compute."""
    about = SimpleNamespace(name="A100", uuid="abc")
    for name, value in {
        "init": lambda: None,
        "device_count": lambda: 2,
        "get_device_properties": lambda _: about,
        "mem_get_info": lambda index: (7 + index, 9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    ones = torch.ones

    def compute(n, device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return ones(n)

    monkeypatch.setattr(torch, "ones", compute)


@pytest.mark.usefixtures("two_gpus")
def test_pytorch_is_asked_what_it_can_use():
    found = seen_by_torch()
    assert found["built_for"] == "for CUDA 12.8"
    first, second = found["gpus"]
    assert first == {"name": "A100", "uuid": "GPU-abc", "problem": "", "free": 7, "total": 9}
    assert second["problem"] == "CUDA error: no kernel image is available"


def test_pytorch_without_a_gpu_says_why(monkeypatch):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    found = seen_by_torch()
    assert found["gpus"] == []
    assert "too old" in found["problem"]
