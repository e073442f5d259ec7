"""`sweeper data`, and a launch without its data."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from sweeper import schedule
from sweeper.cli import main
from sweeper.schedule.cluster import Answer, Node
from sweeper.train.sources.place import data_root
from tests.data_files import forget, tiny_data

GRID = """\
name: small
base: {data.name: cifar10, model.name: fc, optim.name: sgd, optim.lr: 0.1, epochs: 1}
axes:
  seed: {range: [0, 2]}
"""


@pytest.fixture
def here(monkeypatch, capfd):
    """Runs the command line in this process; gives its exit code and both outputs."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweeper", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("SWEEPER_DATA", os.environ.get("SWEEPER_DATA", ""))  # to put it back
        capfd.readouterr()
        forget()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def root(tmp_path):
    with tiny_data(tmp_path / "data") as root:
        yield root


def test_every_command_has_help(here, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("get", "prepare", "list"):
        code, out, _ = here("data", name, "--help")
        assert code == 0
        description = [line.strip() for line in out.splitlines() if line.strip()][1]
        assert len(description.split()) > 5, f"{name} has no description"


def test_list_shows_what_is_there_and_changes_nothing(here, root, tmp_path):
    fields = json.loads(here("data", "list", "--json")[1])
    assert fields["root"] == str(root)
    assert all(row["there"] for row in fields["data"].values())
    assert "image_folder" not in fields["data"]
    elsewhere = tmp_path / "elsewhere"
    code, out, _ = here("data", "list", "--root", elsewhere)
    assert code == 0
    states = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert states["digits"] == states["synthetic"] == "there"
    assert states["cifar10"] == states["imagenet"] == "absent"
    assert not elsewhere.exists()


def test_list_names_the_file_that_a_set_lacks(here, root):
    (root / "svhn/test_32x32.mat").unlink()
    assert "is without `test_32x32.mat`" in here("data", "list")[1]


def test_get_checks_what_is_there(here, root):
    code, out, err = here("data", "get", "cifar10", "--root", root)
    assert (code, out) == (0, "")
    assert err == f"{root / 'cifar10'}: was there; checked\n"
    (root / "cifar10/cifar-10-batches-py/test_batch").write_bytes(b"")
    code, _, err = here("data", "get", "cifar10", "--root", root)
    assert code == 2
    assert "test_batch` is damaged" in err


def test_a_set_without_files_needs_no_download(here, tmp_path):
    assert here("data", "get", "digits", "--root", tmp_path)[0] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifr10", "did you mean `cifar10`?"),
        ("imagenet", "val/<wnid>/ILSVRC2012_val_*.JPEG"),
        ("image_folder", "these are your own images"),
    ],
)
def test_what_cannot_be_downloaded_is_explained(here, tmp_path, name, found):
    code, _, err = here("data", "get", name, "--root", tmp_path)
    assert code == 2
    assert err.startswith("error: data")
    assert found in err
    assert not list(tmp_path.iterdir())


def test_prepare_makes_a_copy_once(here, root):
    for said in ("made", "was there; checked"):
        code, out, err = here("data", "prepare", "imagenet", "--image-size", 28)
        assert (code, out) == (0, "")
        assert err == f"{root / 'imagenet/prepared-32'}: {said}\n"
    assert "there, prepared-32" in here("data", "list")[1]


def test_prepare_is_for_imagenet_and_needs_its_files(here, root, tmp_path):
    code, _, err = here("data", "prepare", "cifar10")
    assert code == 2
    assert "only `imagenet`" in err
    code, _, err = here("data", "prepare", "imagenet", "--root", tmp_path / "elsewhere")
    assert code == 2
    assert f"`imagenet` is not in `{tmp_path / 'elsewhere/imagenet'}`" in err


# --- on a cluster -----------------------------------------------------------------------------


