"""What a slot's process has for itself, what it shares, and what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.schedule.surroundings import own_surroundings
from sweeper.train.sources.on_node import NODE_TMP_VARIABLE

VARIABLES = (
    *("TMPDIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", NODE_TMP_VARIABLE),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)


@pytest.fixture
def node_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node's folder for temporary files; the process is afterwards as it was."""
    node_tmp = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # which notes what there was
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(node_tmp))
    yield node_tmp
    shutil.rmtree(node_tmp, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    return path.name.startswith(f"sw{os.getuid()}-")


def slot_folders(node_tmp: Path) -> list[str]:
    return sorted(path.name for path in node_tmp.iterdir() if _is_ours(path))


def test_temporary_files_go_to_a_private_folder_that_goes_with_the_slot(node_tmp: Path):
    with own_surroundings(1, []):
        folder = Path(tempfile.gettempdir())
        assert (folder.parent, os.environ["TMPDIR"]) == (node_tmp, str(folder))
        assert _is_ours(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == folder
        (folder / "left").write_text("by a trial")
    assert slot_folders(node_tmp) == []
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(node_tmp)


def test_two_slots_have_two_folders_and_one_place_for_what_the_node_shares(node_tmp: Path):
    def around() -> list[str]:
        return [os.environ[name] for name in VARIABLES[-3:]]

    with own_surroundings(1, []):
        one, shared = tempfile.gettempdir(), around()
        with own_surroundings(1, []):  # as of another sweep of the same user
            assert tempfile.gettempdir() != one
            assert around() == shared
    assert shared[0] == str(node_tmp)
    own = Path(shared[1]).parent
    assert own == Path(shared[2]).parent != Path(one)
    assert (own.parent, stat.S_IMODE(own.stat().st_mode)) == (node_tmp, 0o700)


def test_a_place_for_compiled_graphs_that_a_site_has_chosen_stays(
    node_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/scratch/triton")
    with own_surroundings(1, []):
        assert os.environ["TRITON_CACHE_DIR"] == "/scratch/triton"
        assert "TORCHINDUCTOR_CACHE_DIR" in os.environ


def test_a_folder_of_somebody_else_is_not_used_for_compiled_graphs(node_tmp: Path):
    own = node_tmp / f"sweeper-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    with own_surroundings(1, []):
        assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(("gpus", "seen"), [([], ""), ([3], "3"), (["MIG-1"], "MIG-1")])
def test_a_slot_sees_its_gpu_alone_and_none_without_a_share(
    node_tmp: Path, gpus, seen, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with own_surroundings(2, gpus):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"


SLOT = """
import sys, tempfile
from sweeper.schedule.surroundings import own_surroundings
with own_surroundings(1, []):
    print(tempfile.gettempdir(), flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_slot_left_is_removed_by_the_next_and_a_living_ones_is_not(node_tmp: Path):
    environment = os.environ | {"TMPDIR": str(node_tmp)}
    slots = [
        subprocess.Popen(
            [sys.executable, "-c", SLOT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    killed, alive = (Path(slot.stdout.readline().strip()) for slot in slots)
    (killed / "left").write_text("by a trial")
    slots[0].send_signal(signal.SIGKILL)
    slots[0].communicate()
    assert killed.exists()

    with own_surroundings(1, []):
        assert not killed.exists()
        assert alive.exists()

    slots[1].communicate("")
    assert slot_folders(node_tmp) == []


def test_a_socket_of_a_data_loader_has_room_below_the_folder(
    node_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    deep = node_tmp / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with own_surroundings(1, []):
        folder = tempfile.gettempdir()
        assert len(f"{folder}/pymp-12345678/listener-12345678") < 107
    assert not Path(folder).exists()


def test_a_node_without_room_for_temporary_files_says_so(node_tmp: Path):
    node_tmp.rmdir()
    with pytest.raises(OSError, match="No such file"), own_surroundings(1, []):
        pass
