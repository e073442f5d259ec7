"""Networks that fail in the middle of training, and the grid of the chaos run that has them.

What fails once leaves a mark, so that its next attempt goes well; where its mark is there already
it is as healthy as the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

MARKS = ("raises", "hangs", "exits", "crashes", "needs_memory")  # what happens once
ALWAYS, DIVERGES = "raises-always", "diverges"
CALM_STEPS = 5  # before anything happens

# What an attempt of each role may fail of, beside the worker that is lost under it; and how often.
OWN_FAILURE: Mapping[str, str] = {"raises": "bug", "needs_memory": "oom", ALWAYS: "bug"}


class _Acting(nn.Module):
    """Does something amid training, and nothing else than the network in it."""

    def __init__(self, inner: nn.Module, act: Callable[[], None]) -> None:
        super().__init__()
        self.inner, self.act, self.n_passes = inner, act, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            self.n_passes += 1
            if self.n_passes > CALM_STEPS:
                self.act()
        passed: Tensor = self.inner(x)
        return passed


def _network(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    n_inputs = torch.Size(shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, 16), nn.ReLU(), nn.Linear(16, n_classes))


def _once(mark: str, act: Callable[[], None]) -> Callable[[], None]:
    def acting() -> None:
        if not Path(mark).exists():
            Path(mark).touch()
            act()

    return acting


def _fail() -> None:
    raise RuntimeError("this architecture has a bug")


def _need_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def raises(shape: tuple[int, ...], n_classes: int, mark: str = "") -> nn.Module:
    return _Acting(_network(shape, n_classes), _once(mark, _fail))


def raises_always(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return _Acting(_network(shape, n_classes), _fail)


def hangs(shape: tuple[int, ...], n_classes: int, mark: str = "") -> nn.Module:
    return _Acting(_network(shape, n_classes), _once(mark, lambda: time.sleep(10_000)))


def exits(shape: tuple[int, ...], n_classes: int, mark: str = "", number: int = 9) -> nn.Module:
    die = _once(mark, lambda: os.kill(os.getpid(), number))
    return _Acting(_network(shape, n_classes), die)


def needs_memory(shape: tuple[int, ...], n_classes: int, mark: str = "") -> nn.Module:
    return _Acting(_network(shape, n_classes), _once(mark, _need_memory))


def slow(shape: tuple[int, ...], n_classes: int, gate: str = "") -> nn.Module:
    """Takes its time for every step, until the gate is there."""

    def wait() -> None:
        if not Path(gate).exists():
            time.sleep(0.2)

    return _Acting(_network(shape, n_classes), wait)


GRID = """
name: chaos
base:
  data.name: digits
  epochs: {epochs}
  record.schedule: manifold
  optim: {{name: adam, lr: 0.002, batch_size: 128}}
axes:
  trial:
    - {{model.name: fc, regularize.dropout: 0.1}}
    - {{model.name: cnn, augment.name: shift}}
    - {{model.name: vit, optim.name: adamw}}
    - {{model: {{name: fc, widths: [32]}}, optim.name: sgd, optim.lr: 1.0e+30}}
    - {{model: {{name: '{here}:raises', mark: {marks}/raises}}, optim.lr: 0.003}}
    - {{model: {{name: '{here}:raises_always'}}, optim.lr: 0.004}}
    - {{model: {{name: '{here}:hangs', mark: {marks}/hangs}}, optim.lr: 0.005}}
    - {{model: {{name: '{here}:exits', mark: {marks}/exits}}, optim.lr: 0.006}}
    - {{model: {{name: '{here}:exits', mark: {marks}/crashes, number: 11}}, optim.lr: 0.007}}
    - {{model: {{name: '{here}:needs_memory', mark: {marks}/needs_memory}}, optim.lr: 0.008}}
  seed: {{range: [0, {n_seeds}]}}
exclude:
  - seed > 0 and (model.name not in ['fc', 'cnn', 'vit'] or optim.lr > 1)
"""


def grid_text(marks: Path, epochs: int, n_seeds: int) -> str:
    """The grid, whose trials leave their marks there."""
    return GRID.format(here=__name__, marks=marks, epochs=epochs, n_seeds=n_seeds)


def role_of(config: Mapping[str, object]) -> str:
    """What a trial does: one of `MARKS`, `ALWAYS`, `DIVERGES`, or `healthy`."""
    name = str(config["model.name"]).rpartition(":")[2]
    if name == "raises_always":
        return ALWAYS
    if mark := config.get("model.mark"):
        return Path(str(mark)).name
    return DIVERGES if config["optim.lr"] == 1e30 else "healthy"