class Nodes:
    """Nodes that are asked in turn, each with data of its own below `folder`; `gone` is silent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts, self.joined = folder, ["one", "two"], []

    @contextlib.contextmanager
    def join(self, address):
        self.joined.append(address)
        yield self.folder

    def ask(self, do, seconds, tell):
        answers = [self._answer(host, pickle.dumps(do)) for host in self.hosts]
        for answer in answers:
            tell(answer, [])
        return answers

    def _answer(self, host, asked):
        node = Node(host, host, host, 1, 0)
        if host == "gone":
            return Answer(node, None, "it does not answer")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SWEEPER_DATA", str(self.folder / host))
            return Answer(node, pickle.loads(asked)())


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    found = Nodes(tmp_path)
    monkeypatch.setattr(schedule.cluster, "joined", found.join)
    monkeypatch.setattr(schedule.cluster, "ask_every_node", found.ask)
    return found


def test_a_set_is_checked_on_every_node(here, root, nodes, tmp_path):
    for host in ("one", "two"):
        shutil.copytree(root / "svhn", tmp_path / host / "svhn")
    code, out, err = here("data", "get", "svhn", "--address", "head:6379")
    assert (code, out, nodes.joined) == (0, "", ["head:6379"])
    assert err.splitlines() == [
        "data get svhn: on every node of the cluster at `head:6379`",
        f"one: {tmp_path / 'one/svhn'}: was there; checked",
        f"two: {tmp_path / 'two/svhn'}: was there; checked",
    ]


def test_nodes_that_fail_are_named_and_the_others_done(here, root, nodes, tmp_path):
    nodes.hosts.append("gone")
    for host in ("one", "two"):
        shutil.copytree(root / "svhn", tmp_path / host / "svhn")
    (tmp_path / "two/svhn/test_32x32.mat").unlink()
    code, _, err = here("data", "get", "svhn", "--address", "auto")
    assert code == 2
    assert f"one: {tmp_path / 'one/svhn'}: was there; checked" in err
    assert "two: data get svhn: " in err
    assert "gone: it does not answer" in err
    assert (
        "error: data get svhn: failed on 2 of 3 nodes: `two`, `gone`\n\n"
        f"hint: remove `{tmp_path / 'two/svhn'}` and ask again\n"
    ) in err


def test_imagenet_is_prepared_on_every_node(here, root, nodes, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copytree(root / "imagenet", tmp_path / "one/imagenet")
    code, _, err = here("data", "prepare", "imagenet", "--image-size", 28, "--address", "auto")
    assert code == 2
    assert f"one: {tmp_path / 'one/imagenet/prepared-32'}: made\n" in err
    assert f"`imagenet` is not in `{tmp_path / 'two/imagenet'}`" in err
    assert "failed on 1 of 2 nodes: `two`" in err


def test_what_no_node_can_have_is_refused_before_a_cluster_is_joined(here, nodes):
    for arguments in (("get", "imagenet"), ("get", "cifr10"), ("prepare", "mnist")):
        assert here("data", *arguments, "--address", "auto")[0] == 2
    assert nodes.joined == []


# --- launch -----------------------------------------------------------------------------------


def test_a_grid_is_planned_without_its_data_and_not_launched(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEPER_DATA", raising=False)
    Path("small.yaml").write_text(GRID)
    code, out, _ = here("plan", "small.yaml", "--json")
    assert code == 0
    assert json.loads(out)["n_bytes"] == 2 * 2 * 10_000 * 10 * 2
    code, _, err = here("launch", "small.yaml", "--executor", "local", "-y")
    assert code == 2
    assert err.startswith(f"error: data.name: `cifar10` is not in `{tmp_path / 'data/cifar10'}`")
    assert err.endswith(f"hint: `sweeper data get cifar10 --root {tmp_path / 'data'}`\n")
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_grid_is_launched_with_its_data(here, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(GRID)
    code, _, err = here("launch", "small.yaml", "--executor", "local", "-y")
    assert code == 0, err
    assert "2/2 trials complete" in err


def test_slots_look_where_the_driver_looked(tmp_path, monkeypatch):
    """A slot may start in another folder or on another machine, with an environment of its own."""
    monkeypatch.setenv("SWEEPER_DATA", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    from sweeper.schedule.placement import _Slot

    slot = object.__new__(_Slot)  # as Ray makes it, but for what Tune sets up
    config = {"slot": 1, "per_gpu": 1, "cpus": 1}
    slot.setup(config, None, None, {}, (), ["/theirs"], str(tmp_path))
    assert data_root() == tmp_path
    assert sys.path[0] == "/theirs"
