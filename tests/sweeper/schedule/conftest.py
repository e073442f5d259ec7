"""A plug-in as a user would write it, and trials that use it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.config import TrialConfig
from sweeper.grid import Trial

PLUG_IN = """
    import fcntl
    import os
    import signal
    import time
    from pathlib import Path

    import torch
    from torch import nn


    def linear(shape, n_classes, bias: bool = True):
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), n_classes, bias))


    class _OnlyEvaluates(nn.Module):
        def __init__(self, inner, action):
            super().__init__()
            self.inner, self.action = inner, action

        def forward(self, x):
            if self.training:
                self.action()
            return self.inner(x)


    def failing(shape, n_classes):
        def fail():
            raise RuntimeError("this architecture has a bug")
        return _OnlyEvaluates(linear(shape, n_classes), fail)


    def _once(mark, action):
        def act():
            if not Path(mark).exists():
                Path(mark).touch()
                action()
        return act


    def deadly(shape, n_classes, mark: str = "", number: int = 9):
        die = _once(mark, lambda: os.kill(os.getpid(), number))
        return _OnlyEvaluates(linear(shape, n_classes), die)


    def hanging(shape, n_classes, mark: str = "", always: bool = False):
        def hang():
            if always or not Path(mark).exists():
                Path(mark).touch()
                time.sleep(1000)
        return _OnlyEvaluates(linear(shape, n_classes), hang)


    def flaky(shape, n_classes, mark: str = ""):
        def fail():
            raise RuntimeError("something that does not happen again")
        return _OnlyEvaluates(linear(shape, n_classes), _once(mark, fail))


    class _Hungry(nn.Module):
        # Needs more than half of a GPU: two of them at a time are too many.

        def __init__(self, inner, memory):
            super().__init__()
            self.inner, self.memory, self.held = inner, memory, None

        def forward(self, x):
            if self.training and self.held is None:
                self.held = open(self.memory, "a")
                try:
                    fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    Path(self.memory + ".full").touch()
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                while not Path(self.memory + ".full").exists():  # until another has tried
                    time.sleep(0.05)
            return self.inner(x)

        def __del__(self):
            if self.held is not None:
                self.held.close()


    def hungry(shape, n_classes, memory: str = ""):
        return _Hungry(linear(shape, n_classes), memory)
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module beside the user's grid, importable from the working directory."""
    (tmp_path / "their_models.py").write_text(textwrap.dedent(PLUG_IN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "their_models"


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """A trial of a few steps on digits; keywords are options of the model."""

    def make(model: str = "fc", *, seed: int = 0, epochs: int = 1, **options: Any) -> Trial:
        config = TrialConfig.from_flat(
            {
                "data.name": "digits",
                "model.name": model,
                "optim.name": "sgd",
                "optim.lr": 0.1,
                "optim.batch_size": 256,
                "epochs": epochs,
                "seed": seed,
                **{f"model.{key}": value for key, value in options.items()},
            }
        )
        return Trial(config.trial_id, config)

    return make
