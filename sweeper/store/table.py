"""What the reader's tables say of a trial, sealed or unfinished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.store.moments import MOMENT_COLUMNS
from sweeper.store.moments import columns as names_of
from sweeper.store.staging import StagedTrial


@dataclass(frozen=True)
class Summary:
    """One trial in the table of trials; made of JSON values, as the index keeps it.

    `config` is as it was stored, of schema version `schema`; `attempt` is the newest; `metrics`
    are those of the last snapshot.
    """

    trial_id: str
    schema: int
    config: Mapping[str, Any]
    state: str
    n_snapshots: int
    digest: str | None
    attempt: int
    metrics: Mapping[str, float | None]


def sealed_moments(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Columns of step, epoch, time and metrics, one value a snapshot."""
    columns = {"step": found["steps"], "epoch": found["epochs"], "time": found["times"]}
    return {**columns, **found["metrics"]}


def staged_moments(staged: StagedTrial) -> dict[str, list[Any]]:
    """The same columns of an unfinished trial."""
    rows, names = staged.moments(), names_of(staged.header["metrics"])
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    return {**columns, "step": [int(step) for step in columns["step"]]}


def sealed_summary(found: dict[str, Any]) -> Summary:
    """A sealed trial's."""
    attempt = int(found["attempts"][-1]["attempt"])
    return _summary(found, sealed_moments(found), found["state"], found["digest"], attempt)


def staged_summary(staged: StagedTrial) -> Summary:
    """An unfinished trial's."""
    return _summary(staged.header, staged_moments(staged), "incomplete", None, staged.newest)


def _summary(
    header: dict[str, Any],
    moments: dict[str, list[Any]],
    state: str,
    digest: str | None,
    attempt: int,
) -> Summary:
    return Summary(
        trial_id=header["trial"],
        schema=int(header["schema"]),
        config=header["config"],
        state=state,
        n_snapshots=len(moments["step"]),
        digest=digest,
        attempt=attempt,
        metrics={
            name: values[-1]
            for name, values in moments.items()
            if values and name not in MOMENT_COLUMNS
        },
    )


def row_of(summary: Summary) -> dict[str, Any]:
    """A trial's row of the table of trials."""
    return {
        "trial_id": summary.trial_id,
        **{k: tuple(v) if isinstance(v, list) else v for k, v in summary.config.items()},
        "state": summary.state,
        "n_snapshots": summary.n_snapshots,
        "digest": summary.digest,
        **summary.metrics,
    }
