"""A sweep of six trials whose journal, and whose driver's word, a test writes itself."""

import json
import os
import socket
import time

from sweeper.config import TrialConfig
from sweeper.grid import Trial
from sweeper.journal import Journal
from sweeper.status.states import STATES
from sweeper.status.summary import read_status
from sweeper.sweep_dir import PREDICTIONS


def trial_of(seed):
    flat = {"data.name": "digits", "model.name": "fc", "optim.name": "sgd", "optim.lr": 0.1}
    config = TrialConfig.from_flat({**flat, "epochs": 1, "seed": seed})
    return Trial(config.trial_id, config)


TRIALS = [trial_of(seed) for seed in range(6)]
IDS = [trial.trial_id for trial in TRIALS]

LAUNCHED = ("launched", {"n_planned": 6, "n_todo": 6})


def journal(folder, *events):
    with Journal(folder.journal) as writer:
        for event, fields in events:
            writer.append(event, **fields)
            if event == "finished":
                (folder.path / PREDICTIONS / "trials" / fields["trial"]).mkdir(parents=True)


def started(index):
    return "started", {"trial": IDS[index], "attempt": 1, "step": 0, "n_steps": 9}


def finished(index, state="complete"):
    return "finished", {"trial": IDS[index], "attempt": 1, "state": state, "seconds": 1.0}


def failed(index, message="a bug"):
    fields = {"trial": IDS[index], "kind": "bug", "error": "RuntimeError", "message": message}
    return "failed", fields


def retried(index, message="full"):
    return "retried", {**failed(index, message)[1], "kind": "oom", "delay": 0.0}


def live(folder, *running, t=None, **fields):
    """What this process, as the driver, says that it runs."""
    now = time.time() if t is None else t
    seen = {"attempt": 1, "step": 50, "n_steps": 100, "per_gpu": 1, "host": "n1", "device": "cpu"}
    found = {"t": now, "pid": os.getpid(), "host": socket.gethostname(), "n_slots": 2, "n_gpus": 0}
    found["running"] = {IDS[i]: {**seen, "since": now, "beat": now} for i in running}
    folder.live.write_text(json.dumps({**found, **fields}))


def counts(folder):
    """Those states that any trial is in."""
    found = read_status(folder).counts
    assert list(found) == list(STATES)
    assert sum(found.values()) == 6
    return {state: n for state, n in found.items() if n}
