"""A store's place, seen from the driver and from nodes that see the same, another, or less."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time

import pytest

from sweeper.doctor import place
from sweeper.doctor.place import check_place, marked, unseen
from sweeper.errors import SweeperError, UnavailableStoreError
from sweeper.store.local import LocalObjects
from tests.s3_server import BUCKET, answering, bucket_contents


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(place, "SEE_SECONDS", 0.0)


def only(findings):
    (finding,) = findings
    return finding


def test_the_same_folder_passes_with_what_writing_takes_and_nothing_stays(tmp_path):
    with marked(str(tmp_path)) as mark:
        found = only(check_place(mark, "node"))
        assert unseen(mark, ["node"]) == []
        assert unseen(mark, ["node", "other"]) == ["other"]
    assert found.verdict == "pass"
    assert found.text.startswith(f"{tmp_path}: write ")
    assert found.text.count(" ms") == 4
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_still_to_be_made_is_not_made(tmp_path):
    with marked(str(tmp_path / "runs" / "new")) as mark:
        assert mark.place == str(tmp_path)
        assert only(check_place(mark, "node")).verdict == "pass"
    assert not list(tmp_path.iterdir())


def test_another_folder_of_that_name_is_told_and_left_alone(tmp_path):
    """As on a node whose disk is its own: the mark is not there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with marked(str(tmp_path)) as mark:
        found = only(check_place(dataclasses.replace(mark, place=str(theirs)), "node"))
    assert found.verdict == "fail"
    assert "another place here" in found.text
    assert "s3://" in found.cure
    assert not list(theirs.iterdir())


def test_a_copy_of_the_folder_is_not_the_same_place(tmp_path):
    """The driver writes anew each time: an old copy has another token."""
    with marked(str(tmp_path)) as mark:
        found = only(check_place(dataclasses.replace(mark, token="other"), "node"))
    assert found.verdict == "fail"


def test_what_a_node_writes_is_looked_for_where_the_driver_is(tmp_path):
    """A node can see the driver's files through a cache, and write where nobody looks."""
    with marked(str(tmp_path)) as mark:
        assert only(check_place(mark, "node")).verdict == "pass"
        shutil.rmtree(tmp_path / mark.folder)
        assert unseen(mark, ["node"]) == ["node"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EROFS, "Read-only file system"), (errno.EPERM, "hard links and fsync are needed")],
)
def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch, number, text):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with marked(str(tmp_path)) as mark:
        monkeypatch.setattr(LocalObjects, "write_parts", refuse)
        found = only(check_place(mark, "node"))
        assert found.verdict == "fail"
        assert f"{tmp_path}: cannot be written: " in found.text
        assert text in found.text
        with pytest.raises(SweeperError, match="cannot be written"), marked(str(tmp_path)):
            pass
    assert not list(tmp_path.iterdir())


def test_a_place_where_creating_is_not_exclusive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalObjects, "create", lambda *_: True)
    with marked(str(tmp_path)) as mark:
        found = only(check_place(mark, "node"))
    assert found.verdict == "fail"
    assert "created twice" in found.text


def test_a_slow_place_is_worth_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "SLOW_MS", 0.0)
    with marked(str(tmp_path)) as mark:
        assert only(check_place(mark, "node")).verdict == "warn"


def test_a_late_mark_is_waited_for(tmp_path, monkeypatch):
    """Over NFS what another machine wrote is seen when a cache expires."""
    monkeypatch.setattr(place, "SEE_SECONDS", 3600.0)
    with marked(str(tmp_path)) as mark:
        (tmp_path / mark.folder).rename(tmp_path / "hidden")
        naps = iter([lambda: None, lambda: (tmp_path / "hidden").rename(tmp_path / mark.folder)])
        monkeypatch.setattr(time, "sleep", lambda _: next(naps)())
        assert only(check_place(mark, "node")).verdict == "pass"


# --- a bucket --------------------------------------------------------------------------------


def test_a_bucket_is_probed_and_left_as_it_was(s3_url, s3_endpoint):
    with marked(s3_url) as mark:
        found = only(check_place(mark, "node"))
        assert unseen(mark, ["node"]) == []
    assert found.verdict == "pass"
    assert found.text.startswith(f"{s3_url}: write ")
    assert not bucket_contents(s3_endpoint, s3_url.removeprefix(f"s3://{BUCKET}/"))


@pytest.mark.parametrize(
    ("code", "cure"),
    [("ExpiredToken", "have expired: sign in again"), ("RequestTimeTooSkewed", "clock is wrong")],
)
def test_an_expired_credential_is_told_with_how_to_renew_it(proxy, s3_url, code, cure):
    proxy.fail(answering(400, code), times=1 << 30)
    with pytest.raises(UnavailableStoreError) as refused, marked(s3_url):
        pass
    assert code in str(refused.value)
    assert cure in refused.value.hint
    assert len(proxy.requests) < 10, "it is not asked again and again"


def test_another_refusal_keeps_its_usual_hint(proxy, s3_url):
    proxy.fail(answering(403, "AccessDenied"), times=1 << 30)
    with pytest.raises(UnavailableStoreError) as refused, marked(s3_url):
        pass
    assert refused.value.hint == UnavailableStoreError.usual_hint
