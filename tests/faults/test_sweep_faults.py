"""A short form of `python -m tests.faults.sweep`; `SWEEPER_FAULTS=200` makes it as long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeper.attempt import Order
from sweeper.errors import SweeperError
from sweeper.schedule.rules import Rules
from sweeper.schedule.tune import TuneExecutor
from tests.faults.misbehaving import ALWAYS
from tests.faults.sweep_checks import Undisturbed, check_classes, check_leases, check_leftovers

FAULTS = int(os.environ.get("SWEEPER_FAULTS", "3"))
SHORT = ("--seed", "253", "--epochs", "8", "--seeds", "1")
ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600 if FAULTS > 20 else 600)
def test_a_sweep_on_a_cluster_ends_as_if_nothing_had_befallen_it():
    command = [sys.executable, "-m", "tests.faults.sweep", "--faults", str(FAULTS)]
    command += SHORT if FAULTS < 20 else ()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = {what.strip(): int(n.replace(",", "")) for n, what in rows(done.stdout)}
    injected = {what: n for what, n in table.items() if what.partition(":")[0] in KINDS}
    assert sum(injected.values()) == FAULTS
    assert table["sweeps that ended as if undisturbed"] >= 1
    assert table["in the journal: bug: this architecture has a bug"] >= 3


KINDS = (
    *("worker killed", "worker told to leave", "worker stopped for longer than it may"),
    *("queue killed", "driver killed", "driver told to leave", "raylet killed", "node killed"),
    "head killed",
    *("driver asked to stop in the directory", "disk filled"),
)


def rows(printed: str) -> list[list[str]]:
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    return [line for line in lines if len(line) == 2 and line[0].replace(",", "").isdigit()]


# --- what the checks themselves find ---------------------------------------------------------

ROLES = {"t1": "healthy", "t2": "raises", "t3": ALWAYS}


def event(name: str, trial: str = "", attempt: int = 1, **fields: Any) -> Mapping[str, Any]:
    return {"event": name, "trial": trial, "attempt": attempt, **fields}


def failed(kind: str, trial: str, name: str = "retried") -> Mapping[str, Any]:
    return event(name, trial, kind=kind, message="so it is")


def test_what_is_started_twice_at_once_is_found_out():
    started, again = event("started", "t1"), event("started", "t1", 2)
    check_leases([started, event("stopped", "t1"), again])
    check_leases([started, event("launched"), again])
    with pytest.raises(AssertionError, match="twice at once"):
        check_leases([started, again])
    with pytest.raises(AssertionError, match="twice at once"):
        check_leases([started, event("started", "t2"), event("stopped", "t2"), again])
    with pytest.raises(AssertionError, match="an attempt of before"):
        check_leases([again, event("stopped", "t1"), started])


def test_a_failure_of_a_class_that_nothing_explains_is_found_out():
    always = failed("bug", "t3", "failed")
    counts = check_classes([failed("lost", "t1"), failed("bug", "t2"), always], ROLES)
    assert counts == {"lost: so it is": 1, "bug: so it is": 2}
    for wrong in (
        [failed("bug", "t1"), always],
        [failed("oom", "t2"), always],
        [failed("storage", "t1"), always],
        [failed("bug", "t2"), failed("bug", "t2"), always],
        [always, failed("lost", "t3", "failed")],
    ):
        with pytest.raises(AssertionError):
            check_classes(wrong, ROLES)


@pytest.mark.parametrize(
    "name", ["live.json", "stop.request", "plan.parquet.0.partial", "checkpoints/t1/1-2.pt"]
)
def test_what_a_sweep_leaves_over_is_found_out(name: str, tmp_path: Path):
    undisturbed = Undisturbed(ROLES, {"t1": "d1", "t2": "d2"}, {})
    kept = tmp_path / "checkpoints/t3/1-2.pt"  # of what is not complete
    kept.parent.mkdir(parents=True)
    kept.touch()
    check_leftovers(tmp_path, undisturbed)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(AssertionError, match="left o"):
        check_leftovers(tmp_path, undisturbed)


# --- what the chaos found --------------------------------------------------------------------


def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        executor = TuneExecutor(address=address)
        with pytest.raises(SweeperError, match="nothing answers") as caught:
            executor.run([Order("t1", {}, str(tmp_path))], print, lambda: False, Rules())
    assert "ray status" in caught.value.hint
    assert caught.value.exit_code == 2


def test_tune_is_told_to_end_where_it_waits_for_slots_alone():
    # Imported here: it loads Ray, which reads what the executor puts into the environment.
    from sweeper.schedule.placement import Placement, _Source

    placement = Placement(1, lambda slot, reason: None)
    source = _Source(placement)
    assert source.suggest("slot") is None
    placement.end()
    assert source.suggest("slot") == source.FINISHED
