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
    import os
    import signal
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


    def deadly(shape, n_classes, mark: str = ""):
        def die():
            if not Path(mark).exists():
                Path(mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return _OnlyEvaluates(linear(shape, n_classes), die)
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
