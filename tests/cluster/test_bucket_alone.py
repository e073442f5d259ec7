"""A sweep with nothing shared but a bucket: its driver is killed, another goes on from nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.journal import read_events
from sweeper.store import open_store
from sweeper.store.objects import open_objects
from sweeper.store.root import Root
from sweeper.store.verify import verify
from tests.faults.machines import Machines, machines
from tests.faults.sweep_checks import check_leases
from tests.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, bucket_contents

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

N_TRIALS = 8
GRID = f"""\
name: alone
base:
  data.name: digits
  model: {{name: fc, widths: [64, 64]}}
  optim: {{name: sgd, lr: 0.1, batch_size: 16}}
  epochs: 240  # a driver that lives is known within 20 s, in which not all may complete
  record.schedule: log
axes:
  seed: {{range: [0, {N_TRIALS}]}}
"""
LONGEST = 240.0  # seconds: what has not happened by then never will


@pytest.fixture
def cluster(s3_url: str) -> Iterator[Machines]:
    """Two nodes whose workers find the bucket and its credentials in their own environment."""
    with machines(2) as found:
        yield found


class Driver:
    """A driver in a folder of its own, which is all that it has of this machine."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._said = folder, folder.with_suffix(".said")
        command = [sys.executable, "-m", "sweeper", *map(str, arguments), "-y"]
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=said, stderr=said, start_new_session=True
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        code = self.process.wait(LONGEST)
        said = self._said.read_text()
        assert "Traceback" not in said, said
        return code, said


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    started: list[Driver] = []

    def run(name: str, *arguments: object) -> Driver:
        started.append(Driver(tmp_path / name, *arguments))
        return started[-1]

    yield run
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()


def digests(place: str | Path) -> dict[str, str]:
    return dict(open_store(place).trials()["digest"])


def wait_until(is_so: Callable[[], bool], driver: Driver) -> None:
    deadline = time.monotonic() + LONGEST
    while not is_so():
        assert driver.process.poll() is None, driver.ended()
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_a_sweep_whose_driver_is_killed_goes_on_from_the_bucket_alone(
    cluster: Machines,
    s3_endpoint: str,
    s3_url: str,
    start: Callable[..., Driver],
    tmp_path: Path,
):
    grid = tmp_path / "alone.yaml"
    grid.write_text(GRID)
    code, said = start("undisturbed", "launch", grid, "--executor", "local").ended()
    assert code == 0, said
    expected = digests(tmp_path / "undisturbed/runs/alone")
    assert len(expected) == N_TRIALS

    address = ("--address", cluster.address)
    options = (*address, "--checkpoint-every", "1s")
    first = start("first", "launch", grid, "--store", s3_url, *options)
    predictions, kept = Root(s3_url).predictions, open_objects(f"{s3_url}/sweeps/alone")
    wait_until(lambda: kept.exists("sweep.json"), first)

    code, said = start("second", "resume", s3_url, *address).ended()
    assert code == 2
    assert f"{s3_url}/sweeps/alone: held by another driver, process {first.process.pid}" in said
    assert not list((tmp_path / "second").iterdir()), "nothing was made"

    wait_until(lambda: len(predictions.names("trials")) >= 2, first)
    first.kill()
    done = set(open_store(s3_url).complete_ids())
    assert 0 < len(done) < N_TRIALS, "killed in the middle of it"
    begun = set(predictions.names("staging")) - done
    journal = read_events(first.folder / "runs/alone/journal.jsonl").events
    shutil.rmtree(first.folder)
    grid.unlink()

    third = start("third", "resume", s3_url, *options)
    code, said = third.ended()
    assert code == 0, said
    folder = third.folder / "runs/alone"
    assert digests(s3_url) == digests(folder) == expected
    assert verify(open_store(s3_url)).damages == ()
    events = read_events(folder / "journal.jsonl").events
    check_leases([*journal, *events])
    ends = Counter(event["trial"] for event in events if event["event"] == "finished")
    assert ends == dict.fromkeys(expected, 1)
    launched = [event["event"] for event in events].index("launched")
    found = {event["trial"] for event in events[:launched]}  # workers may outlive their driver
    started = {event["trial"] for event in events if event["event"] == "started"}
    assert done <= found
    assert not started & found, "what was complete was not run again"
    assert begun <= started | found
    assert max(completions(s3_url, trial) for trial in expected) == 1

    shown = subprocess.run(
        [sys.executable, "-m", "sweeper", "status", s3_url, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)["counts"]["complete"] == N_TRIALS
    assert_no_secret(tmp_path, cluster.folder, s3_endpoint, s3_url)


def completions(url: str, trial: str) -> int:
    """How often an attempt of a trial said that it is complete; a killed one may not have."""
    return Root(url).read_log(trial).count("complete, digest")


def assert_no_secret(tmp_path: Path, ray: Path, endpoint: str, url: str) -> None:
    """No credential is in the bucket, in a sweep directory, or in what Ray keeps on its nodes."""
    files = [path for place in (tmp_path, ray) for path in place.rglob("*") if path.is_file()]
    found = {str(path): path.read_bytes() for path in files}
    in_bucket = bucket_contents(endpoint, url.removeprefix(f"s3://{BUCKET}/"))
    assert any(name.endswith("sweeps/alone/sweep.json") for name in in_bucket)
    for name, data in {**found, **in_bucket}.items():
        assert ACCESS_KEY.encode() not in data, name
        assert SECRET_KEY.encode() not in data, name
