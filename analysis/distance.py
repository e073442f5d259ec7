"""Which distance a matrix is of."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis import linear
from analysis.bhattacharyya import COEFFICIENT_FLOOR, local_kernels
from analysis.blocks import Kernels
from sweeper.errors import AnalysisError, nearest


@dataclass(frozen=True)
class Distance:
    """A distance between snapshots.

    Attributes
    ----------
    name : as it is asked for and recorded.
    text : as readers are told.
    kernels : what computes it.
    parameters : what else of it is recorded.
    has_closed_truth : as in `DistanceBlocks`.
    """

    name: str
    text: str
    kernels: Kernels
    parameters: Mapping[str, float] = field(default_factory=dict)
    has_closed_truth: bool = False


BHATTACHARYYA = "bhattacharyya"
KINDS = {
    kind.name: kind
    for kind in (
        Distance(
            BHATTACHARYYA,
            "mean Bhattacharyya distances",
            local_kernels,
            {"coefficient_floor": COEFFICIENT_FLOOR},
            has_closed_truth=True,
        ),
        Distance(
            "hellinger",
            "mean Hellinger distances, 1 − Σ √(pq)",
            functools.partial(linear.kernels, linear.Hellinger),
        ),
        Distance(
            "symmetrised-kl",
            "mean symmetrised Kullback–Leibler divergences",
            functools.partial(linear.kernels, linear.SymmetrisedKL),
            {"probability_floor": linear.PROBABILITY_FLOOR},
        ),
    )
}


def kind_of(name: str) -> Distance:
    """The distance of that name.

    Raises
    ------
    AnalysisError : there is none.
    """
    if name not in KINDS:
        raise AnalysisError(
            "--distance", f"`{name}`", f"one of {', '.join(KINDS)}", nearest(name, KINDS)
        )
    return KINDS[name]


def distance_of(about: Mapping[str, Any]) -> str:
    """The name of the distance that an artifact's provenance says; the first versions had one."""
    return str(about["parameters"].get("distance", BHATTACHARYYA))
