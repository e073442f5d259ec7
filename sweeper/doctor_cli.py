"""`sweeper doctor`: parse, look at this machine or at a cluster's nodes, say what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.errors import SweeperError
from sweeper.options import Address, Json, Set, ShardOption, StoreOption, SweepDirOption
from sweeper.planning import plan_grid, root_of
from sweeper.shard import Shard
from sweeper.sweep_dir import SweepDir

if TYPE_CHECKING:
    from sweeper.plan import Plan

MAX_TRIALS = 100_000

Grid = Annotated[
    Path | None, typer.Argument(metavar="[GRID]", help="A grid file that is to be launched.")
]


def doctor(
    grid: Grid = None,
    address: Address = None,
    sweep_dir: SweepDirOption = None,
    store: StoreOption = None,
    shard: ShardOption = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Look for what would stop a sweep, here or on every node of a cluster, and how to cure it.

    With GRID also its data, its plug-ins, and whether it fits. Leaves nothing behind.
    """
    from sweeper.doctor.consult import consult
    from sweeper.doctor.report import fields, show, verdict_of

    for option, given in (("--shard", shard), ("--set", set_)):
        if given and grid is None:
            raise SweeperError(option, "given without a grid", "`sweeper doctor GRID …`")
    share = None if shard is None else Shard.parse(shard)

    def planning() -> tuple[Plan, str, int]:
        from sweeper.schedule.driver import threads_per_trial

        assert grid is not None
        _, made, folder, _ = plan_grid(grid, sweep_dir, store, set_, MAX_TRIALS, True, share)
        return made, folder.root(root_of(store)), threads_per_trial(folder)

    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints is no finding
        found, n_nodes = consult(planning if grid else None, _root(sweep_dir, store), address)
    if as_json:
        print(json.dumps(fields(found), indent=1))
    else:
        show(found, n_nodes, sys.stdout)
    if verdict_of(found) == "fail":
        raise typer.Exit(SweeperError.exit_code)


def _root(sweep_dir: Path | None, store: str | None) -> str | None:
    """Where the store is, as far as it can be told without a grid."""
    if sweep_dir is None:
        return root_of(store)
    return os.path.abspath(SweepDir(sweep_dir).root(root_of(store)))
