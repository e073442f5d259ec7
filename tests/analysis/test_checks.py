"""`analyze check`: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis import checks, memory
from analysis.bhattacharyya import pairwise
from analysis.cli import app
from analysis.inpca import inpca
from sweeper.errors import AnalysisError
from sweeper.store import open_store

COMPLETE = ("t0", "t1", "t2", "t3")


def test_of_all_snapshots_the_stress_is_that_of_the_embedding(sweep):
    [path] = checks.check(sweep, n_resamples=5)
    found = json.loads(path.read_bytes())
    store = open_store(sweep)
    log_p = np.concatenate([store.log_probs(trial_id, "test") for trial_id in COMPLETE])
    assert found["n_snapshots"] == len(log_p)
    n_axes = len(found["explained_stress"]["bhattacharyya"])
    expected = inpca(pairwise(log_p, kernel="reference"), n_axes).explained_stress
    np.testing.assert_allclose(found["explained_stress"]["bhattacharyya"], expected, atol=1e-6)
    assert min(found["explained_stress"]["standard_error"]) >= 0
    assert 0 < found["distances"]["relative_standard_error"] < 1


def test_it_is_told_and_not_done_again(sweep):
    runner = CliRunner()
    first = runner.invoke(app, ["check", str(sweep), "--resamples", "5", "--snapshots", "6"])
    assert first.exit_code == 0, first.output
    assert "6 snapshots" in first.stderr
    assert "±" in first.stderr
    assert "symmetrised kl" in first.stderr
    assert first.stdout.strip().endswith("checks.json")
    again = runner.invoke(app, ["check", str(sweep), "--resamples", "5", "--snapshots", "6"])
    assert "checks: unchanged" in again.stderr
    assert first.stderr.splitlines()[-4:] == again.stderr.splitlines()[-4:]


@pytest.mark.parametrize(
    ("asked", "what"), [({"n_snapshots": 3}, "--snapshots"), ({"n_resamples": 1}, "--resamples")]
)
def test_too_few_are_refused(sweep, asked, what):
    with pytest.raises(AnalysisError, match=what):
        checks.check(sweep, **asked)


@pytest.mark.parametrize("p", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
def test_snapshots_that_all_coincide_are_refused(tmp_path, monkeypatch, write_trial, p):
    same = lambda logits, axis: np.log(np.tile(p, (len(logits), 1)))  # noqa: E731
    monkeypatch.setitem(write_trial.__globals__, "log_softmax", same)
    write_trial(tmp_path, "t0")
    with pytest.raises(AnalysisError, match="all snapshots coincide"):
        checks.check(tmp_path)
    assert not (tmp_path / "analysis").exists()


def test_too_many_for_the_memory_are_refused_with_how_many_are_not(sweep, monkeypatch):
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    given = (128 << 20) + (100 << 10)
    with pytest.raises(AnalysisError) as caught:
        checks.check(sweep, memory=given)
    assert "--snapshots: `20` take" in str(caught.value)
    assert "with 100 resamples, 100 KiB are left; up to " in str(caught.value)
    assert caught.value.hint == "fewer `--resamples` take less, or give more `--memory`"
    assert not (sweep / "analysis" / "checks.json").exists()
    most = int(str(caught.value).rsplit(" ", 1)[1])
    with pytest.raises(AnalysisError, match=f"`{most + 1}` take"):
        checks.check(sweep, n_snapshots=most + 1, memory=given)
    [path] = checks.check(sweep, n_snapshots=most, memory=given)
    little = json.loads(path.read_bytes())
    checks.check(sweep, n_snapshots=most + 1)
    [path] = checks.check(sweep, n_snapshots=most)
    much = json.loads(path.read_bytes())
    assert little["provenance"]["fingerprint"] == much["provenance"]["fingerprint"]
    np.testing.assert_allclose(
        little["explained_stress"]["symmetrised_kl"], much["explained_stress"]["symmetrised_kl"]
    )


def test_less_memory_than_for_any_is_refused(sweep):
    result = CliRunner().invoke(app, ["check", str(sweep), "--memory", "1MiB"])
    assert isinstance(result.exception, AnalysisError)
    assert str(result.exception).endswith("with 100 resamples, 0 B are left")


PEAK = """
import sys
from pathlib import Path
from analysis import checks, memory
from sweeper.processors import resident_memory
folder = Path(sys.argv[1])
checks.check(folder, n_snapshots=8, n_resamples=2)  # loads libraries
before = resident_memory()
checks.check(folder, n_snapshots=480, memory=before + (128 << 20) + int(sys.argv[2]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024 - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_memory_that_is_left_is_enough(tmp_path, write_trial):
    for trial in ("t0", "t1"):
        write_trial(tmp_path, trial, n_snapshots=240)
    n_bytes = 240 << 20  # of which the resampled distances of 480 snapshots take 176 MiB
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(n_bytes)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 176 << 20 < int(found.stdout) < n_bytes
