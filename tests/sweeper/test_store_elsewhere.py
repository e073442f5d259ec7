"""A sweep whose predictions, checkpoints and logs are in a bucket, or in another folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from sweeper.cli import main
from sweeper.schedule import retry
from sweeper.schedule.retry import BUDGETS
from sweeper.store import claim, open_store
from sweeper.store.objects import open_objects
from sweeper.store.root import Root
from tests.s3_server import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    Answer,
    Proxy,
    Request,
    answering,
    bucket_contents,
)

GRID = """\
name: small
base:
  data.name: digits
  model: {name: fc, widths: [16]}
  optim: {name: sgd, lr: 0.1, batch_size: 256}
  epochs: 2
  record.schedule: log
axes:
  seed: {range: [0, 2]}
"""
NOTES = {"driver.lock", "grid.yaml", "journal.jsonl", "manifest.json", "plan.parquet"}
NOTES |= {"status.json"}
KEPT = {"grid.yaml", "plan.parquet", "sweep.json"}  # beside the store, too
SECOND = "/test/log_probs/c.1."  # what the object of a trial's second snapshot has in its path


@dataclass
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def sweeper(*arguments: object) -> Done:
    """Run the command line in this process."""
    threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryFile("w+") as out,
        TemporaryFile("w+") as err,
    ):
        patch.setattr(sys, "argv", ["sweeper", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        torch.set_num_threads(threads)
        for file in (out, err):
            file.seek(0)
        return Done(int(ended.value.code or 0), out.read(), err.read())


def launch(folder: Path, *options: object) -> Done:
    """Launch the grid in a sweep directory."""
    grid = folder.parent / "small.yaml"
    grid.write_text(GRID)
    return sweeper("launch", grid, "--sweep-dir", folder, "--executor", "local", "-y", *options)


def resume(folder: Path) -> Done:
    return sweeper("resume", folder, "--executor", "local", "-y")


def digests(place: str | Path) -> dict[str, str]:
    return dict(open_store(place).trials()["digest"])


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the sweep in its own directory, undisturbed."""
    folder = tmp_path_factory.mktemp("here") / "sweep"
    assert launch(folder).code == 0
    return digests(folder)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is run again at once."""
    monkeypatch.setattr(retry, "_DELAYS", dict.fromkeys(retry._DELAYS, 0.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


@pytest.fixture
def stored(s3_endpoint: str, s3_url: str) -> Callable[[], dict[str, bytes]]:
    """What the sweep has in the bucket at the moment, by names below its prefix."""
    prefix = s3_url.removeprefix(f"s3://{BUCKET}/") + "/"

    def look() -> dict[str, bytes]:
        found = bucket_contents(s3_endpoint, prefix)
        return {key.removeprefix(prefix): data for key, data in found.items()}

    return look


def results(in_bucket: dict[str, bytes]) -> dict[str, bytes]:
    """What there is but the notes, which tell of every launch."""
    return {name: data for name, data in in_bucket.items() if not name.startswith("sweeps/")}


def assert_no_secret(folder: Path, in_bucket: dict[str, bytes]) -> None:
    """No file and no object has the credentials in it, compressed or not."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files
    assert in_bucket
    for name, data in [*files.items(), *in_bucket.items()]:
        if name.endswith(".parquet"):
            data += repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        assert ACCESS_KEY.encode() not in data, name
        assert SECRET_KEY.encode() not in data, name


# --- a bucket --------------------------------------------------------------------------------


def test_a_sweep_in_a_bucket_is_the_sweep_in_a_folder(
    s3_url: str, stored, folder: Path, expected: dict[str, str]
):
    assert launch(folder, "--store", f"{s3_url}/").code == 0
    assert {path.name for path in folder.iterdir()} == NOTES
    kinds = {name.split("/")[0] for name in stored()}
    assert kinds == {"predictions.zarr", "logs", "sweeps"}, "no checkpoints of complete trials"
    kept = {name for name in stored() if name.startswith("sweeps/")}
    assert kept == {f"sweeps/small/{name}" for name in KEPT}
    logs = {name.split("/")[1]: data for name, data in stored().items() if "logs/" in name}
    assert logs.keys() == expected.keys()
    for trial, data in logs.items():
        assert f"complete, digest {expected[trial][:12]}" in data.decode()
    assert digests(folder) == digests(s3_url) == expected
    assert digests(f"{s3_url}/predictions.zarr") == expected

    shown = json.loads(sweeper("status", folder, "--json").stdout)
    assert shown["counts"]["complete"] == 2
    for place in (folder, s3_url):
        verified = sweeper("verify", place, "--json")
        assert (verified.code, json.loads(verified.stdout)["damages"]) == (0, [])
    before = results(stored())
    assert "0 to run" in resume(folder).stderr
    assert launch(folder).code == 0
    assert results(stored()) == before
    assert_no_secret(folder, stored())


