"""What a launch may ask of how its trials are run; nothing here changes a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STALLED_SECONDS = 1800.0  # without a step, before a worker is taken to hang


@dataclass(frozen=True)
class Rules:
    """How trials share devices, and how long they may take.

    Parameters
    ----------
    per_gpu : trials that share a GPU; None to go by the memory that each shape is seen to need.
    packed : trials of a shape that share a GPU, by shape and kind of GPU, as earlier launches of
        the sweep found out; what was found of no kind in particular is under "".
    time_limit : seconds that a trial may run in this launch, over all its attempts.
    stalled_after : seconds without a step after which a worker is lost, or ten times its shape's
        median epoch if that is longer.
    """

    per_gpu: int | None = None
    packed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    time_limit: float | None = None
    stalled_after: float = STALLED_SECONDS
