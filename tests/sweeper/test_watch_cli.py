"""`sweeper status`, `failures`, `logs` and `stop` as a user meets them."""

from __future__ import annotations

import json
import shlex

import pytest

from sweeper.config import TrialConfig
from sweeper.grid import Trial
from sweeper.journal import Journal
from sweeper.plan import Size, make_plan, write_plan
from sweeper.store.opening import create_store
from sweeper.sweep_dir import SweepDir

MODELS, SIZES, SEEDS = ("fc", "cnn"), (500, 1000), range(3)


def trial_of(name, size, seed):
    config = TrialConfig.from_flat(
        {
            "data.name": "digits",
            "model.name": name,
            "optim.name": "sgd",
            "optim.lr": 0.1,
            "optim.batch_size": size,
            "epochs": 1,
            "seed": seed,
        }
    )
    return Trial(config.trial_id, config)


TRIALS = [trial_of(name, size, seed) for name in MODELS for size in SIZES for seed in SEEDS]
IDS = [trial.trial_id for trial in TRIALS]
CNN_1000 = IDS[-3:]


def write(folder, *events):
    with Journal(folder.journal) as journal:
        for event, trial, fields in events:
            journal.append(event, trial=trial, attempt=1, **fields)
            if event == "finished":
                (folder.path / "predictions.zarr/trials" / trial).mkdir(parents=True)


def failure(kind, error, message, host="n1"):
    signature = f"{error} in f.py:f: {message[:5]}"
    fields = {"kind": kind, "error": error, "message": message, "signature": signature}
    return {**fields, "host": host, "device": "cuda:0"}


SHAPE = failure("bug", "RuntimeError", "shape 3 does not fit")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Twelve trials: a bug in the three of one model and batch size, one invalid, one out of
    memory and run again, one that diverged, the others complete.
    """
    folder = SweepDir("sweep")
    monkeypatch.chdir(tmp_path)
    folder.path.mkdir()
    folder.write_manifest({"name": "sweep"})
    create_store(folder.path / "predictions.zarr")
    write_plan(folder.plan, make_plan(TRIALS, (), lambda config: Size(1, 1, 4, 10, 1e6)))
    done = {"state": "complete", "seconds": 2.0, "steps": 10}
    (folder.path / "logs").mkdir()
    for trial in CNN_1000:
        log = folder.path / "logs" / f"{trial}.log"
        log.write_text("".join(f"line {i}\n" for i in range(20)) + "RuntimeError: shape\n")
    write(
        folder,
        *(("started", trial, {"host": f"n{i % 2}"}) for i, trial in enumerate(IDS)),
        *(("failed", trial, SHAPE) for trial in CNN_1000),
        ("failed", IDS[0], failure("invalid", "ConfigError", "no such lr")),
        ("retried", IDS[1], {**failure("oom", "OutOfMemoryError", "CUDA"), "delay": 0.0}),
        ("finished", IDS[2], {**done, "state": "diverged"}),
        *(("finished", trial, done) for trial in IDS[3:9]),
    )
    return folder


def fails(done):
    """Assert the house's form of an error; returns its text."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "\n\nhint: " in done.stderr
    return done.stderr


# --- status -----------------------------------------------------------------------------------


def test_status_of_some_trials(here, sweep):
    found = json.loads(here("status", sweep.path, "--json", "--where", "seed == 0").stdout)
    assert found["n_planned"] == 4
    assert {state: n for state, n in found["counts"].items() if n} == {"complete": 2, "failed": 2}
    done = here("status", sweep.path, "--state", "failed", "--state", "diverged")
    assert "  diverged           1\n  failed             4\n" in done.stdout
    assert here("status", sweep.path, "--id", IDS[0][:8]).stdout.startswith("sweep: 1 trials")


def test_a_watch_of_what_nobody_drives_ends_at_once(here, sweep):
    done = here("status", sweep.path, "--watch")
    assert done.stdout == here("status", sweep.path).stdout
    assert "--watch: given with --json" in fails(here("status", sweep.path, "--watch", "--json"))


