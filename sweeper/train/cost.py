"""What a trial costs, as far as that can be known without running it; nothing is read for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.sections import InitConfig, OptimConfig
from sweeper.train.data import describe
from sweeper.train.dry_run import forward_flops, network_of
from sweeper.train.length import Phase, phases, planned_steps

# A backward pass is two products for each one of the forward pass: with the weights, for the
# gradient of what came in, and with what came in, for that of the weights.
_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """What a trial costs.

    Parameters
    ----------
    n_steps : optimizer steps, those of a corner among them.
    n_snapshots : how often it is recorded.
    work : floating point operations of training and of recording; 0 where not even the network
        can be built.
    """

    n_steps: int
    n_snapshots: int
    work: float


def cost_of(config: TrialConfig) -> Cost:
    """The cost of a trial.

    Raises
    ------
    ConfigError : see `phases`.
    """
    return _cost(_bare(config))


def _bare(config: TrialConfig) -> TrialConfig:
    """A trial with no more in it than sets its cost, which many trials then share."""
    return TrialConfig(
        data=config.data,
        model=config.model,
        optim=OptimConfig(name="sgd", lr=1.0, batch_size=config.optim.batch_size),
        regularize=network_of(config.regularize),
        init=InitConfig(corner=config.init.corner),
        record=config.record,
        epochs=config.epochs,
        channels_last=config.channels_last,
    )


@functools.lru_cache(maxsize=65536)
def _cost(config: TrialConfig) -> Cost:
    in_order, n_snapshots = phases(config), len(planned_steps(config))
    n_samples = _PASSES * sum(map(_n_trained, in_order)) + n_snapshots * _n_evaluated(config)
    return Cost(in_order[-1].last, n_snapshots, _flops(config) * n_samples)


def _n_trained(phase: Phase) -> int:
    """Samples that pass through the network in the phase, however often each."""
    return phase.epochs * min(phase.steps_per_epoch * phase.batch_size, phase.n_samples)


def _n_evaluated(config: TrialConfig) -> int:
    """Samples that are looked at for a snapshot."""
    described = describe(config.data)
    return described.n_test + (config.record.train != "none") * described.n_train


def _flops(config: TrialConfig) -> float:
    try:
        return forward_flops(config)
    except ConfigError:  # `check` is there to refuse it
        return 0.0
