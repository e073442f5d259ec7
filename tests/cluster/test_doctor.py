"""`sweeper doctor`, and a launch's own look, on hosts of which some see another file system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import missing
from tests.cluster.ray_hosts import Cluster, cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

LONGEST = 240.0  # seconds: what has not happened by then never will
GRID = """\
name: small
base: {data.name: %s, model.name: fc, optim: {name: sgd, lr: 0.1}, epochs: 1}
axes: {seed: {range: [0, 2]}}
"""


@dataclass
class Lab:
    """A head without processors, where sweeper is started, and two nodes with one each.

    All see one folder, unless something is mounted over a part of it on one of them.
    """

    cluster: Cluster
    folder: Path

    def on(self, name: str, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end."""
        out, host = self.folder / "said.txt", self.cluster.up[name]
        out.unlink(missing_ok=True)
        variables = {"RAY_AUTH_MODE": "disabled", "SWEEPER_DATA": str(self.data)}
        words = map(str, command)
        run = self.cluster.hosts.start(host, *words, cwd=self.folder, out=out, **variables)
        code = run.wait(LONGEST)
        said = out.read_text()
        assert "Traceback" not in said, said
        return subprocess.CompletedProcess(command, code, said)

    def sweeper(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command line where the sweep is started, on the cluster."""
        command = (sys.executable, "-m", "sweeper", *arguments)
        return self.on("head", *command, "--address", self.cluster.address)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def grid(self, data: str) -> Path:
        path = self.folder / f"{data}.yaml"
        path.write_text(GRID % data)
        return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("lab")
    (folder / "data").mkdir()
    with cluster(tmp_path_factory.mktemp("said")) as found:
        found.start("head")
        found.start("one", "two")
        yield Lab(found, folder)


@pytest.fixture
def mounted(lab: Lab) -> Iterator[Callable[..., None]]:
    """Mount something on one host, until the test ends."""
    done: list[tuple[str, Path]] = []

    def mount(name: str, where: Path, *arguments: object) -> None:
        where.mkdir(exist_ok=True)
        assert lab.on(name, "mount", *arguments, where).returncode == 0
        done.append((name, where))

    yield mount
    for name, where in reversed(done):
        lab.on(name, "umount", where)


def failures(lab: Lab, *arguments: object) -> dict[str, list[str]]:
    """What `doctor --json` finds wrong, by host."""
    done = lab.sweeper("doctor", *arguments, "--json")
    report = json.loads(done.stdout)
    wrong = [row for row in report["findings"] if row["verdict"] == "fail"]
    assert done.returncode == (2 if wrong else 0)
    assert all(row["cure"] for row in wrong)
    found: dict[str, list[str]] = {}
    for row in wrong:
        found.setdefault(row["node"].split()[0], []).append(row["text"])
    return found


def test_a_cluster_that_is_well_is_one_group_of_lines_and_is_left_as_it_was(lab: Lab):
    grid = lab.grid("digits")
    before = sorted(path.name for path in lab.folder.iterdir())
    done = lab.sweeper("doctor", grid)
    assert done.returncode == 0, done.stdout
    headings = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert headings[:2] == ["where sweeper runs", "all 3 nodes"]
    assert "3 nodes, room for 2 slots, 0 GPUs" in done.stdout
    after = sorted(path.name for path in lab.folder.iterdir())
    assert set(after) - set(before) <= {"said.txt"}


def test_a_folder_that_is_read_only_on_one_node_stops_a_launch_that_then_goes_on(
    lab: Lab, mounted: Callable[..., None]
):
    grid, sweep = lab.grid("digits"), lab.folder / "sweep"
    sweep.mkdir()
    mounted("two", sweep, "--bind", "-o", "ro", sweep)
    assert lab.on("two", "touch", sweep / "x").returncode != 0
    found = failures(lab, grid, "--sweep-dir", sweep)
    assert list(found) == ["two"]
    assert found["two"] == [f"{sweep}: cannot be written: Read-only file system"]
    refused = lab.sweeper("launch", grid, "--sweep-dir", sweep, "-y")
    assert refused.returncode == 2
    assert "error: two (" in refused.stdout
    assert "cannot be written: Read-only file system\n\nhint: " in refused.stdout
    assert not list((sweep / "predictions.zarr").glob("trials/*"))
    lab.on("two", "umount", sweep)
    done = lab.sweeper("launch", grid, "--sweep-dir", sweep, "-y")
    assert done.returncode == 0, done.stdout
    assert "2/2 trials complete" in done.stdout
    assert not list(sweep.glob("doctor-*"))


def test_a_disk_of_a_nodes_own_is_not_the_sweeps_folder(lab: Lab, mounted: Callable[..., None]):
    """The classic: a path that exists everywhere, and is shared by nobody."""
    local = lab.folder / "scratch"
    mounted("one", local, "-t", "tmpfs", "tmpfs")
    found = failures(lab, lab.grid("digits"), "--sweep-dir", local)
    assert list(found) == ["one"]
    assert "another place here" in found["one"][0]
    assert lab.on("one", "ls", local).stdout == ""
    refused = lab.sweeper("launch", lab.grid("digits"), "--sweep-dir", local, "-y")
    assert refused.returncode == 2
    assert "another place here" in refused.stdout
    assert "use a folder that all nodes share, or `--store s3://" in refused.stdout


def test_a_node_without_the_data_is_named(lab: Lab, mounted: Callable[..., None]):
    from sweeper.train.sources.small import _files

    for path, _ in _files("cifar10"):
        file = lab.data / "cifar10" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"damaged")
    grid = lab.grid("cifar10")
    mounted("one", lab.data, "-t", "tmpfs", "tmpfs")
    found = failures(lab, grid)
    assert set(found) == {"head", "one", "two"}
    assert "is damaged" in found["two"][0]
    assert "`cifar10` is not in" in found["one"][0]
    refused = lab.sweeper("launch", grid, "--sweep-dir", lab.folder / "third", "-y")
    assert refused.returncode == 2
    assert "error: one (" in refused.stdout
    assert "hint: `sweeper data get cifar10" in refused.stdout
    assert "`--force` goes on all the same" in refused.stdout
