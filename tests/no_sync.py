"""Finds what makes the host wait for the device, on a CPU, where nothing has to wait.

What cannot be seen here: `.tolist()` and `.numpy()`, which read a CPU's memory directly, and
copies from one device to another, except `torch.tensor(…)` of Python numbers. The optimizers of
torch read their own step count with `.item()` when they run on a CPU; on a GPU they keep it on the
CPU too, so that nothing waits there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The host needs a value, or the size of a result that depends on values.
_WAITING = {
    "_local_scalar_dense": "a value is read, as by .item(), float() or if",
    "bincount": "the result's size depends on values",
    "equal": "a value is read",
    "lift_fresh": "torch.tensor(…) is copied to the device",
    "masked_select": "the result's size depends on values",
    "nonzero": "the result's size depends on values",
    "unique_consecutive": "the result's size depends on values",
    "unique_dim": "the result's size depends on values",
    "_unique2": "the result's size depends on values",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class _Watch(TorchDispatchMode):
    """Tells `found` of every operation that would wait on a GPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        reason = _WAITING.get(name)
        if name in _INDEXING and any(_is_mask(index) for index in args[1]):
            reason = "a mask is an index"
        if reason is not None:
            self.found.append(f"{name}: {reason}")
        return function(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def counted_syncs() -> Iterator[list[str]]:
    """What would wait on a GPU, in order, while the context lasts."""
    found: list[str] = []
    with _Watch(found):
        yield found


@contextmanager
def no_syncs() -> Iterator[None]:
    """A failure if anything in it would wait on a GPU."""
    with counted_syncs() as found:
        yield
    assert not found, f"the host waits for the device: {found}"
