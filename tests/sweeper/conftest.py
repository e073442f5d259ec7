"""Grids written to a file, expanded and refused; the command line in this process."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from sweeper.cli import main
from sweeper.errors import SweeperError
from sweeper.grid import expand, load_grid

BASE = {
    "data": {"name": "digits"},
    "model": {"name": "fc"},
    "optim": {"name": "sgd", "lr": 0.1},
    "epochs": 2,
}


@pytest.fixture(scope="session")
def base():
    """The base of grids that say nothing about it."""
    return copy.deepcopy(BASE)


@pytest.fixture(scope="session")
def without():
    """`BASE` without some of its dotted keys."""

    def cut(*keys):
        left = copy.deepcopy(BASE)
        for key in keys:
            section, _, name = key.partition(".")
            del left[section][name]
        return left

    return cut


@pytest.fixture
def grid_file(tmp_path):
    """Write a grid of these sections over `BASE`, and give its path."""

    def write(text=None, **sections):
        path = tmp_path / "g.yaml"
        content = json.dumps({"name": "g", "base": BASE} | sections) if text is None else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def expanded(grid_file):
    """The expansion of a grid of these sections."""
    return lambda *overrides, **sections: expand(load_grid(grid_file(**sections), overrides))


@pytest.fixture(scope="session")
def expand_quietly(tmp_path_factory):
    """The same where rules may do nothing, for examples that Hypothesis draws."""
    path = tmp_path_factory.mktemp("grids") / "g.yaml"

    def run(axes, **sections):
        path.write_text(json.dumps({"name": "g", "base": BASE, "axes": axes} | sections))
        return expand(load_grid(path), allow_empty_exclude=True)

    return run


@pytest.fixture
def refused(grid_file):
    """The error of a grid, its path taken off."""

    def refuse(text=None, *, overrides=(), **sections):
        path = grid_file(text, **sections)
        before = path.read_bytes()
        with pytest.raises(SweeperError) as caught:
            expand(load_grid(path, overrides))
        assert caught.value.where.startswith(f"{path}: ")
        assert caught.value.exit_code == 2
        assert path.read_bytes() == before
        caught.value.where = caught.value.where.removeprefix(f"{path}: ")
        return caught.value

    return refuse


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Runs the command line in this process: for commands that train little or nothing."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["sweeper", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capfd.readouterr())

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)  # which a trial sets
