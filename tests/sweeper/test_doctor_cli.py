"""`sweeper doctor` on this machine, and what it refuses."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from sweeper.doctor import consult
from tests.s3_server import answering

GRID = {"axes": {"seed": [0, 1]}}


@pytest.fixture
def doctor(here, monkeypatch, tmp_path):
    """Runs `doctor --json` in an empty working directory; how it ended, and by check what it is."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments):
        done = here("doctor", *arguments, "--json")
        rows = json.loads(done.stdout)["findings"]
        assert not list(work.iterdir()), "it leaves nothing behind"
        return done, {row["check"]: row for row in rows}

    return run


def test_this_machine_is_looked_at_and_shown(here, doctor):
    done, found = doctor()
    assert done.stderr == ""
    assert {"python", "torch", "memory", "open files", "gpu", "distances", "triton"} <= set(found)
    assert not {"store", "grid", "room"} & set(found)
    assert all(row["cure"] for row in found.values() if row["verdict"] == "warn")
    assert done.returncode == 2 * any(row["verdict"] == "fail" for row in found.values())
    shown = here("doctor")
    assert shown.returncode == done.returncode
    assert "\x1b" not in shown.stdout
    assert "  pass  python " in shown.stdout


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_pytorch_that_cannot_be_imported_is_a_finding_among_others(tmp_path, kind):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {kind}('libcudart.so.13: no such')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sweeper", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (2, "")
    found = {row["check"]: row for row in json.loads(done.stdout)["findings"]}
    assert found["torch"]["verdict"] == "fail"
    assert "libcudart.so.13" in found["torch"]["text"]
    assert found["python"]["verdict"] == "pass"


def test_without_torch_and_ray_it_says_what_is_missing():
    hide = "sys.modules |= dict.fromkeys(['torch', 'torchvision', 'triton', 'ray'])"
    run = f"import sys; {hide}; sys.argv[1:] = ['doctor', '--json']; from sweeper.cli import main"
    done = subprocess.run(
        [sys.executable, "-c", f"{run}; main()"], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (2, "")
    found = {row["check"]: row for row in json.loads(done.stdout)["findings"]}
    for check in ("torch", "torchvision", "distances"):
        assert found[check]["verdict"] == "fail"
        assert "pip install" in found[check]["cure"]
    assert found["open files"]["text"]


def test_a_grid_is_looked_at_with_its_data_and_its_room(doctor, grid_file):
    done, found = doctor(grid_file(**GRID))
    assert done.returncode == 0, done.stdout
    assert found["grid"]["text"] == "2 trials, 2 to run"
    assert {found[check]["verdict"] for check in ("grid", "room", "store", "data digits")} == {
        "pass"
    }


def test_a_sweep_that_does_not_fit_is_a_failure(doctor, grid_file, monkeypatch):
    from sweeper import room

    monkeypatch.setattr(room, "free_room", lambda _: room.Room(1, None))
    done, found = doctor(grid_file(**GRID))
    assert done.returncode == 2
    assert found["room"]["verdict"] == "fail"
    assert "1 are free" in found["room"]["text"]
    assert found["data digits"]["verdict"] == "pass", "the other checks go on"


def test_a_grid_that_is_wrong_is_a_failure_and_the_rest_goes_on(doctor, grid_file):
    done, found = doctor(grid_file(axes={"sed": [1]}))
    assert done.returncode == 2
    assert found["grid"]["verdict"] == "fail"
    assert "unknown key" in found["grid"]["text"]
    assert found["torch"]["verdict"] == "pass"


def test_a_grid_for_gpus_is_a_failure_without_one(doctor, grid_file, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    done, found = doctor(grid_file(axes={"precision": ["float32", "bf16"]}))
    assert done.returncode == 2
    assert found["precision"]["verdict"] == "fail"
    assert "precision=float32" in found["precision"]["cure"]


def test_data_that_is_absent_is_a_failure(doctor, grid_file, without, monkeypatch, tmp_path):
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path / "nothing"))
    axes = {"data.name": ["cifar10", "digits"]}
    done, found = doctor(grid_file(base=without("data.name"), axes=axes))
    assert done.returncode == 2
    assert found["data cifar10"]["verdict"] == "fail"
    assert "sweeper data get cifar10" in found["data cifar10"]["cure"]


