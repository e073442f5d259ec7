"""The arithmetic of a training step: number formats, memory layout, compilation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_HALF: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compile_network(model: nn.Module) -> None:
    """Have PyTorch compile a network when it is first used, the same in whatever process.

    What the process compiled before is forgotten: by itself the compiler would give up, without a
    word, at the ninth variant of all trials of a slot. Each shape of a batch is compiled apart, or
    the code would depend on which shape came first, and so on where a trial was resumed.
    """
    torch.compiler.reset()
    model.compile(dynamic=False)


class Precision:
    """How products are computed; weights, optimizer and predictions are float32 in all of them.

    `float32` is IEEE single precision, on GPUs too, where PyTorch by itself convolves in TF32;
    `tf32` rounds the factors of products to 10 bits of mantissa on GPUs that can, and is `float32`
    elsewhere; `bf16` and `fp16` are PyTorch's automatic mixed precision, `fp16` with the loss
    scaled so that small gradients do not vanish (Micikevicius et al., "Mixed Precision Training",
    ICLR 2018, arXiv:1710.03740).

    Parameters
    ----------
    name : `float32`, `tf32`, `bf16` or `fp16`.
    channels_last : keep images as height × width × channels, which GPUs convolve faster in half
        precision.
    """

    def __init__(self, name: str, channels_last: bool, device: torch.device) -> None:
        self.name, self.device = name, device
        self._channels_last = channels_last
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def prepare(self, model: nn.Module) -> None:
        """Set the device up and put the model's weights in their place, in the chosen layout."""
        if self.device.type == "cuda":
            exact = "tf32" if self.name == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = exact
            torch.backends.cudnn.conv.fp32_precision = exact  # type: ignore[attr-defined]
            torch.backends.cudnn.rnn.fp32_precision = exact  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole trial
        model.to(self.device)
        if self._channels_last:
            model.to(memory_format=torch.channels_last)

    def _laid_out(self, x: Tensor) -> Tensor:
        """The same values in the chosen layout, which only images and their filters have."""
        if not self._channels_last or x.ndim != 4:
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """The model's output for inputs `x`, (batch, n_classes) float32."""
        x = self._laid_out(x)
        if self.name not in _HALF:
            return model(x)
        with torch.autocast(self.device.type, dtype=_HALF[self.name]):
            return model(x).float()

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled in fp16."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Take the scale off the gradients, so that they can be clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step; in fp16 none, if a gradient overflowed, and a smaller scale then."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its history; empty but in fp16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an earlier scale."""
        self._scaler.load_state_dict(state)
