"""When predictions are recorded, as optimizer steps; computed once, here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from sweeper.sections import RecordConfig


def record_steps(record: RecordConfig, epochs: int, steps_per_epoch: int) -> tuple[int, ...]:
    """The steps after which predictions are recorded, ascending.

    Step 0 (before training) and the last step are always among them.

    Parameters
    ----------
    record : `epoch` every epoch's end; `log` half octaves (1, 2, 3, 4, 6, 8, 11, 16, …); a list
        of epochs, fractions going to the nearest step and later ones left out; `manifold` see
        `_manifold`.
    epochs, steps_per_epoch : the trial's length, both at least 1.
    """
    last = epochs * steps_per_epoch
    if isinstance(record.schedule, str):
        wanted = _SCHEDULES[record.schedule](epochs, steps_per_epoch)
    else:
        wanted = (int(epoch * steps_per_epoch + 0.5) for epoch in record.schedule)
    return tuple(sorted({0, last, *(step for step in wanted if step <= last)}))


def _epoch(epochs: int, steps_per_epoch: int) -> Iterable[int]:
    return range(steps_per_epoch, epochs * steps_per_epoch + 1, steps_per_epoch)


def _log(epochs: int, steps_per_epoch: int) -> Iterable[int]:
    last = epochs * steps_per_epoch
    half_octaves = (round(2 ** (k / 2)) for k in itertools.count())
    return itertools.takewhile(lambda step: step <= last, half_octaves)


def _manifold(epochs: int, steps_per_epoch: int) -> Iterable[int]:
    """Four or five moments in each of epochs 0–4, then ever fewer epoch ends.

    Epochs count from 0. In epochs 0–4, after every batch whose index is a multiple of a quarter
    of an epoch, rounded down (of 1, when an epoch has fewer than four batches); then the ends of
    epochs 5–25, of every fourth epoch up to 65, and of every fifteenth after it.

    Mao et al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121; read in the authors' code.
    """
    quarter = max(1, steps_per_epoch // 4)
    for epoch in range(epochs):
        if epoch < 5:
            batches = range(0, steps_per_epoch, quarter)
            yield from (epoch * steps_per_epoch + batch + 1 for batch in batches)
        elif epoch <= 25 or epoch % (4 if epoch <= 65 else 15) == 0:
            yield (epoch + 1) * steps_per_epoch


_SCHEDULES: Mapping[str, Callable[[int, int], Iterable[int]]] = {
    "epoch": _epoch,
    "log": _log,
    "manifold": _manifold,
}
