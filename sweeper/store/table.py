"""What the reader's tables say of a trial, sealed or unfinished."""

from __future__ import annotations

from typing import Any

from sweeper.store.staging import StagedTrial
from sweeper.store.writer import MOMENT_COLUMNS


def sealed_moments(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Columns of step, epoch, time and metrics, one value a snapshot."""
    columns = {"step": found["steps"], "epoch": found["epochs"], "time": found["times"]}
    return {**columns, **found["metrics"]}


def staged_moments(staged: StagedTrial) -> dict[str, list[Any]]:
    """The same columns of an unfinished trial."""
    rows = [staged.moment(i) for i in range(staged.n_recorded)]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in staged.columns}
    return {**columns, "step": [int(step) for step in columns["step"]]}


def sealed_row(found: dict[str, Any]) -> dict[str, Any]:
    """A sealed trial's row of the table of trials."""
    return _row(found, sealed_moments(found), state=found["state"], digest=found["digest"])


def staged_row(staged: StagedTrial) -> dict[str, Any]:
    """An unfinished trial's row of the table of trials."""
    return _row(staged.header, staged_moments(staged), state="incomplete", digest=None)


def _row(
    header: dict[str, Any], moments: dict[str, list[Any]], state: str, digest: str | None
) -> dict[str, Any]:
    config = {key: _hashable(value) for key, value in header["config"].items()}
    last = {name: values[-1] for name, values in moments.items() if values}
    return {
        "trial_id": header["trial"],
        **config,
        "state": state,
        "n_snapshots": len(moments["step"]),
        "digest": digest,
        **{name: value for name, value in last.items() if name not in MOMENT_COLUMNS},
    }


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
