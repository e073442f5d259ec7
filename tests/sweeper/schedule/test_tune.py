"""What the driver makes of what its queue says. No cluster is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sweeper.errors import ClusterError
from sweeper.schedule.packing import Devices
from sweeper.schedule.polled import Polled
from sweeper.schedule.tune import TuneExecutor

NOTHING: Mapping[str, Any] = {
    **{"events": [], "condemned": [], "demands": [], "running": {}, "kinds": {}},
    **{"avoided": frozenset(), "astray": frozenset(), "is_done": False},
    **{"barren": "", "stranded": ""},
}


def watch(monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    """Follow a queue that says this."""
    executor = TuneExecutor()
    monkeypatch.setattr(executor, "_count", lambda avoided=(): (Devices({}), {}))
    monkeypatch.setattr(ray, "get", lambda asked: asked)
    found = Polled(**{**NOTHING, **said})
    queue = SimpleNamespace(poll=SimpleNamespace(remote=lambda drain, sites: found))
    placing: Any = SimpleNamespace(is_alive=lambda: True)
    executor._watch(queue, SimpleNamespace(), placing, lambda event: None, lambda: False)


def test_where_all_that_is_left_waits_for_gpus_that_are_gone_the_launch_ends_resumable(
    monkeypatch: pytest.MonkeyPatch,
):
    said = "2 trials wait for a GPU of kind `B`, which no node has: `vit b64`"
    with pytest.raises(ClusterError) as told:
        watch(monkeypatch, stranded=said)
    assert str(told.value) == f"ray: {said}; at least one such node"
    assert "nothing is lost: launch again" in told.value.hint
    assert "`--slots N` waits" in told.value.hint
    assert told.value.exit_code == 4


def test_where_no_node_is_fit_it_ends_and_says_why(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ClusterError, match="no node is left for trials: other code") as told:
        watch(monkeypatch, barren="other code")
    assert "install sweeper" in told.value.hint
