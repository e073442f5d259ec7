"""Freed memory is kept, counted in page faults; a GPU is shared and its use measured."""

import os
import subprocess
import sys

import pytest
import torch

from sweeper.attempt import CONTEXT_BYTES
from sweeper.train.memory import (
    MALLOC_SETTINGS,
    begin_share,
    device_name,
    memory_share,
    peak_memory,
)

PROGRAM = """
import resource, sys, threading
import torch
from sweeper.train.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def steps(n):
    for _ in range(n):
        torch.ones(25_000_000)  # 100 MB, freed at once

def count():
    steps(6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[2] == "thread":
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
"""


def faults(*arguments, **environment):
    inherited = {k: v for k, v in os.environ.items() if k not in MALLOC_SETTINGS}  # of a driver
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, **environment},
    )
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_a_step_does_not_fault_in_again_what_the_last_one_freed():
    handed_back = faults("leave", "main")
    assert handed_back > 100_000
    assert faults("keep", "main") < handed_back / 2
    assert faults("leave", "thread", **MALLOC_SETTINGS) < handed_back / 2


@pytest.mark.parametrize("per_gpu", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("gib", [4, 16, 80, 140])
def test_shares_of_a_gpu_leave_room_for_what_processes_need_beside_their_tensors(per_gpu, gib):
    there = gib << 30
    share = memory_share(per_gpu, there)
    assert 0.5 / per_gpu <= share < 1 / per_gpu
    if there / per_gpu > 2 * CONTEXT_BYTES:
        assert per_gpu * (share * there + CONTEXT_BYTES) <= there * (1 + 1e-12)


def test_a_cpu_has_no_share_to_measure():
    begin_share(torch.device("cpu"), 4)
    assert peak_memory(torch.device("cpu")) == (0, 0)


@pytest.mark.parametrize(
    ("visible", "device", "name"),
    [
        ("", "cpu", "cpu"),
        ("3", "cpu", "cpu"),
        ("3", "cuda", "cuda:3"),
        ("3,5", "cuda:1", "cuda:5"),
        ("", "cuda:1", "cuda:1"),
        ("GPU-1234", "cuda", "cuda:GPU-1234"),
    ],
)
def test_a_gpu_is_called_as_its_machine_calls_it(visible, device, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_name(torch.device(device)) == name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_process_is_held_to_its_share_of_a_gpu_and_measured():
    device = torch.device("cuda", torch.cuda.current_device())
    there = torch.cuda.get_device_properties(device).total_memory
    begin_share(device, 4)
    before = torch.cuda.memory_allocated(device)  # what other tests left
    try:
        held = torch.empty(there // 8, dtype=torch.uint8, device=device)
        peak, found = peak_memory(device)
        assert there // 8 <= peak - before <= there // 8 + (4 << 20)
        assert found == there
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(there // 4, dtype=torch.uint8, device=device)
        del held
    finally:
        begin_share(device, 1)
    assert peak_memory(device)[0] <= before
