"""Two analyses of one sweep do not mix."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import stages
from analysis.lock import locked
from sweeper.errors import AnalysisError

HOLD = """
import sys
from pathlib import Path
from analysis.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(sweep: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the sweep's artifacts."""
    command = [sys.executable, "-c", HOLD, str(sweep / "analysis")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("stage", [stages.distances, stages.embed, stages.report])
def test_a_second_analysis_is_refused_by_the_process_of_the_first(sweep, holder, stage):
    with pytest.raises(AnalysisError) as caught:
        stage(sweep)
    at_work = f"another analysis is at work, process `{holder.pid}`; one at a time"
    assert str(caught.value) == f"{sweep / 'analysis'}: {at_work}"
    assert f"`kill {holder.pid}`" in caught.value.hint
    assert caught.value.exit_code == 2
    assert [path.name for path in (sweep / "analysis").iterdir()] == ["lock"]


def test_a_killed_analysis_holds_nothing(sweep, holder):
    holder.kill()
    holder.wait()
    assert all(path.exists() for path in stages.distances(sweep))


def test_who_holds_a_folder_may_hold_it_again_inside_and_still_keeps_others_out(tmp_path):
    refused: list[AnalysisError] = []

    def other() -> None:
        try:
            with locked(tmp_path):
                pass
        except AnalysisError as error:
            refused.append(error)

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    other()
    assert len(refused) == 1


def test_folders_that_were_made_for_nothing_are_removed_and_no_others(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "kept" / "x" / "y" / "analysis"):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