def test_a_folder_is_looked_at_without_a_grid(doctor, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for option in ("--sweep-dir", "--store"):
        done, found = doctor(option, folder)
        assert done.returncode == 0, done.stdout
        assert found["store"]["text"].startswith(f"{folder}: write ")
        assert not list(folder.iterdir())


def test_an_expired_credential_is_told_once_and_nothing_is_planned(
    doctor, grid_file, proxy, s3_url
):
    proxy.fail(answering(400, "ExpiredToken"), times=1 << 30)
    done, found = doctor(grid_file(**GRID), "--store", s3_url)
    assert done.returncode == 2
    assert "ExpiredToken" in found["store"]["text"]
    assert "sign in again" in found["store"]["cure"]
    assert found["grid"]["verdict"] == "warn"


def test_a_launch_with_an_expired_credential_says_how_to_renew_it(
    here, grid_file, proxy, s3_url, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    proxy.fail(answering(400, "ExpiredToken"), times=1 << 30)
    grid = grid_file(**GRID)
    done = here("launch", grid, "--store", s3_url, "--executor", "local", "-y")
    assert done.returncode == 2
    error, _, hint = done.stderr.partition("\n\n")
    assert error.startswith("error: ")
    assert "(ExpiredToken)" in error
    assert hint.startswith("hint: the credentials have expired: sign in again")
    assert not (tmp_path / "runs").exists()


def test_a_launch_for_gpus_without_one_is_refused_before_anything_is_made(
    here, grid_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    launch = ("launch", grid_file(axes={"precision": ["bf16"]}), "--executor", "local", "-y")
    done = here(*launch)
    assert done.returncode == 2
    assert done.stderr.startswith("error: precision: 1 of 1 trials are to compute in `bf16`, and")
    assert "hint: `--set precision=float32`" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert here(*launch, "--force", "--set", "epochs=1").returncode == 0


def test_a_time_limit_that_is_too_short_is_refused_before_slots_are_started(
    here, grid_file, tmp_path
):
    launch = ("launch", grid_file(**GRID), "--sweep-dir", tmp_path / "sweep", "-y")
    assert here(*launch, "--executor", "local", "--limit", 1).returncode == 0
    journal = tmp_path / "sweep" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    slow = [line | ({"seconds": 90.0} if "seconds" in line else {}) for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in slow))
    (tmp_path / "sweep" / "status.json").unlink()
    done = here(*launch, "--time-limit", "30s")
    assert done.returncode == 2
    said = "error: --time-limit: 30.0 s, and an epoch of the shortest trial takes 45.0 s; "
    assert said in done.stderr
    assert "hint: " in done.stderr


@pytest.fixture
def nowhere():
    """An address where nothing answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{closed.getsockname()[1]}"


def test_no_cluster_at_the_address_is_the_same_error_as_of_a_launch(
    here, doctor, grid_file, tmp_path, nowhere
):
    asked = (grid_file(**GRID), "--address", nowhere, "--sweep-dir", tmp_path / "s")
    done, found = doctor(*asked)
    assert done.returncode == 2
    assert found["cluster"]["verdict"] == "fail"
    assert found["grid"]["verdict"] == "pass"
    error = found["cluster"]["text"]
    assert error.startswith(f"--address: no cluster at `{nowhere}` (nothing answers")
    said = here("launch", *asked, "-y").stderr
    assert said.endswith(f"error: {error}\n\nhint: {found['cluster']['cure']}\n")


def test_a_share_is_looked_at_as_it_would_be_launched(doctor, grid_file):
    grid = grid_file(axes={"seed": {"range": [0, 20]}})
    numbers = []
    for number in (1, 2):
        _, found = doctor(grid, "--shard", f"{number}/2")
        numbers.append(int(found["grid"]["text"].partition(" trials")[0]))
    assert sum(numbers) == 20
    assert all(numbers)


@pytest.mark.parametrize("option", [("--shard", "1/2"), ("--set", "epochs=1")])
def test_what_is_of_a_grid_is_refused_without_one(here, option):
    done = here("doctor", *option)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {option[0]}: given without a grid")


def test_a_folder_below_a_file_is_refused_with_what_may_be_there(doctor, here, grid_file, tmp_path):
    grid, file = grid_file(**GRID), tmp_path / "file"
    file.write_text("")
    error = f"{file / 'x'}: `{file}` is a file; a folder, there or still to be made"
    for arguments in (
        ["--sweep-dir", file / "x"],
        ["--store", file / "x"],
        [grid, "--sweep-dir", file / "x"],
    ):
        done, found = doctor(*arguments)
        assert done.returncode == 2
        assert found["store"]["text"] == error
        assert found["store"]["cure"]
    launch = here("launch", grid, "--sweep-dir", file / "x", "-y")
    assert launch.returncode == 2
    assert f"error: {error}\n\nhint: " in launch.stderr


@pytest.fixture
def silent():
    """The endpoint of a service that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_bucket_that_does_not_answer_is_named_and_the_rest_goes_on(
    doctor, grid_file, s3_url, silent, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    monkeypatch.setattr(consult, "STORE_SECONDS", 0.5)
    done, found = doctor(grid_file(**GRID), "--store", s3_url)
    assert done.returncode == 2
    assert found["store"]["text"].startswith(f"{s3_url}: no answer within ")
    assert "AWS_ENDPOINT_URL" in found["store"]["cure"]
    assert found["grid"]["verdict"] == "warn"
    assert found["torch"]["verdict"] == "pass"


def test_a_grid_is_not_planned_while_pytorch_is_still_imported(doctor, grid_file, monkeypatch):
    end, real = threading.Event(), importlib.import_module
    monkeypatch.setattr(consult, "IMPORT_SECONDS", 0.1)
    monkeypatch.setattr(importlib, "import_module", lambda name: end.wait() and real(name))
    monkeypatch.setattr(consult, "SECONDS", 0.0)
    monkeypatch.setattr(consult, "LEAST_SECONDS", 3.0)
    done, found = doctor(grid_file(**GRID))
    end.set()
    assert done.returncode == 0
    assert (found["grid"]["verdict"], found["torch"]["verdict"]) == ("warn", "warn")
    assert "importing PyTorch takes more than" in found["grid"]["text"]
    assert found["torch"]["text"] == "importing it: no answer within 3 s"
    assert found["data"]["text"] == "not looked at: `torch` before it took too long"
    assert found["memory"]["text"]


def test_what_a_plug_in_prints_is_no_finding(doctor, grid_file, without, tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text(
        "from torch import nn\n"
        "print('loaded')\n"
        "def net(shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    axes = {"model.name": ["chatty:net"]}
    done, found = doctor(grid_file(base=without("model.name"), axes=axes))
    assert done.returncode == 0
    assert found["plug-in chatty:net"]["verdict"] == "pass"
    assert "loaded" in done.stderr
    sys.modules.pop("chatty")
