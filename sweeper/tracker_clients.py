"""The trackers' own clients, each told of one trial: TensorBoard, MLflow, Weights & Biases.

One run a trial, named by the trial's id, that every attempt goes on with. Nothing of theirs is
imported before a run is opened; whatever they raise goes on to the caller.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

_ORDER_SECONDS = 2.0  # the most that TensorBoard's file waits for a name after the one before
_TRIAL_TAG = "sweeper.trial_id"  # by which MLflow finds a trial's run again
_STATE_TAG = "sweeper.state"
_AT_ONCE = 100  # parameters that MLflow takes in one request

Point = Mapping[str, float]  # a snapshot's step, epoch, time (Unix seconds) and metrics


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a trial: `config` is flat, `root` a folder or a URL."""

    trial_id: str
    sweep: str
    root: str
    config: Mapping[str, Any]

    @property
    def plain(self) -> dict[str, bool | int | float | str]:
        """The configuration with values of which every tracker can make a column."""
        return {
            key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for key, value in self.config.items()
        }


class Client(Protocol):
    """A run of one trial in a tracker; making one opens the run, anew or again."""

    def __init__(self, run: Run) -> None: ...

    def write(self, point: Point) -> None:
        """Tell of a snapshot; of one that the run has already, do not tell twice."""

    def close(self, state: str) -> None:
        """Tell how the attempt ended: `complete`, `diverged`, `stopped` or `failed`."""


def _metrics(point: Point) -> dict[str, float]:
    """What is drawn over steps; the epoch comes last, so that where it is all of them are."""
    named = {name: value for name, value in point.items() if name not in ("step", "epoch", "time")}
    return {**named, "epoch": point["epoch"]}


class _TensorBoard:
    """Event files in a folder a trial; each attempt voids those before it and tells all again."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = Path(run.root) / "tensorboard" / run.trial_id
        earlier = [path.name for path in folder.glob("events.out.tfevents.*")]
        _wait_to_come_after(earlier)
        purge_step = 0 if earlier else None
        self._writer = cast(Any, SummaryWriter(str(folder), purge_step=purge_step))
        _, start, self._success = hparams(run.plain, {})  # type: ignore[no-untyped-call]
        self._writer.file_writer.add_summary(start)
        self._last = 0

    def write(self, point: Point) -> None:
        self._last = int(point["step"])
        for name, value in _metrics(point).items():
            self._writer.add_scalar(name, value, self._last, walltime=point["time"])
        self._writer.flush()

    def close(self, state: str) -> None:
        # Only the first end of a session counts, so an attempt that others may follow has none.
        if state in ("complete", "diverged"):
            self._writer.file_writer.add_summary(self._success)
        self._writer.add_text("state", state, self._last)
        self._writer.close()


def _wait_to_come_after(earlier: Iterable[str]) -> None:
    """Event files are read in the order of their names, which begin with the second they are of."""
    seconds = [int(match[1]) for name in earlier if (match := re.search(r"tfevents\.(\d+)", name))]
    ahead = max(seconds, default=0) + 1 - time.time()
    time.sleep(min(max(ahead, 0.0), _ORDER_SECONDS))


class _MLflow:
    """A run in an experiment of the sweep's name, found again by its tag."""

    _STATUS: Mapping[str, str] = {  # MLflow has no `diverged`
        "complete": "FINISHED",
        "diverged": "FINISHED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, run: Run) -> None:
        from mlflow.tracking import MlflowClient

        # Its default is a database in the working folder, another one for every worker.
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise LookupError("MLFLOW_TRACKING_URI is not set on this worker")
        self._client: Any = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(run.sweep)
        ours = f"tags.`{_TRIAL_TAG}` = '{run.trial_id}'"
        found = self._client.search_runs([experiment], filter_string=ours, max_results=1)
        self._id = found[0].info.run_id if found else self._create(experiment, run)
        self._steps = {at.step for at in self._client.get_metric_history(self._id, "epoch")}
        if found:
            self._client.update_run(self._id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:  # another slot was first
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _create(self, experiment: str, run: Run) -> str:
        from mlflow.entities import Param

        tags = {_TRIAL_TAG: run.trial_id}
        made = self._client.create_run(experiment, run_name=run.trial_id, tags=tags)
        params = [Param(key, str(value)) for key, value in run.plain.items()]
        for i in range(0, len(params), _AT_ONCE):
            self._client.log_batch(made.info.run_id, params=params[i : i + _AT_ONCE])
        return str(made.info.run_id)

    def write(self, point: Point) -> None:
        from mlflow.entities import Metric

        step, at = int(point["step"]), int(1000 * point["time"])
        if step not in self._steps:
            named = _metrics(point).items()
            metrics = [Metric(name, value, at, step) for name, value in named]
            self._client.log_batch(self._id, metrics=metrics)
            self._steps.add(step)

    def close(self, state: str) -> None:
        self._client.set_tag(self._id, _STATE_TAG, state)
        self._client.set_terminated(self._id, self._STATUS[state])


class _Wandb:
    """A run of the trial's id, which the server goes on with when it has it.

    Offline every attempt leaves a folder, of which `wandb sync` uploads the last one over those
    before; so each of them holds the whole trial.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        # Else it asks for a key on the terminal, and takes over what other trials print.
        wandb.setup(settings=wandb.Settings(silent=True))
        own_place = "://" in run.root or "WANDB_DIR" in os.environ
        self._run: Any = wandb.init(
            id=run.trial_id,
            name=run.trial_id,
            project=run.sweep,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",  # slots may share a process, and a plug-in may have a run
            dir=None if own_place else run.root,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._first = self._run.step

    def write(self, point: Point) -> None:
        if (step := int(point["step"])) >= self._first:
            self._run.log(_metrics(point), step=step)

    def close(self, state: str) -> None:
        self._run.summary["state"] = state
        if state == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state in ("complete", "diverged") else 1)


CLIENTS: Mapping[str, type[Client]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _Wandb,
}
