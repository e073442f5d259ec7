"""What a slot is asked to run and what it answers; light, so that every process can import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Order:
    """One attempt to be made: a trial, the root of its sweep's store, and how to run it."""

    trial_id: str
    config: Mapping[str, Any]
    root: str
    threads: int = 1
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    plug_ins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far an attempt is; the first one of an attempt says where it started."""

    trial_id: str
    attempt: int
    step: int
    n_steps: int
    host: str
    device: str


@dataclass(frozen=True)
class Waiting:
    """An attempt waits, without being lost, because of what is named."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `complete`, `diverged`, or `stopped` with a checkpoint."""

    trial_id: str
    attempt: int
    state: str
    seconds: float
    digest: str | None = None
