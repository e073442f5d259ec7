import pytest

from sweeper.plan import Size, make_plan, write_plan
from sweeper.sweep_dir import SweepDir
from tests.six_trials import TRIALS


@pytest.fixture
def folder(tmp_path):
    """A sweep of six trials of which nothing has been run."""
    found = SweepDir(tmp_path)
    found.write_manifest({"name": "six"})
    write_plan(found.plan, make_plan(TRIALS, (), lambda config: Size(1, 1, 4, 100, 1e6)))
    return found
