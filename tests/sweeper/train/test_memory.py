"""Freed memory is kept: counted in page faults, in a process of its own."""

import os
import subprocess
import sys

import pytest

from sweeper.train.memory import MALLOC_SETTINGS

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
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_a_step_does_not_fault_in_again_what_the_last_one_freed():
    handed_back = faults("leave", "main")
    assert handed_back > 100_000
    assert faults("keep", "main") < handed_back / 2
    assert faults("leave", "thread", **MALLOC_SETTINGS) < handed_back / 2
