"""A driver whose sweep another has taken over."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.attempt import Order, Outcome, Progress
from sweeper.durable import write_atomically
from sweeper.errors import SweepDirError
from sweeper.grid import Trial
from sweeper.plan import make_plan
from sweeper.schedule.driver import Launch, drive
from sweeper.schedule.local import LocalExecutor
from sweeper.store import claim
from sweeper.sweep_dir import SweepDir
from sweeper.trial import size_of


def test_a_driver_whose_sweep_was_taken_over_drains(
    tmp_path: Path, make_trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.001)
    store, ran = tmp_path / "store", []
    theirs = store / "sweeps/g/driver.json"
    rival = {"host": "elsewhere", "pid": 4321, "token": "theirs"}

    def pretend(order: Order, should_stop: Callable[[], bool], tell: Any) -> Outcome:
        tell(Progress(order.trial_id, 1, 0, 10, socket.gethostname(), "cpu"))
        ran.append(order.trial_id)
        while not should_stop():
            write_atomically(theirs, json.dumps(rival | {"t": time.time()}).encode())
            time.sleep(0.001)
        return Outcome(order.trial_id, 1, "stopped", 0.1, "")

    trials = [make_trial(seed=0), make_trial(seed=1)]
    folder = SweepDir(tmp_path / "one")
    launch = Launch("g", "name: g\n", root=str(store))
    with pytest.raises(SweepDirError, match="held by another driver, process 4321 on elsewhere"):
        drive(
            folder, make_plan(trials, (), size_of), launch, LocalExecutor(pretend), lambda *_: None
        )
    assert len(ran) == 1
    last = json.loads(folder.journal.read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("ended", "stopped")
    assert json.loads(theirs.read_text())["token"] == "theirs"
    assert folder.driver() is None


def test_no_credential_of_the_driver_is_sent_with_a_slot(monkeypatch: pytest.MonkeyPatch):
    """Ray writes what is sent into the logs of every node."""
    pytest.importorskip("ray")
    from ray.tune.execution.class_cache import _ActorClassCache

    import sweeper.schedule.placement  # noqa: F401

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "sentinel-credential")
    sent = _ActorClassCache().get(type("Slot", (), {}))._default_options["runtime_env"]
    assert sent["env_vars"]
    assert "sentinel-credential" not in repr(sent)