def test_a_sweep_in_a_bucket_is_analysed(s3_url: str, stored, folder: Path):
    assert launch(folder, "--store", s3_url).code == 0
    before = stored()
    done = sweeper("analyze", "distances", folder)
    assert done.code == 0, done.stderr
    done = sweeper("analyze", "all", folder)
    assert done.code == 0, done.stderr
    assert "distances: unchanged" in done.stderr
    assert (folder / "analysis" / "report.html").stat().st_size > 0
    assert stored() == before, "artifacts are in the sweep directory"
    assert_no_secret(folder, before)


def test_a_bucket_alone_is_enough_to_go_on(
    proxy: Proxy, s3_url: str, stored, folder: Path, expected: dict[str, str], monkeypatch
):
    def drain(request: Request) -> Answer:
        os.kill(os.getpid(), signal.SIGTERM)
        return request.forward()

    proxy.fail(drain, method="PUT", part=SECOND)
    assert launch(folder, "--store", s3_url, "--limit", "1").code == 4
    shutil.rmtree(folder)
    monkeypatch.chdir(folder.parent)
    shown = json.loads(sweeper("status", s3_url, "--json").stdout)
    assert shown["driver"] is None
    assert (shown["n_planned"], shown["counts"]["interrupted"]) == (2, 1)

    done = sweeper("resume", s3_url, "--executor", "local", "-y")
    assert done.code == 0, done.stderr
    found = Path("runs/small")
    assert digests(found) == expected
    (went_on,) = (line for line in events(found, "started") if line["step"] > 0)
    assert went_on["attempt"] == 2, "from its checkpoint"
    manifest = json.loads((found / "manifest.json").read_text())
    assert (manifest["store"], len(manifest["launches"])) == (s3_url, 2)
    assert (found / "grid.yaml").read_text() == GRID
    assert json.loads(sweeper("status", s3_url, "--json").stdout)["counts"]["complete"] == 2
    assert_no_secret(found, stored())


def test_nothing_runs_before_what_another_driver_needs_is_kept(
    proxy: Proxy, s3_url: str, stored, folder: Path, expected: dict[str, str]
):
    refused = answering(403, "AccessDenied")
    proxy.fail(refused, times=1 << 30, method="PUT", part="sweeps/small/sweep.json")
    done = launch(folder, "--store", s3_url)
    assert done.code == 2
    assert "sweeps/small/sweep.json: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not any("/staging/" in name or "/trials/" in name for name in stored())
    assert not (folder / "journal.jsonl").exists()
    assert not any("driver.json" in name for name in stored()), "nor does it hold the sweep"
    proxy.heal()
    assert launch(folder, "--store", s3_url).code == 0
    assert digests(folder) == expected


def test_a_damaged_object_in_a_bucket_is_found_repaired_and_run_again(
    s3_url: str, stored, folder: Path, expected: dict[str, str]
):
    launch(folder, "--store", s3_url)
    objects = open_store(folder).objects
    trial = min(expected)
    objects.write(f"trials/{trial}/1/test/log_probs/c.0.0.0", b"damaged")
    found = sweeper("verify", folder, "--json")
    assert found.code == 5
    assert [damage["where"] for damage in json.loads(found.stdout)["damages"]] == [f"trial {trial}"]
    assert sweeper("verify", folder, "--repair").code == 0
    assert digests(folder).keys() == expected.keys() - {trial}
    assert "1 to run" in resume(folder).stderr
    assert digests(folder) == expected


def test_a_drained_trial_goes_on_from_its_checkpoint_in_the_bucket(
    proxy: Proxy, s3_url: str, stored, folder: Path, expected: dict[str, str]
):
    def drain(request: Request) -> Answer:
        os.kill(os.getpid(), signal.SIGTERM)
        return request.forward()

    proxy.fail(drain, method="PUT", part=SECOND)
    assert launch(folder, "--store", s3_url).code == 4
    (checkpoint,) = (name for name in stored() if name.startswith("checkpoints/"))
    _, trial, name = checkpoint.split("/")
    step = int(name.removesuffix(".pt").removeprefix("1-"))
    assert step > 0
    assert {path.name for path in folder.iterdir()} == NOTES
    shown = json.loads(sweeper("status", folder, "--json").stdout)
    assert shown["counts"]["interrupted"] == 1

    assert resume(folder).code == 0
    (started,) = (line for line in events(folder, "started") if line["attempt"] == 2)
    assert (started["trial"], started["step"]) == (trial, step)
    logs = [data for name, data in stored().items() if f"logs/{trial}" in name]
    assert len(logs) == 2
    assert f"step {step} of" in b"".join(logs).decode()
    assert digests(folder) == expected
    assert not any(name.startswith("checkpoints/") for name in stored())
    assert_no_secret(folder, stored())


