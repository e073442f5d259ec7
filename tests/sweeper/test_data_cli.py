"""`sweeper data`, and a launch without its data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from sweeper.cli import main
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
    slot.setup({"slot": 1, "per_gpu": 1}, None, None, ["/theirs"], str(tmp_path))
    assert data_root() == tmp_path
    assert sys.path[0] == "/theirs"
