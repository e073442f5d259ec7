"""The selectors of verify, seal and export, on a store with and without a sweep directory."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from sweeper.chosen import Selectors
from sweeper.chosen_stored import chosen_stored
from sweeper.config import TrialConfig
from sweeper.errors import SweeperError
from sweeper.grid import Trial
from sweeper.journal import Journal
from sweeper.plan import Size, make_plan, write_plan
from sweeper.store import open_store
from sweeper.store.seal import seal
from sweeper.sweep_dir import SweepDir


@pytest.fixture
def stored(tiny):
    """Trials of the seeds 1, 2 and 3: complete, diverged, and recorded half; their ids by seed."""
    ids = {1: tiny.sealed(1)}
    writer = tiny.record(2)
    ids[2] = writer.header.trial_id
    seal(tiny.objects, ids[2], "diverged", writer.attempt)
    ids[3] = tiny.record(3, stop=2).header.trial_id
    return ids


def selected(tiny, where=None, ids=(), states=(), folder=None):
    return chosen_stored(Selectors.of(where, ids, states), open_store(tiny.path), folder)


def damage(tiny, trial):
    """Make a sealed trial's configuration unreadable."""
    (tiny.path / f"trials/{trial}/zarr.json").write_text("{}")


# --- which they are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ({"where": "seed > 1"}, {2, 3}),
        ({"states": ["complete"]}, {1}),
        ({"states": ["diverged", "interrupted"]}, {2, 3}),
        ({"where": "seed < 3", "states": ["diverged"]}, {2}),
    ],
)
def test_a_store_alone_tells_what_its_trials_are(tiny, stored, asked, seeds):
    assert selected(tiny, **asked) == {stored[seed] for seed in seeds}


def test_nothing_asked_for_is_everything(tiny, stored):
    assert selected(tiny) is None
    assert selected(tiny, ids=[stored[3]]) == {stored[3]}


def test_what_is_damaged_is_taken(tiny, stored):
    damage(tiny, stored[1])
    assert selected(tiny, "seed == 3") == {stored[1], stored[3]}
    assert selected(tiny, states=["diverged"]) == {stored[1], stored[2]}


@pytest.fixture
def sweep(tiny, stored):
    """The same with a sweep directory, in which two other trials are planned: one has failed, and
    one is complete and stored under the name of the trial of seed 2.
    """
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    configs = [TrialConfig.from_flat({**flat, "epochs": 1, "seed": seed}) for seed in (7, 8)]
    trials = [Trial(config.trial_id, config) for config in configs]
    folder = SweepDir(tiny.path.parent)
    folder.write_manifest({"name": "two"})
    write_plan(folder.plan, make_plan(trials, (), lambda config: Size(1, 1, 4)))
    with Journal(folder.journal) as journal:
        error = {"error": "E", "message": ""}
        journal.append("failed", trial=trials[0].trial_id, **error)
        journal.append("finished", trial=trials[1].trial_id, state="diverged", label=stored[2])
    return folder, [trial.trial_id for trial in trials]


def test_a_sweep_directory_tells_more(tiny, stored, sweep):
    folder, (failed, _) = sweep
    assert selected(tiny, states=["failed"], folder=folder) == {failed}
    assert selected(tiny, states=["complete"], folder=folder) == {stored[1]}
    assert selected(tiny, "seed < 8", folder=folder) == {stored[1], stored[3], failed}


def test_a_trial_is_found_by_its_id_of_today_under_the_name_that_it_has(tiny, stored, sweep):
    folder, (_, old) = sweep
    assert selected(tiny, ids=[old], folder=folder) == {stored[2]}
    assert selected(tiny, "seed == 8", folder=folder) == {stored[2]}
    assert selected(tiny, states=["diverged"], folder=folder) == {stored[2]}
    with pytest.raises(SweeperError, match="no trial"):
        selected(tiny, ids=[stored[2]], folder=folder)


# --- the commands -----------------------------------------------------------------------------


def test_verify_checks_these_trials_alone(here, tiny, stored):
    damage(tiny, stored[1])
    done = here("verify", tiny.path, "--id", stored[2], "--json")
    assert (done.returncode, json.loads(done.stdout)["n_trials"]) == (0, 1)
    done = here("verify", tiny.path, "--where", "seed == 2", "--json")
    assert done.returncode == 5, "what cannot be told from these is checked, too"
    assert json.loads(done.stdout)["n_trials"] == 2


def test_verify_misses_a_trial_that_is_lost_only_if_it_is_asked_for(here, tiny, sweep):
    folder, (failed, old) = sweep
    assert here("verify", folder.path).returncode == 0
    with Journal(folder.journal) as journal:
        journal.append("finished", trial=failed, state="complete")
    assert here("verify", folder.path, "--id", old).returncode == 0
    done = here("verify", folder.path, "--state", "waiting", "--json")  # as status has it
    assert [found["key"] for found in json.loads(done.stdout)["damages"]] == [failed]


def test_seal_seals_these_trials_alone(here, tiny):
    ids = [tiny.record(seed).header.trial_id for seed in (1, 2)]
    done = here("seal", tiny.path, "--where", "seed == 2")
    assert done.stdout == "1 trials sealed, 0 not recorded to their end\n"
    assert open_store(tiny.path).complete_ids() == [ids[1]]


def test_export_writes_these_trials_alone(here, tiny, stored, tmp_path):
    out = tmp_path / "out"
    asked = ("--state", "complete", "--state", "diverged", "--where", "seed == 2 or seed == 3")
    done = here("export", tiny.path, "--out", out, *asked)
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(out / "trials.parquet")["trial_id"].tolist() == [stored[2]]
    assert set(pd.read_parquet(out / "snapshots.parquet")["trial_id"]) == {stored[2]}


def test_an_export_of_nothing_is_refused(here, tiny, stored, tmp_path):
    done = here("export", tiny.path, "--out", tmp_path / "out", "--state", "failed")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --state failed: none of 3 trials" in done.stderr
    assert not Path(tmp_path / "out").exists()
