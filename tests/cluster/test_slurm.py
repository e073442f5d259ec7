"""`launch/slurm.sbatch` and its array on a real Slurm: cut off, preempted, stopped, requeued.

Steps take a time that does not depend on the machine's speed, and none where nothing is awaited.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import Slurm, missing, slurm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(420),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ROOT = Path(__file__).parents[2]
SWEEPER = Path(sys.executable).parent / "sweeper"
PACED = {"STEP_SECONDS": "0.05"}  # 12 s a trial

MODEL = """\
import os, time
from torch import nn

class Paced(nn.Sequential):
    def forward(self, images):
        if self.training:
            while os.path.exists("hang"):
                time.sleep(0.1)
            time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return super().forward(images)

def net(shape, n_classes):
    return Paced(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], n_classes))
"""
GRID = """\
name: paced
base: {data.name: digits, model.name: "paced:net", optim.batch_size: 256, epochs: 40}
axes:
  optim: [{name: sgd, lr: 0.1}, {name: adam, lr: 1.0e-3}]
  seed: {range: [0, 4]}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(n_nodes=2) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: an environment, a grid, a model, and the launch files."""
    folder = tmp_path_factory.mktemp("project")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / "paced.py").write_text(MODEL)
    (folder / "grids").mkdir()
    (folder / "grids" / "slow.yaml").write_text(GRID)
    return folder


@pytest.fixture
def runs(project: Path) -> Iterator[Path]:
    """Where sweeps go, emptied after each test."""
    yield project / "runs"
    (project / "hang").unlink(missing_ok=True)
    shutil.rmtree(project / "runs", ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> Mapping[str, str]:
    """The digests of the sweep where nothing befalls it and nothing is waited for."""
    folder = project / "undisturbed"
    arguments = ["launch", "grids/slow.yaml", "--executor", "local", "--sweep-dir", str(folder)]
    subprocess.run([SWEEPER, *arguments, "-y"], cwd=project, check=True, capture_output=True)
    return digests(folder)


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Those events of a sweep's journal; none while there is none."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    found = [json.loads(line) for line in lines]
    return [event for event in found if event["event"] in names]


def digests(folder: Path) -> dict[str, str]:
    """By trial; fails where one was run to its end twice."""
    finished = events(folder, "finished")
    found = {event["trial"]: event["digest"] for event in finished}
    assert len(found) == len(finished)
    return found


def until(is_so: Callable[[], object], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        said = "".join(path.read_text() for path in log.parent.glob(log.name))
        assert time.monotonic() < deadline, said or f"no {log}"
        time.sleep(0.3)


def check_nothing_is_left(job: str) -> None:
    """No process of the job's Ray, no temporary folder of it."""
    temporary = Path(f"/tmp/sw-{os.getuid()}-{job}")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"{temporary}/" not in listed.stdout
    assert not temporary.exists()


def test_a_job_that_its_time_limit_cuts_off_is_requeued_and_ends_as_if_undisturbed(
    cluster: Slurm, project: Path, runs: Path, undisturbed: Mapping[str, str]
):
    folder = runs / "paced"
    limits = ["--nodes=2", "--time=10", "--signal=B:USR1@120"]
    script = ["launch/slurm.sbatch", "grids/slow.yaml", "--checkpoint-every", "1"]
    job = cluster.submit(project, *limits, *script, **PACED)
    log = folder / f"slurm-{job}.log"
    until(lambda: len(list(folder.glob("checkpoints/*/*.pt"))) >= 2, 300, log)  # steps were made
    _, minutes, _ = cluster.job(job)["RunTime"].split(":")
    cluster.limit(job, int(minutes) + 2)  # so that the signal is due, which comes twice a minute
    until(lambda: cluster.job(job)["Restarts"] == "1", 200, log)
    cluster.limit(job, 10)
    ended = cluster.wait(job, ["COMPLETED", "FAILED"], 300)

    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert digests(folder) == undisturbed
    stopped = {event["trial"]: event["steps"] for event in events(folder, "stopped")}
    assert len(stopped) == 2  # one on each node, and checkpointed
    assert all(stopped.values())
    drained, complete = events(folder, "ended")
    assert (drained["reason"], drained["n_slots"]) == ("stopped", 2)
    assert (complete["reason"], complete["n_slots"]) == ("complete", 2)
    began = {(event["trial"], event["step"]) for event in events(folder, "started")}
    assert set(stopped.items()) <= began  # where they were, and not at the beginning
    assert f"log: runs/paced/slurm-{job}.log" in (project / f"slurm-{job}.out").read_text()
    check_nothing_is_left(job)


