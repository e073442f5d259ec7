"""Options of commands: those that several have, and those of planning and running a sweep."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated

import typer

from sweeper.errors import SweeperError


class ExecutorName(enum.StrEnum):
    """Where trials run."""

    local = "local"
    tune = "tune"


class TrackerName(enum.StrEnum):
    """What is told of every snapshot, beside the store."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


GridPath = Annotated[
    Path, typer.Argument(metavar="GRID", help="A grid file, e.g. grids/digits.yaml.")
]
SweepPlace = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="A sweep directory, or what --store named: a folder or a URL."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SweepDirOption = Annotated[
    Path | None,
    typer.Option(
        "--sweep-dir",
        metavar="DIR",
        help="Default: runs/<grid name>; of a shard, runs/<grid name>-<i>-of-<N>.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only this share of the trials: `2/8`."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where predictions, checkpoints and logs go: a folder or `s3://bucket/prefix`. "
        "Default: the sweep directory.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Go on although the disk seems too small, or a node or device unfit."
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of `base`.")
]
MaxTrials = Annotated[int, typer.Option("--max-trials", help="Refuse a larger grid.")]
AllowEmpty = Annotated[
    bool,
    typer.Option(
        "--allow-empty-exclude", help="Accept an `exclude` or `when` that matches nothing."
    ),
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="`local`: one slot in this process; `tune`: Ray.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="A Ray cluster to join, `auto` or `host:port`; else one here."),
]
Slots = Annotated[
    int | None,
    typer.Option("--slots", min=1, help="Ask for so many slots. Default: all there is room for."),
]
PerGPU = Annotated[
    int | None,
    typer.Option(
        "--per-gpu",
        min=1,
        max=64,
        help="Trials that share a GPU. Default: by the memory that each shape is seen to need.",
    ),
]
TimeLimit = Annotated[
    str | None, typer.Option("--time-limit", metavar="TIME", help="Fail a trial that takes longer.")
]
StalledAfter = Annotated[
    str | None,
    typer.Option(
        "--stalled-after",
        metavar="TIME",
        help="Replace a worker that makes no step for so long, and for ten epochs. Default: 30m.",
    ),
]
StopAfter = Annotated[
    str | None,
    typer.Option("--stop-after", metavar="TIME", help="Checkpoint and stop after, e.g., 55m."),
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Go on in the background; DIR/driver.log tells.")
]
LogTo = Annotated[
    list[TrackerName] | None,
    typer.Option("--log-to", help="Also log every snapshot's metrics there; repeatable."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Run at most this many trials.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before running.")]
CheckpointEvery = Annotated[
    str, typer.Option("--checkpoint-every", metavar="TIME", help="Between a trial's checkpoints.")
]
AllowCodeChange = Annotated[
    bool, typer.Option("--allow-code-change", help="Mix trials of two versions of a plug-in.")
]


_PART = r"([0-9]+(?:\.[0-9]+)?)([dhms]?)"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


def seconds_of(option: str, text: str, at_least: float = 1.0) -> float:
    """The seconds of `90`, `55m`, `1h30m`, `2d`.

    Raises
    ------
    SweeperError : it is no such time, or a shorter one than is allowed.
    """
    parts = re.findall(_PART, text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not re.fullmatch(f"(?:{_PART})+", text) or seconds < at_least:
        raise SweeperError(option, f"`{text}`", "a time such as `90`, `55m`, `1h30m` or `2d`")
    return seconds
