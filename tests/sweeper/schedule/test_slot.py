"""Whether a slot's process runs the driver's code, looked at again before its node is given up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeper.schedule.code import code_here, difference, forget_sources
from sweeper.schedule.slot import AGAIN_SECONDS, AGREE_SECONDS, _is_passing


class Time:
    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("late", [0.0, 3.0, 59.0])
def test_a_difference_that_goes_within_the_minute_of_nfs_is_none(late: float):
    time = Time()
    assert _is_passing(lambda: "other" if time.now < late else "", time.sleep, time.clock)
    assert time.now <= late + AGAIN_SECONDS


def test_one_that_stays_is_one():
    time = Time()
    assert not _is_passing(lambda: "other", time.sleep, time.clock)
    assert AGREE_SECONDS <= time.now <= AGREE_SECONDS + AGAIN_SECONDS


@pytest.mark.parametrize("before", [None, "x = 1\n"])
def test_a_plug_in_is_seen_as_it_is_in_its_file_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
):
    """Whether its file was an older one, or was not there at all."""
    name = f"late_plug_in_{before is None}"
    path = tmp_path / f"{name}.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    if before is not None:
        path.write_text(before)
    old = code_here([f"{name}:x"])
    path.write_text("x = 1  # changed\n")
    forget_sources()
    new = code_here([f"{name}:x"])
    del sys.modules[name]
    forget_sources()
    assert difference(old, new) != ""
    assert difference(code_here([f"{name}:x"]), new) == ""
