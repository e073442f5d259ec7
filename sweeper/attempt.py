"""What a slot is asked to run and what it answers; light, so that every process can import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHECKPOINT_SECONDS = 60.0
CONTEXT_BYTES = 600 << 20  # that a process holds of a GPU beside its tensors


@dataclass(frozen=True)
class Order:
    """One attempt to be made: a trial, the root of its sweep's store, and how to run it.

    Parameters
    ----------
    config : the trial's identity or more of its flat configuration; the defaults fill it up.
    config_id : `content_id` of the whole; empty to take what the defaults make of it.
    shape : trials of one shape compute the same graph and need as much memory (`shape_of`).
    per_gpu : how many such slots share the slot's GPU; set when the order is leased.
    sweep : the sweep's name, for trackers.
    log_to : names of the trackers that are told of every snapshot.
    """

    trial_id: str
    config: Mapping[str, Any]
    root: str
    threads: int = 1
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    plug_ins: Mapping[str, str] = field(default_factory=dict)
    shape: str = ""
    per_gpu: int = 1
    sweep: str = ""
    log_to: tuple[str, ...] = ()
    config_id: str = ""


@dataclass(frozen=True)
class Progress:
    """How far an attempt is; the first one of an attempt says where it started.

    `epoch` is below 0 in the first phase of a corner init. `peak_bytes` is the most memory of its
    device that the attempt has held so far, `device_bytes` what the device has; both 0 on a CPU.
    """

    trial_id: str
    attempt: int
    step: int
    n_steps: int
    host: str
    device: str
    epoch: float = 0.0
    per_gpu: int = 1
    peak_bytes: int = 0
    device_bytes: int = 0


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