def test_the_tasks_of_an_array_run_the_sweep_between_them(
    cluster: Slurm, project: Path, runs: Path, undisturbed: Mapping[str, str]
):
    script = ["launch/slurm-array.sbatch", "grids/slow.yaml"]
    job = cluster.submit(project, "--array=1-2", "--time=10", *script, GRACE="30")
    ended = [cluster.wait(f"{job}_{task}", ["COMPLETED", "FAILED"], 300) for task in (1, 2)]
    logs = [path.read_text() for path in runs.glob("paced-*/slurm-*.log")]
    assert [task["JobState"] for task in ended] == ["COMPLETED", "COMPLETED"], "\n".join(logs)
    first, second = (digests(runs / f"paced-{share}-of-2") for share in (1, 2))
    assert first
    assert second
    assert not first.keys() & second.keys()
    assert first | second == undisturbed


def test_a_preempted_job_makes_room_and_comes_back_and_a_stopped_one_does_not(
    cluster: Slurm, project: Path, runs: Path
):
    script = ["launch/slurm.sbatch", "grids/slow.yaml", "--checkpoint-every", "1"]
    job = cluster.submit(project, "--time=30", *script, **PACED)
    folder = runs / "paced"
    log = folder / f"slurm-{job}.log"
    until(lambda: list(folder.glob("checkpoints/*/*.pt")), 300, log)
    urgent = ["--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "true"]
    cluster.wait(cluster.submit(project, *urgent), ["COMPLETED"], 150)
    until(lambda: len(events(folder, "started")) == 2, 200, log)
    assert cluster.job(job)["Restarts"] == "1"
    assert [event["reason"] for event in events(folder, "ended")] == ["stopped"]
    (stopped,) = events(folder, "stopped")
    assert events(folder, "started")[1]["step"] == stopped["steps"] > 0

    subprocess.run([SWEEPER, "stop", "runs/paced"], cwd=project, check=True, capture_output=True)
    ended = cluster.wait(job, ["COMPLETED", "FAILED", "PENDING"], 150)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "4:0"), log.read_text()
    check_nothing_is_left(job)


def hanging(cluster: Slurm, project: Path, runs: Path) -> str:
    """The number of a job whose trial does not end its step, and that is told to drain."""
    script = ["launch/slurm.sbatch", "grids/slow.yaml", "--checkpoint-every", "1"]
    job = cluster.submit(project, "--time=30", *script, **PACED)
    folder = runs / "paced"
    log = folder / f"slurm-{job}.log"
    until(lambda: list(folder.glob("checkpoints/*/*.pt")), 300, log)
    (project / "hang").touch()
    _, minutes, _ = cluster.job(job)["RunTime"].split(":")
    cluster.limit(job, int(minutes) + 1)  # in a minute at most
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    return job


def test_a_job_whose_trial_hangs_at_its_limit_is_requeued_all_the_same(
    cluster: Slurm, project: Path, runs: Path
):
    job = hanging(cluster, project, runs)
    log = runs / "paced" / f"slurm-{job}.log"
    until(lambda: cluster.job(job)["Restarts"] == "1", 120, log)
    cluster.run("scancel", job)
    assert "killed: a trial does not end its step" in log.read_text()
    assert not events(runs / "paced", "stopped", "ended")


def test_a_job_that_is_stopped_while_it_drains_is_not_requeued(
    cluster: Slurm, project: Path, runs: Path
):
    job = hanging(cluster, project, runs)
    folder = runs / "paced"
    with subprocess.Popen([SWEEPER, "stop", folder], cwd=project, stderr=subprocess.PIPE) as stop:
        until((folder / "stop.request").exists, 30, folder / f"slurm-{job}.log")
        (project / "hang").unlink()
        _, said = stop.communicate(timeout=120)
    ended = cluster.wait(job, ["COMPLETED", "FAILED", "PENDING"], 150)
    log = (folder / f"slurm-{job}.log").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "4:0"), log
    assert ended["Restarts"] == "0"
    assert b"stopped: " in said
    (drained,) = events(folder, "ended")
    assert (drained["reason"], drained["asked"]) == ("stopped", True)
    check_nothing_is_left(job)


def test_what_is_wrong_with_a_grid_ends_its_job_with_the_sweeps_own_code(
    cluster: Slurm, project: Path, runs: Path
):
    job = cluster.submit(project, "--time=30", "launch/slurm.sbatch", "grids/none.yaml")
    ended = cluster.wait(job, ["COMPLETED", "FAILED"], 200)
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert "error: grids/none.yaml: " in (project / f"slurm-{job}.out").read_text()
    assert not runs.exists()
