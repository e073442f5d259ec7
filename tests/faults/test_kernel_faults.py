"""A short form of `python -m tests.faults.kernel`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults import kernel


def test_no_bits_make_the_kernel_read_or_write_elsewhere_or_be_wrong(tmp_path: Path):
    compiler = kernel.compiler()
    if compiler is None:
        pytest.skip("neither gcc nor clang with sanitizers is here")
    program = kernel.build(tmp_path, compiler)
    tried = subprocess.run([program, "60", "0"], capture_output=True, text=True)
    assert (tried.returncode, tried.stderr) == (0, "")
    rounds, of_distributions = (int(word) for word in tried.stdout.split() if word.isdecimal())
    assert rounds == 60
    assert 20 <= of_distributions <= 50  # and the rest with other bits among them
