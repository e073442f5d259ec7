"""A service that throttles, fails, is late, forgets to answer, refuses, or is gone."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import obstore
import pytest
from obstore.exceptions import NotSupportedError

from sweeper.errors import StoreURLError, UnavailableStoreError
from sweeper.store import open_store, remote, url
from sweeper.store.opening import check_place
from sweeper.store.remote import RemoteObjects
from sweeper.store.staging import attempts
from sweeper.store.verify import verify
from tests.conftest import TinyStore
from tests.s3_server import (
    ACCESS_KEY,
    BUCKET,
    Answer,
    Fault,
    Proxy,
    Request,
    answering,
    delayed,
    dropped,
    forwarded,
    internal_error,
    lost,
    slow_down,
)

OPERATIONS: dict[str, Callable[[RemoteObjects], Any]] = {
    "read": lambda objects: objects.read("x"),
    "tail": lambda objects: objects.read_tail("x", 2),
    "ranges": lambda objects: objects.read_ranges("x", [(0, 2)]),
    "write": lambda objects: objects.write("new", b"1"),
    "create": lambda objects: objects.create("new", b"1"),
    "names": lambda objects: objects.names(""),
    "walk": lambda objects: list(objects.walk("")),
    "exists": lambda objects: objects.exists("x"),
    "delete": lambda objects: objects.delete("x"),
}
operations = pytest.mark.parametrize("operation", OPERATIONS)


@pytest.fixture
def objects(proxy: Proxy, s3_url: str) -> RemoteObjects:
    """A bucket behind the proxy, with one object."""
    found = RemoteObjects(s3_url)
    found.write("x", b"abc")
    proxy.requests.clear()
    return found


SAID = {
    "xml": f'<?xml version="1.0"?>\n<Error><Code>InvalidAccessKeyId</Code><Message>{ACCESS_KEY}'
    f"</Message><AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>",
    "no prologue": f"<Error><Code>InvalidAccessKeyId</Code><X>{ACCESS_KEY}</X></Error>",
    "json": f'{{"key": "{ACCESS_KEY}"}}',
    "text": f"the key {ACCESS_KEY} is unknown\n\nDebug source {ACCESS_KEY}",
    "nothing": "",
}


@pytest.mark.parametrize("status", [400, 403, 409, 412, 500])
@operations
def test_an_error_says_what_is_wrong_and_repeats_nothing_that_the_service_answered(
    operation: str, status: int, proxy: Proxy, objects: RemoteObjects
):
    for form, said in SAID.items():
        proxy.heal()
        proxy.fail(lambda request, said=said: Answer(status, said.encode()), times=1 << 30)
        with pytest.raises(UnavailableStoreError) as caught:
            OPERATIONS[operation](objects)
        assert ACCESS_KEY not in f"{caught.value}{caught.value.args}"
        assert caught.value.where.startswith(objects.location)
        assert caught.value.__suppress_context__
        assert "credentials in the environment" in caught.value.hint
        assert f"status code: {status}" in caught.value.found
        if form in ("xml", "no prologue") and operation != "exists":
            assert "(InvalidAccessKeyId)" in caught.value.found


# --- what is tried again ---------------------------------------------------------------------

FAULTS: dict[str, Fault] = {
    "503": slow_down,
    "500": internal_error,
    "429": answering(429, "TooManyRequests"),
    "dropped": dropped,
    "lost": lost,
}


@pytest.mark.parametrize("fault", FAULTS)
@operations
def test_a_request_that_fails_a_few_times_is_tried_again(
    operation: str, fault: str, proxy: Proxy, objects: RemoteObjects
):
    expected = OPERATIONS[operation](objects)
    n_requests = len(proxy.requests)
    objects.write("x", b"abc")
    objects.delete("new")
    proxy.requests.clear()
    proxy.fail(FAULTS[fault], times=3)
    assert OPERATIONS[operation](objects) == expected
    # Whoever lost the answer to a conditional PUT looks whether it is its own that is there.
    asks_who_won = operation == "create" and fault == "lost"
    assert len(proxy.requests) == n_requests + 3 + asks_who_won
    assert objects.exists("new") == (operation in ("write", "create"))
    assert objects.exists("x") == (operation != "delete")


def test_a_late_answer_is_asked_for_again(
    proxy: Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(url, "REQUEST_SECONDS", 1.0)
    objects = RemoteObjects(s3_url)
    for late in ("PUT", "GET", "HEAD", "POST"):
        proxy.fail(delayed(2.0), method=late)
    assert objects.create("x", b"1")
    assert bytes(objects.read("x")) == b"1"
    assert objects.exists("x")
    objects.delete("x")
    assert not objects.exists("x")
    asked = Counter(request.method for request in proxy.requests)
    assert (asked["PUT"], asked["POST"]) == (2, 2)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("fault", ["503", "dropped", "lost"])
def test_a_large_object_is_whole_although_requests_failed(
    fault: str, method: str, proxy: Proxy, objects: RemoteObjects, monkeypatch
):
    monkeypatch.setattr(remote, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "_PART_BYTES", 5 << 20)
    data = os.urandom(6 << 20)
    proxy.fail(FAULTS[fault], times=2, method=method)
    objects.write("new", data, b"!")
    assert bytes(objects.read("new")) == data + b"!"


@operations
def test_a_store_that_stays_down_is_given_up_after_its_retries(
    operation: str, proxy: Proxy, objects: RemoteObjects
):
    proxy.go_down()
    with pytest.raises(UnavailableStoreError, match="after 4 retries") as caught:
        OPERATIONS[operation](objects)
    assert caught.value.where.startswith(objects.location)
    assert len(proxy.requests) == (10 if operation == "create" else 5)
    proxy.heal()
    assert bytes(objects.read("x")) == b"abc", "it is used again once it is back"


def test_a_store_is_waited_for_no_longer_than_its_time(
    proxy: Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(url, "MAX_RETRIES", 1_000_000)
    monkeypatch.setattr(url, "RETRY_SECONDS", 0.3)
    objects = RemoteObjects(s3_url)
    proxy.go_down()
    started = time.monotonic()
    with pytest.raises(UnavailableStoreError):
        objects.read("x")
    assert 0.3 <= time.monotonic() - started < 30


def test_what_is_refused_for_good_is_not_tried_again(proxy: Proxy, objects: RemoteObjects):
    proxy.fail(answering(403, "AccessDenied"))
    with pytest.raises(UnavailableStoreError, match=r"403 Forbidden \(AccessDenied\)"):
        objects.read("x")
    assert len(proxy.requests) == 1


# --- whose it is -----------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_who_lost_the_answer_to_a_create_is_told_that_it_won(
    times: int, proxy: Proxy, objects: RemoteObjects
):
    proxy.fail(lost, times=times, method="PUT")
    assert objects.create("new", b"mine")
    proxy.fail(lost, times=times, method="PUT")
    assert not objects.create("new", b"theirs")
    assert bytes(objects.read("new")) == b"mine"


def test_who_lost_every_answer_to_a_create_is_told_that_it_won(
    proxy: Proxy, objects: RemoteObjects
):
    proxy.fail(lost, times=5, method="PUT")
    assert objects.create("new", b"mine")
    proxy.fail(dropped, times=5, method="PUT")
    assert not objects.create("new", b"theirs")
    proxy.fail(dropped, times=5, method="PUT")
    with pytest.raises(UnavailableStoreError):
        objects.create("newer", b"mine")


def test_a_claim_whose_answer_was_lost_is_one_attempt(proxy: Proxy, s3_url: str):
    tiny = TinyStore(s3_url)
    proxy.fail(lost, times=2, method="PUT", part="staging/")
    assert tiny.record().attempt == 1
    assert tiny.record(first=2).attempt == 2
    assert attempts(tiny.objects, tiny.header().trial_id) == [1, 2]


def test_a_create_that_conflicts_with_another_is_tried_until_one_of_them_has_won(
    proxy: Proxy, objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch
):
    """S3 may refuse all of several conditional PUTs at once, so that nobody has won."""
    monkeypatch.setattr(remote, "_CONFLICT_SECONDS", 0.0)
    conflict = answering(409, "ConditionalRequestConflict")
    proxy.fail(conflict, times=3, method="PUT")
    assert objects.create("new", b"mine")
    proxy.fail(conflict, times=1, method="PUT")
    assert not objects.create("new", b"theirs")
    proxy.fail(conflict, times=1 << 30, method="PUT")
    with pytest.raises(UnavailableStoreError, match="nor can it be created"):
        objects.create("newer", b"mine")


def test_what_others_delete_meanwhile_is_no_error(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch
):
    """Google and Azure make an error of it, where S3 does not."""
    for name in "abc":
        objects.write(f"d/{name}", b"1")
    delete = obstore.delete

    def delete_late(store: Any, paths: list[str]) -> None:
        monkeypatch.undo()
        delete(store, paths[1:])
        raise FileNotFoundError(paths[0])

    monkeypatch.setattr(obstore, "delete", delete_late)
    objects.delete("d")
    assert objects.names("") == ["x"]


def test_the_tail_is_read_where_ends_of_objects_cannot_be_asked_for(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch
):
    """Azure knows no such ranges."""
    get = obstore.get

    def get_no_suffix(store: Any, path: str, *, options: Any = None) -> Any:
        if options:
            raise NotSupportedError("suffix range")
        return get(store, path)

    objects.write("empty")
    monkeypatch.setattr(obstore, "get", get_no_suffix)
    assert bytes(objects.read_tail("x", 2)) == b"bc"
    assert bytes(objects.read_tail("x", 9)) == b"abc"
    assert bytes(objects.read_tail("empty", 2)) == b""
    with pytest.raises(FileNotFoundError):
        objects.read_tail("absent", 2)


# --- a store out of reach --------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_an_error_whatever_is_asked(proxy: Proxy, s3_url: str):
    objects = RemoteObjects("s3://no-such-bucket/a")
    for act in (
        lambda: objects.names(""),
        lambda: objects.write("x", b"1"),
        lambda: objects.create("x", b"1"),
        lambda: TinyStore("s3://no-such-bucket/a"),
        lambda: open_store("s3://no-such-bucket/a"),
    ):
        with pytest.raises(UnavailableStoreError, match="NoSuchBucket"):
            act()


@pytest.mark.parametrize("is_sealed", [False, True], ids=["staged", "sealed"])
@pytest.mark.parametrize("part", ["test/log_probs/c.", "test/log_probs/zarr.json", "samples/"])
def test_what_is_out_of_reach_is_not_taken_for_damage(
    part: str, is_sealed: bool, proxy: Proxy, s3_url: str
):
    """A repair would remove it."""
    tiny = TinyStore(s3_url)
    tiny.sealed() if is_sealed else tiny.record()
    store = open_store(s3_url)
    proxy.fail(internal_error, times=1 << 30, part=part)
    with pytest.raises(UnavailableStoreError):
        verify(store)
    proxy.heal()
    assert verify(store).damages == ()


def test_a_prefix_may_be_all_that_the_credentials_reach(proxy: Proxy, s3_url: str):
    above = s3_url.removesuffix("/sweep")
    prefix = s3_url.removeprefix(f"s3://{BUCKET}/")

    def refuse(request: Request) -> Answer | None:
        if prefix in unquote(request.path):
            return request.forward()
        return answering(403, "AccessDenied")(request)

    proxy.fail(refuse, times=1 << 30)
    check_place(s3_url)
    with pytest.raises(UnavailableStoreError, match="403 Forbidden"):
        check_place(above)
    TinyStore(s3_url)
    with pytest.raises(StoreURLError, match="inside the store"):
        check_place(f"{s3_url}/inner")


def test_many_threads_share_a_store_that_fails_now_and_then(
    proxy: Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    faults = itertools.cycle([slow_down, forwarded, dropped, lost, forwarded])
    monkeypatch.setattr(url, "MAX_RETRIES", 50)
    tiny = TinyStore(s3_url)
    proxy.fail(lambda request: next(faults)(request), times=1 << 30)
    with ThreadPoolExecutor(4) as pool:
        trials = list(pool.map(tiny.sealed, range(4)))
    store = open_store(s3_url)
    assert store.complete_ids() == sorted(trials)
    assert verify(store).damages == ()
    assert all(store.trial_attributes(trial)["arrays"] == "1" for trial in trials)
