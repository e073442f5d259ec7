"""How many slots share a GPU: by the memory that a shape is seen to need; pure.

A share is always 1/k of one GPU: any other fraction can be free in sum and on no single GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.attempt import CONTEXT_BYTES
from sweeper.schedule.rules import Rules

CHOICES = (8, 4, 2, 1)  # of slots a GPU, tried in this order
HEADROOM = 1.25  # above the most that tensors took: what lies between them is lost, too


def fitting(peak_bytes: int, device_bytes: int) -> int:
    """How many trials that need so much fit on a GPU that has so much; at least one."""
    each = peak_bytes * HEADROOM + CONTEXT_BYTES
    return next((k for k in CHOICES if k * each <= device_bytes), 1)


class Packing:
    """How many trials of each shape may share a GPU, as far as it is known.

    A shape that nothing is known of has a GPU to itself until its first trial shows what it needs.
    """

    def __init__(self, rules: Rules) -> None:
        self._fixed = rules.per_gpu
        self._known = {} if rules.per_gpu else dict(rules.packed)
        self._peaks: dict[str, int] = {}

    def per_gpu(self, shape: str) -> int:
        """How many trials of this shape may share a GPU."""
        return self._known.get(shape, self._fixed or 1)

    def measured(self, shape: str, peak_bytes: int, device_bytes: int) -> int | None:
        """Take a measurement; the new number for the shape, None when it stays.

        Only the first one can raise the number, and none can raise what was demoted.
        """
        if self._fixed or not device_bytes or peak_bytes <= self._peaks.get(shape, 0):
            return None
        self._peaks[shape] = peak_bytes
        found = fitting(peak_bytes, device_bytes)
        if shape in self._known and found >= self._known[shape]:
            return None
        return self._set(shape, found)

    def out_of_memory(self, shape: str, per_gpu: int) -> int | None:
        """A trial found too little memory beside others; the new number, None when it stays."""
        fewer = max(per_gpu // 2, 1)
        return self._set(shape, fewer) if fewer < self.per_gpu(shape) else None

    def _set(self, shape: str, per_gpu: int) -> int:
        self._known[shape] = per_gpu
        return per_gpu


@dataclass(frozen=True)
class Demand:
    """What the trials of one number a GPU are at: how many could start now, how many run."""

    per_gpu: int
    n_ready: int
    n_running: int


@dataclass(frozen=True)
class Devices:
    """What there is for slots: GPUs, and how many slots its processors can feed.

    `n_gpus` is None where slots are to have none; 0 when there is none at the moment.
    """

    n_gpus: int | None
    n_slots: int


def missing_slots(
    demands: Sequence[Demand], asked: Mapping[int, int], devices: Devices
) -> list[int]:
    """The slots to add, each by how many of its kind share a GPU.

    Without GPUs the demand is all for whole slots.

    Parameters
    ----------
    demands : in the order in which their trials run.
    asked : slots that there are or that wait to be placed, by how many share a GPU. Those of one
        number are taken to fill GPUs one after another.
    """
    n_left = devices.n_slots - sum(asked.values())
    free = (devices.n_gpus or 0) - sum(_gpus(n, per_gpu) for per_gpu, n in asked.items())
    added: list[int] = []
    for demand in demands:
        there = asked.get(demand.per_gpu, 0)
        n = min(demand.n_ready + demand.n_running - there, n_left)
        if devices.n_gpus is not None:
            n = min(n, -there % demand.per_gpu + max(free, 0) * demand.per_gpu)
        if n <= 0:
            continue
        added += [demand.per_gpu] * n
        n_left -= n
        free -= _gpus(there + n, demand.per_gpu) - _gpus(there, demand.per_gpu)
    return added


def _gpus(n_slots: int, per_gpu: int) -> int:
    """How many GPUs so many slots take up."""
    return -(-n_slots // per_gpu)
