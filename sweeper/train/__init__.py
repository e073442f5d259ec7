"""Train one network and say what happened, moment by moment."""

from sweeper.train import checkpoint, data
from sweeper.train.corner import labels_fitted
from sweeper.train.dry_run import check
from sweeper.train.length import planned_steps
from sweeper.train.loop import Moment, metric_names, train

__all__ = [
    "Moment",
    "check",
    "checkpoint",
    "data",
    "labels_fitted",
    "metric_names",
    "planned_steps",
    "train",
]
