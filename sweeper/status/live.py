"""What a driver says of itself every few seconds: `live.json`, read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
    """What this driver wrote last; None without a driver, and when that is nothing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if driver is None or not _is_sound(found):
        return None
    if any(found.get(key) != driver.get(key) for key in ("pid", "host")):
        return None  # an earlier driver's, killed
    known = {key: found[key] for key in ("t", "n_slots", "n_gpus", "is_draining") if key in found}
    return Live(**known, running=found.get("running", {}))


def _is_sound(found: Any) -> bool:
    """Whether everything that is looked at is what it has to be."""
    if not isinstance(found, dict) or "t" not in found or not _has_sound(found, _OF_A_DRIVER):
        return False
    running = found.get("running", {})
    return isinstance(running, dict) and all(
        isinstance(now, dict) and _has_sound(now, _OF_A_TRIAL) for now in running.values()
    )


def _has_sound(found: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]) -> bool:
    return all(is_sound(found[key]) for key, is_sound in checks.items() if key in found)


def _is_number(value: Any) -> bool:
    """Whether it is a number of anything, NaN and what no float holds left out."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_MOST = 1e15
_OF_A_DRIVER: Mapping[str, Callable[[Any], bool]] = {
    "t": _is_number,
    "n_slots": _is_whole,
    "n_gpus": _is_number,
    "is_draining": _is_bool,
}
_OF_A_TRIAL: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_whole,
    "n_steps": _is_whole,
    "per_gpu": _is_whole,
    "since": _is_number,
    "beat": _is_number,
}
