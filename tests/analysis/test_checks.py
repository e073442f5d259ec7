"""`analyze check`: what is written, what is said, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis import checks
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