def test_ctrl_c_only_leaves_the_watch(here, sweep, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeper.status.watch.watch", interrupt)
    done = here("status", sweep.path, "--watch")
    assert (done.returncode, done.stderr) == (0, "left the watch; the sweep goes on\n")


# --- failures ---------------------------------------------------------------------------------


def test_failures_are_told_alike_together_with_what_to_do(here, sweep):
    text = here("failures", sweep.path).stdout
    head, bug, *others = text.split("\n\n")
    assert head == "sweep: 4 trials failed, 1 were to be run again, for 3 reasons"
    assert bug.splitlines() == [
        "3 × RuntimeError: shape 3 does not fit [bug]",
        "  affected     every trial with model.name=cnn and optim.batch_size=1000 fails so",
        "  host         all on n1, one of 2 hosts",
        f"  example      {CNN_1000[0]}",
        *(f"    | line {i}" for i in range(13, 20)),
        "    | RuntimeError: shape",
        f"  what to do   read the traceback: `sweeper logs sweep {CNN_1000[0]}`",
        "  run again    sweeper resume sweep --state failed --where \"model.name == 'cnn'\"",
    ]
    (invalid,) = [other for other in others if "ConfigError" in other]
    assert "  affected     model.name=fc and optim.batch_size=500 and seed=0" in invalid
    (oom,) = [other for other in others if "OutOfMemoryError" in other]
    assert "  of these     1 were to be run again: launch does\n" in oom
    assert "  run again    sweeper resume sweep --state interrupted" in oom
    with sweep.locked():
        text = here("failures", sweep.path).stdout
    assert text.startswith("sweep: 4 trials failed, 1 are run again, for 3 reasons\n")
    (oom,) = [part for part in text.split("\n\n") if "OutOfMemoryError" in part]
    assert "  of these     1 run again by themselves\n" in oom
    assert "run again    sweeper" not in oom


def test_the_lines_of_a_traceback_that_matter_are_shown(here, sweep):
    library = '  File "/env/site-packages/torch/nn/module.py", line 7, in call\n    f()\n    ^^^\n'
    own = '  File "/my/net.py", line 3, in forward\n    return x + y\n           ~~^~~\n'
    text = f"Traceback (most recent call last):\n{own}{library * 9}RuntimeError: shape\n\n"
    (sweep.path / f"logs/{CNN_1000[0]}.log").write_text(text)
    shown = [line for line in here("failures", sweep.path).stdout.splitlines() if "    | " in line]
    assert shown == [
        "    | Traceback (most recent call last):",
        '    |   File "/my/net.py", line 3, in forward',
        "    |     return x + y",
        "    |   … 9 frames of libraries",
        "    | RuntimeError: shape",
    ]
    assert here("logs", sweep.path, CNN_1000[0]).stdout == text
    assert here("logs", sweep.path, CNN_1000[0], "-n", 1).stdout == "RuntimeError: shape\n"


def test_the_command_that_is_shown_runs_exactly_these_again(here, sweep):
    other = failure("bug", "ValueError", "odd")  # of which one failed and one was to run again
    write(sweep, ("failed", IDS[3], other), ("retried", IDS[8], {**other, "delay": 0.0}))
    reports = json.loads(here("failures", sweep.path, "--json").stdout)
    assert [len(report["interrupted"]) for report in reports] == [0, 1, 0, 1]
    for report in reports:
        words = shlex.split(report["again"])
        assert words[:3] == ["sweeper", "resume", "sweep"]
        found = json.loads(here("failures", sweep.path, "--json", *words[3:]).stdout)
        assert [other["trials"] for other in found] == [report["trials"]]


def test_failures_of_some_trials(here, sweep):
    found = json.loads(here("failures", sweep.path, "--json", "--id", CNN_1000[1]).stdout)
    assert [(report["trials"], report["n_trials"]) for report in found] == [([CNN_1000[1]], 1)]
    done = here("failures", sweep.path, "--state", "complete")
    assert (done.returncode, done.stdout) == (0, "sweep: no failures\n")


def test_failures_that_are_many_and_unlike_are_named_by_their_ids(here, sweep):
    other = failure("bug", "ValueError", "odd")
    write(sweep, ("failed", IDS[3], other), ("failed", IDS[8], other))
    found = json.loads(here("failures", sweep.path, "--json").stdout)
    (report,) = [one for one in found if one["error"] == "ValueError"]
    assert report["again"] == f"sweeper resume sweep --state failed --id {IDS[3]} --id {IDS[8]}"


def test_failures_that_nothing_tells_apart_are_run_again_with_others(here, sweep, monkeypatch):
    monkeypatch.setattr("sweeper.status.report.MOST_IDS", 1)
    other = failure("bug", "ValueError", "odd" * 100)
    write(sweep, ("failed", IDS[3], other), ("failed", IDS[8], other))
    text = here("failures", sweep.path).stdout
    (report,) = [part for part in text.split("\n\n") if "ValueError" in part]
    first, *_, command, more = report.splitlines()
    assert first == f"2 × ValueError: {('odd' * 100)[:120]}... [bug]"
    assert command == "  run again    sweeper resume sweep --state failed"
    assert more.strip() == "(and 4 that failed otherwise)"


# --- logs -------------------------------------------------------------------------------------


def test_a_log_is_printed_by_the_beginning_of_an_id(here, sweep):
    trial = CNN_1000[0]
    whole = (sweep.path / f"logs/{trial}.log").read_text()
    assert here("logs", sweep.path, trial[:9]).stdout == whole
    assert here("logs", sweep.path, trial, "--lines", 1).stdout == "RuntimeError: shape\n"
    done = here("logs", sweep.path, IDS[4])
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"trial {IDS[4]} has not logged anything yet\n"


def test_the_log_of_a_trial_that_is_stored_under_another_name(here, sweep):
    (sweep.path / "logs/told.log").write_text("of an older schema\n")
    (sweep.path / f"logs/{IDS[4]}.log").write_text("of today's\n")
    with Journal(sweep.journal) as journal:
        journal.append("finished", trial=IDS[4], state="complete", label="told")
    assert here("logs", sweep.path, IDS[4]).stdout == "of an older schema\nof today's\n"


def test_a_log_is_followed_until_its_trial_has_ended(here, sweep, monkeypatch):
    trial, log = IDS[1], sweep.path / f"logs/{IDS[1]}.log"
    log.write_text("one\n")
    held = sweep.locked()
    held.__enter__()

    def go_on(seconds):
        with log.open("a") as file:
            file.write("two\n")
        write(sweep, ("failed", trial, SHAPE))

    monkeypatch.setattr("sweeper.watch_cli.time.sleep", go_on)
    done = here("logs", sweep.path, trial, "-f")
    held.__exit__(None, None, None)
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")
    assert done.stderr == f"trial {trial} is failed\n"


def test_a_log_that_nobody_adds_to_is_not_waited_for(here, sweep):
    done = here("logs", sweep.path, IDS[1], "-f")
    assert (done.returncode, done.stderr) == (0, f"trial {IDS[1]} is interrupted\n")


def test_a_wrong_id_gives_the_nearest(here, sweep):
    wrong = IDS[0][:-1] + ("0" if IDS[0][-1] != "0" else "1")
    assert f"did you mean `{IDS[0]}`?" in fails(here("logs", sweep.path, wrong))
    assert "TRIAL: `t` begins 12 ids" in fails(here("logs", sweep.path, "t"))


# --- stop -------------------------------------------------------------------------------------


def test_a_driver_is_stopped(here, sweep, monkeypatch):
    held = sweep.locked()
    held.__enter__()
    monkeypatch.setattr(
        "sweeper.status.watch.stop.__defaults__", (lambda seconds: held.__exit__(None, None, None),)
    )
    done = here("stop", sweep.path)
    assert (done.returncode, done.stdout) == (0, "")
    *_, stopped, hint = done.stderr.splitlines()
    assert stopped.startswith("stopped: 7/12 trials complete, 1 diverged, 4 failed, 1 interrupted")
    assert hint == "`sweeper resume sweep` goes on from the checkpoints"
    assert not sweep.stop_request.exists()


def test_without_a_driver_there_is_nothing_to_stop(here, sweep):
    before = sorted(sweep.path.rglob("*"))
    done = here("stop", sweep.path)
    assert (done.returncode, done.stderr) == (0, "sweep: no driver, nothing to stop\n")
    assert sorted(sweep.path.rglob("*")) == before


# --- where there is no sweep, or nothing is meant ---------------------------------------------


@pytest.mark.parametrize("command", ["status", "failures", "logs", "stop"])
def test_there_has_to_be_a_sweep(here, tmp_path, command):
    trial = ["t1"] if command == "logs" else []
    assert "no such directory" in fails(here(command, tmp_path / "none", *trial))
    assert "not a sweep directory" in fails(here(command, tmp_path, *trial))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "failures", "verify", "export", "seal"])
def test_the_selectors_are_the_same_everywhere(here, sweep, command):
    assert "did you mean `failed`?" in fails(here(command, sweep.path, "--state", "faild"))
    assert "--id: no trial `x`" in fails(here(command, sweep.path, "--id", "x"))
    assert "hint: " in fails(here(command, sweep.path, "--where", "sead == 1"))
