"""What a sweep asks for that cannot be had: GPUs where there are none, epochs in no time."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.duration import duration
from sweeper.errors import PlanError, SweeperError
from sweeper.grid import Trial
from sweeper.plan import Plan
from sweeper.work import Rates

GPU_PRECISIONS = ("bf16", "fp16", "tf32")  # a processor emulates them, if it does not ignore them


def check_devices(todo: Sequence[Trial], n_gpus: int) -> None:
    """Refuse arithmetic of GPUs where there is none.

    Raises
    ------
    PlanError
    """
    asking = [trial for trial in todo if trial.config.precision in GPU_PRECISIONS]
    if not asking or n_gpus:
        return
    names = ", ".join(f"`{name}`" for name in sorted({t.config.precision for t in asking}))
    raise PlanError(
        "precision",
        f"{len(asking)} of {len(todo)} trials are to compute in {names}, and there is no GPU",
        "one at least, or `float32`",
        "`--set precision=float32` makes trials for processors, which are others than these; "
        "`--force` runs these all the same, slowly",
    )


def check_time_limit(made: Plan, rates: Rates, limit: float) -> None:
    """Refuse a limit in which no trial can end its first epoch, as far as earlier launches tell.

    Parameters
    ----------
    limit : seconds that a trial may run.

    Raises
    ------
    SweeperError
    """
    epochs = {trial.trial_id: trial.config.epochs for trial in made.todo}
    planned = made.work
    rows = zip(planned.ids, planned.shapes, planned.n_steps, planned.works, strict=True)
    spans = []
    for trial_id, shape, n_steps, work in rows:
        whole = rates.seconds(shape, n_steps, work) if trial_id in epochs else None
        if whole is not None:
            spans.append(whole / epochs[trial_id])
    # What is not known may be shorter.
    if len(spans) < len(epochs) or limit >= min(spans, default=0.0):
        return
    found = f"{_span(limit)}, and an epoch of the shortest trial takes {_span(min(spans))}"
    hint = "`sweeper status DIR` tells how long trials take"
    raise SweeperError("--time-limit", found, "long enough for a whole trial", hint)


def _span(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"
