"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.errors import ConfigError, first_line


class Average:
    """The network whose weights are θ̄ ← decay · θ̄ + (1 − decay) · θ, from θ̄ = θ at the start.

    Only weights are averaged: buffers, such as the running statistics of batch norm, are those of
    the trained network. Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992; the exponential
    form as in Tarvainen & Valpola, NeurIPS 2017, arXiv:1703.01780, Eq. 1.

    Raises
    ------
    ConfigError : the network cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        try:
            self.model = copy.deepcopy(model).requires_grad_(False)
        except Exception as error:  # such as tensors that were computed from parameters
            reason = first_line(error)
            raise ConfigError(
                "regularize.ema",
                f"`{decay}`, but the network cannot be copied: {reason}",
                "0, or a network that `copy.deepcopy` copies",
            ) from error
        self._decay = decay
        self._averaged: list[Tensor] = list(self.model.parameters())
        self._trained: list[Tensor] = list(model.parameters())
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of another step; never waits for the device."""
        torch._foreach_lerp_(self._averaged, self._trained, 1 - self._decay)

    @torch.no_grad()
    def network(self) -> nn.Module:
        """The averaged network, its buffers brought up to date."""
        pairs = zip(self.model.buffers(), self._source.buffers(), strict=True)
        for averaged, trained in pairs:
            averaged.copy_(trained)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier average."""
        self.model.load_state_dict(state)
