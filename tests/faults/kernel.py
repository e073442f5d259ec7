"""The distance kernel, built with sanitizers and fed whatever 16 bits may be.

    python -m tests.faults.kernel --rounds 10000 --seed 0

Ends with an error at the first access outside of what the kernel was given, the first undefined
operation and the first result that is off; takes about 40 rounds a second. `kernel.c` has the rest.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import analysis.bhattacharyya

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OPTIONS = ["-g", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]


def compiler() -> str | None:
    """A compiler that has the sanitizers, or None."""
    for name in ("gcc", "clang"):
        if path := shutil.which(name):
            command = [path, *SANITIZERS, "-x", "c", "-", "-o", "/dev/null"]
            if not subprocess.run(command, input=b"int main(void) { return 0; }\n").returncode:
                return path
    return None


def build(folder: Path, with_compiler: str) -> Path:
    """The program that tries the kernel."""
    program = folder / "kernel"
    include = f"-I{Path(analysis.bhattacharyya.__file__).parent}"
    source = Path(__file__).with_suffix(".c")
    command = [with_compiler, *OPTIONS, *SANITIZERS, include, source, "-o", program, "-lm"]
    subprocess.run(command, check=True)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = compiler()
    if found is None:
        sys.exit("neither gcc nor clang with sanitizers is here")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), found)
        sys.exit(subprocess.run([program, str(given.rounds), str(given.seed)]).returncode)


if __name__ == "__main__":
    main()
