"""What a driver says of itself every few seconds: `live.json`, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Live:
    """A driver at a moment.

    `running` has for each trial that is leased to a slot its `attempt`, `step`, `n_steps`,
    `epoch`, `host`, `device`, `per_gpu` (how many share its GPU), `since` and `beat` (Unix
    seconds: of its start and of its last sign of life).
    """

    t: float  # Unix seconds
    n_slots: int = 0
    n_gpus: float = 0
    is_draining: bool = False
    running: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def share_in_use(self) -> float:
        """GPUs' worth of slots that run a trial; slots, where there are no GPUs."""
        if not self.n_gpus:
            return float(len(self.running))
        return sum(1 / max(1, found.get("per_gpu") or 1) for found in self.running.values())

    @property
    def oldest(self) -> str | None:
        """The running trial that has been silent the longest."""
        beats = {trial: found["beat"] for trial, found in self.running.items() if "beat" in found}
        return min(beats, key=lambda trial: beats[trial], default=None)


def read_live(path: Path, driver: Mapping[str, Any] | None) -> Live | None:
    """What this driver wrote last; None when that is nothing yet, or there is no driver."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if driver is None or not isinstance(found, dict) or "t" not in found:
        return None
    if any(found.get(key) != driver.get(key) for key in ("pid", "host")):
        return None  # an earlier driver's, killed
    known = {key: found[key] for key in ("t", "n_slots", "n_gpus", "is_draining") if key in found}
    return Live(**known, running=found.get("running") or {})
