"""What `sweeper plan` says: of a grid, what each rule did; of a launch, how much it would run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config import schema
from sweeper.duration import duration
from sweeper.grid import Expansion
from sweeper.journal import Tally
from sweeper.plan import Plan
from sweeper.shard import Shard
from sweeper.sweep_dir import SweepDir
from sweeper.work import Rates

Rows = Iterator[tuple[str, str]]
_WIDTH, _LONGEST = 60, 100  # of names and of values in characters, where they allow it


def plan_fields(
    expansion: Expansion, made: Plan, folder: SweepDir, root: str, shard: Shard | None = None
) -> dict[str, Any]:
    """The plan for `--json`; `seconds` is slot time, None before anything has run.

    `n_trials` are those of the grid, or of a shard of it, where `n_other_shards` are the others.

    `seconds_left` is what that takes on the `n_slots` of the last launch, and its `n_gpus`.
    """
    estimate = _estimate(made, folder)
    return {
        "name": expansion.name,
        "sweep_dir": str(folder.path),
        "store": root,
        "shard": shard and str(shard),
        "n_trials": len(made.trials),
        "n_other_shards": len(expansion.trials) - len(made.trials),
        "n_todo": len(made.todo),
        "n_product": expansion.n_product,
        "n_duplicates": expansion.n_duplicates,
        "axes": {label: len(values) for label, values in expansion.axes},
        "zip": [
            {"axes": pair.labels, "before": pair.n_product, "after": pair.n_values}
            for pair in expansion.zips
        ],
        "when": [
            {"if": when.condition, "combinations": when.n_combinations, "added": when.n_added}
            for when in expansion.whens
        ],
        "excluded": dict(expansion.excluded),
        "n_snapshots": made.n_snapshots,
        "n_bytes": made.n_bytes,
        "n_files": made.n_files,
        "seconds": estimate.seconds,
        "n_slots": estimate.n_slots,
        "n_gpus": estimate.n_gpus,
        "seconds_left": estimate.seconds_left,
    }


def plan_lines(
    grid: Path,
    expansion: Expansion,
    made: Plan,
    folder: SweepDir,
    root: str,
    shard: Shard | None = None,
) -> Iterator[str]:
    """The plan for people, one fact a line; `root` is where the store will be."""
    n_trials = _counted(len(expansion.trials), "trial")
    yield f"{grid}: {n_trials} of {_counted(expansion.n_product, 'combination')}"
    share = [(f"  shard {shard}", f"{len(made.trials):,} of {n_trials}")] if shard else []
    rows = [*_grid_rows(expansion), *share, *_launch_rows(made, folder, root)]
    width = max(len(name) for name, _ in rows if len(name) <= _WIDTH)
    yield from (f"{name:<{width}}  {value}" for name, value in rows)


def _grid_rows(expansion: Expansion) -> Rows:
    """The axes and what every rule did to their product."""
    for label, values in expansion.axes:
        yield f"  axis {label}", _values(label, values)
    for pair in expansion.zips:
        yield f"  zip {' + '.join(pair.labels)}", f"{pair.n_values:,} of {pair.n_product:,}"
    for when in expansion.whens:
        at = _counted(when.n_combinations, "combination")
        yield f"  when {when.condition}", f"+{when.n_added:,}, for {at}"
    for rule, n_removed in expansion.excluded:
        yield f"  exclude {rule}", f"-{n_removed:,}"
    if expansion.n_duplicates:
        yield "  duplicates folded", f"-{expansion.n_duplicates:,}"


def _launch_rows(made: Plan, folder: SweepDir, root: str) -> Rows:
    """What is left to run, and what it will take."""
    yield f"{folder.path}", f"{made.n_complete:,} complete"
    if root != str(folder.path):
        yield "  store", root
    yield "  to run", _counted(len(made.todo), "trial")
    yield "  snapshots", f"{made.n_snapshots:,}"
    yield "  predictions", f"{_bytes(made.n_bytes)} before compression"
    yield "  files", f"about {made.n_files:,} when sealed"
    yield "  time", _estimate(made, folder).text


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _bytes(n: int) -> str:
    """A size in the unit that leaves it below 1,000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1e3:.1f} kB"


def _values(label: str, values: Sequence[Any]) -> str:
    """How many, and the first few, as YAML would have them: at least one, no long line."""
    section = label.partition(", when ")[0] + "."
    shown = [_value(value, section) for value in values[:6]]
    while len(shown) > 1 and sum(map(len, shown)) > _LONGEST:
        shown.pop()
    return f"{len(values):,}: " + ", ".join(shown + ["..."] * (len(values) > len(shown)))


def _value(value: Any, section: str) -> str:
    """A value, the keys of a case as the grid may have them: relative to the axis's section."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, dict):
        return str(value)
    items = []
    for key, item in value.items():
        short = key.removeprefix(section)
        name = key if short in schema() else short  # `seed` alone is the trial's
        items.append(f"{name}: {_value(item, section)}")
    return "{" + ", ".join(items) + "}"


@dataclass(frozen=True)
class _Estimate:
    """Slot-seconds of what is left, and how long that takes where the last launch ran."""

    seconds: float | None
    n_slots: int | None
    n_gpus: int | None
    seconds_left: float | None

    @property
    def text(self) -> str:
        """For people."""
        if self.seconds is None:
            return "not yet measured"
        text = f"{duration(self.seconds)} of one slot"
        if self.seconds_left is None or (not self.n_gpus and self.n_slots in (None, 1)):
            return text
        places = _counted(self.n_gpus, "GPU") if self.n_gpus else str(self.n_slots)
        return f"{text}, {duration(self.seconds_left)} on the last launch's {places}"


def _estimate(made: Plan, folder: SweepDir) -> _Estimate:
    """From the trials of this sweep that have been measured."""
    tally = Tally.read(folder.status, folder.journal)
    rates = Rates(made.work, tally.trials)
    known = tally.trials
    left = {t.trial_id: known.get(t.trial_id, {}).get("step") or 0 for t in made.todo}
    launched = {**(tally.launched or {}), **(tally.ended or {})}  # its end knows the cluster
    n_slots, n_gpus = launched.get("n_slots"), launched.get("n_gpus")
    seconds_left = rates.eta(left, n_slots or 0, n_gpus or 0, tally.sharing)
    return _Estimate(_rounded(rates.remaining(left)), n_slots, n_gpus, _rounded(seconds_left))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
