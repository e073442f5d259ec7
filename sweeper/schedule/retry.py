"""What kind of failure an error is, and how often a trial is tried again."""

from __future__ import annotations

from sweeper.errors import CheckpointError, ConfigError, StoreError

LOST_BUDGET = 5  # times that a trial's worker may die before the trial counts as failed


def classify(error: BaseException) -> str:
    """The failure class of an error that a trial raised: `invalid`, `storage` or `bug`."""
    if isinstance(error, ConfigError):
        return "invalid"
    if isinstance(error, (StoreError, CheckpointError, OSError)):
        return "storage"
    return "bug"
