"""Train one network and say what happened, moment by moment."""

from sweeper.train import checkpoint, data
from sweeper.train.dry_run import check
from sweeper.train.length import planned_steps, steps_per_epoch
from sweeper.train.loop import Moment, train

__all__ = ["Moment", "check", "checkpoint", "data", "planned_steps", "steps_per_epoch", "train"]