def test_a_store_that_goes_down_fails_trials_and_loses_nothing(
    proxy: Proxy, s3_url: str, stored, folder: Path, expected: dict[str, str], monkeypatch
):
    looks: list[float] = []  # at a claim that no driver could take back
    monkeypatch.setattr(claim, "_pause", looks.append)

    def go_down(request: Request) -> None:
        proxy.go_down()

    proxy.fail(go_down, method="PUT", part=SECOND)
    done = launch(folder, "--store", s3_url)
    assert done.code == 3, done.stderr
    assert "2 failed" in done.stderr
    assert f"`sweeper failures {folder}` tells why" in done.stderr
    again = Counter(retry["trial"] for retry in events(folder, "retried"))
    assert again == dict.fromkeys(expected, BUDGETS["storage"])
    failures = events(folder, "failed")
    assert {failure["trial"] for failure in failures} == expected.keys()
    assert {(failure["kind"], failure["error"]) for failure in failures} == {
        ("storage", "UnavailableStoreError")
    }
    assert events(folder, "ended")[-1]["reason"] == "failures"
    before = stored()
    assert any("/test/log_probs/c.0." in name for name in before), "the first snapshot"
    for command in ("status", "verify", "resume"):
        refused = sweeper(command, folder)
        assert refused.code == 2
        assert "hint: check the network" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert stored() == before

    proxy.heal()
    assert resume(folder).code == 0
    assert sum(looks) == claim.STALE_SECONDS
    assert digests(folder) == expected
    assert sweeper("verify", folder).code == 0
    assert_no_secret(folder, stored())


def test_a_service_that_now_and_then_fails_is_not_noticed(
    proxy: Proxy, s3_url: str, folder: Path, expected: dict[str, str]
):
    for part in ("zarr.json", SECOND, "logs/", "prefix=", "c.0.0.0"):
        proxy.fail(answering(503, "SlowDown"), times=2, part=part)
    assert launch(folder, "--store", s3_url).code == 0
    assert digests(folder) == expected
    assert events(folder, "failed") == []


def test_an_answer_that_names_the_key_is_repeated_nowhere(
    proxy: Proxy, s3_url: str, stored, folder: Path, expected: dict[str, str]
):
    text = f"The AWS Access Key Id {ACCESS_KEY} does not exist, nor does {SECRET_KEY}"
    proxy.fail(answering(403, "InvalidAccessKeyId", text), method="PUT", part=SECOND)
    done = launch(folder, "--store", s3_url)
    assert done.code == 0, "run again, and then let in"
    (failure,) = events(folder, "retried")
    assert failure["kind"] == "storage"
    assert "403 Forbidden (InvalidAccessKeyId)" in failure["message"]
    logs = b"".join(data for name, data in stored().items() if failure["trial"] in name)
    assert b"InvalidAccessKeyId" in logs
    shown = done.stdout + done.stderr + sweeper("status", folder).stdout
    assert ACCESS_KEY not in shown
    assert SECRET_KEY not in shown
    assert_no_secret(folder, stored())
    assert digests(folder) == expected


def test_two_attempts_of_one_second_have_a_log_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "strftime", lambda form: form)
    root = Root("memory://logs/sweep")
    for text in ("first", "second"):
        root.log("t1")(text)
    objects = open_objects("memory://logs/sweep/logs/t1")
    texts = sorted(bytes(objects.read(name)).split()[-1] for name in objects.names(""))
    assert texts == [b"first", b"second"]


def test_credentials_in_the_store_option_are_refused_and_not_shown(s3_url: str, folder: Path):
    given = s3_url.replace("s3://", f"s3://{ACCESS_KEY}:{SECRET_KEY}@")
    refused = [launch(folder, "--store", given)]
    assert not folder.exists()
    launch(folder, "--store", s3_url, "--limit", "1")
    refused += [launch(folder, "--store", given), sweeper("verify", given)]
    for done in refused:
        assert done.code == 2
        assert "hint: set AWS_ACCESS_KEY_ID" in done.stderr
        assert ACCESS_KEY not in done.stderr
        assert SECRET_KEY not in done.stderr


# --- another folder --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_store_in_another_folder_is_found_again(
    scheme: str, tmp_path: Path, folder: Path, expected: dict[str, str], monkeypatch
):
    other = tmp_path / "large disk"
    monkeypatch.chdir(tmp_path)
    given = f"file://{other}" if scheme else "large disk"
    assert launch(folder, "--store", given, "--limit", "1").code == 0
    assert {path.name for path in other.iterdir()} == {"predictions.zarr", "logs", "sweeps"}
    assert {path.name for path in folder.iterdir()} == NOTES
    monkeypatch.chdir("/")
    assert resume(folder).code == 0
    assert digests(folder) == digests(other) == expected
    assert json.loads((folder / "manifest.json").read_text())["store"] == str(other)


def test_a_store_does_not_move(tmp_path: Path, folder: Path):
    launch(folder, "--store", tmp_path / "one", "--limit", "1")
    for elsewhere in (tmp_path / "other", folder, "s3://bucket/other"):
        refused = launch(folder, "--store", elsewhere)
        assert refused.code == 2
        assert f"its store is at `{tmp_path / 'one'}`, not at `{elsewhere}`" in refused.stderr
        assert "leave out --store" in refused.stderr
    assert launch(folder, "--store", tmp_path / "one").code == 0


def test_a_store_inside_another_sweeps_store_is_refused(tmp_path: Path, folder: Path):
    launch(folder, "--limit", "1")
    inside = folder / "predictions.zarr" / "trials"
    refused = launch(tmp_path / "second", "--store", inside)
    assert refused.code == 2
    assert f"inside the store `{folder / 'predictions.zarr'}`" in refused.stderr
