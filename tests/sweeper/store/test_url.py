"""Which URLs are taken, whose credentials are used, and what is said of an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from sweeper.errors import StoreURLError
from sweeper.store import open_store
from sweeper.store.objects import open_objects
from sweeper.store.opening import check_place
from sweeper.store.remote import RemoteObjects
from sweeper.store.url import check_url, reason
from tests.s3_server import ACCESS_KEY, SECRET_KEY, Proxy


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/Prefix/a.b=c", "s3://bucket/Prefix/a.b=c"),
        ("gs://my-bucket/a/b", "gs://my-bucket/a/b"),
        ("az://container/a", "az://container/a"),
        (
            "abfss://box@account.dfs.core.windows.net/a",
            "abfss://box@account.dfs.core.windows.net/a",
        ),
        ("memory://m", "memory://m"),
    ],
)
def test_a_url_is_taken_without_its_last_slash(given: str, taken: str):
    assert check_url(given) == taken


@pytest.mark.parametrize(
    "given",
    [
        f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/prefix",
        f"s3://{ACCESS_KEY}@bucket/prefix",
        f"s3://bucket/prefix?X-Amz-Credential={ACCESS_KEY}&X-Amz-Signature={SECRET_KEY}",
        f"s3://bucket/prefix#{SECRET_KEY}",
        f"abfss://box:{SECRET_KEY}@account.dfs.core.windows.net/prefix",
        f"https://{ACCESS_KEY}:{SECRET_KEY}@bucket.example/prefix",
        f"s3://{ACCESS_KEY}:{SECRET_KEY}@[bucket/prefix",
        f"ftp://{ACCESS_KEY}:[{SECRET_KEY}@bucket/prefix",
    ],
)
def test_credentials_in_a_url_are_refused_and_never_shown(given: str):
    for refuse in (check_url, RemoteObjects, open_objects, open_store, check_place):
        with pytest.raises(StoreURLError) as caught:
            refuse(given)
        shown = f"{caught.value}{caught.value.hint}{caught.value.args}"
        assert ACCESS_KEY not in shown.upper()
        assert SECRET_KEY not in shown
        assert caught.value.found.startswith(("credentials or parameters", "not a URL"))
        assert caught.value.exit_code == 2
        assert caught.value.hint


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://bucket/prefix", "unknown scheme `http`"),
        ("ftp://bucket/prefix", "unknown scheme `ftp`"),
        ("://bucket", "unknown scheme ``"),
        ("s3://", "no bucket's name"),
        ("s3:///prefix", "no bucket's name"),
        ("s3://bucket:80/prefix", "no bucket's name"),
        ("s3://bucket//prefix", "a prefix that not every store can have"),
        ("s3://bucket/a b", "a prefix that not every store can have"),
        ("s3://bucket/caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a prefix that not every store"),
        ("s3://bucket/a/../b", "a prefix that not every store can have"),
        ("s3://bucket/./b", "a prefix that not every store can have"),
        ("s3://bucket/a%20b", "a prefix that not every store can have"),
        ("s3://bucket/a\\b", "a prefix that not every store can have"),
        (f"s3://bucket/{'a/' * 500}", "a prefix of 1000 bytes"),
    ],
)
def test_a_url_that_cannot_be_a_stores_is_refused(given: str, found: str):
    with pytest.raises(StoreURLError) as caught:
        open_objects(given)
    assert found in caught.value.found
    assert caught.value.allowed
    assert len(str(caught.value)) < 250


# --- credentials -----------------------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credentials in a file, none in the environment."""
    path = tmp_path / "credentials"
    path.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        f"[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = {SECRET_KEY}\n"
        f"[half]\naws_access_key_id = {ACCESS_KEY}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    return path


@pytest.mark.parametrize(("profile", "key"), [(None, ACCESS_KEY), ("other", "AKIAOTHER")])
def test_the_profiles_of_the_user_are_used(
    profile: str | None, key: str, profiles: Path, proxy: Proxy, s3_url: str, monkeypatch
):
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    open_objects(s3_url).write("x", b"1")
    assert bytes(open_objects(s3_url).read("x")) == b"1"
    assert {request.headers["authorization"].split("/")[0] for request in proxy.requests} == {
        f"AWS4-HMAC-SHA256 Credential={key}"
    }


@pytest.mark.parametrize(
    ("profile", "found"),
    [
        ("absent", "The config profile (absent) could not be found"),
        ("half", "Partial credentials found in shared-credentials-file, missing"),
        ("unreadable", "Unable to parse config file"),
    ],
)
def test_a_profile_that_cannot_be_used_is_an_error_that_says_so(
    profile: str, found: str, profiles: Path, s3_url: str, monkeypatch
):
    monkeypatch.setenv("AWS_PROFILE", profile)
    if profile == "unreadable":
        profiles.write_text("[[[")
    with pytest.raises(StoreURLError) as caught:
        open_objects(s3_url)
    assert found in caught.value.found
    assert "AWS_PROFILE" in caught.value.hint


def test_profiles_without_boto3_are_an_error_that_names_both_cures(
    profiles: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.startswith(("obstore.auth", "botocore"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(StoreURLError, match="need boto3, which is not installed") as caught:
        open_objects(s3_url)
    assert "pip install 'sweeper[s3]'" in caught.value.hint
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    open_objects(s3_url).write("x", b"with those of the environment nothing more is needed")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"Error performing GET http://me:{SECRET_KEY}@here:9000/b/x - HTTP error: refused",
            "Error performing GET http://here:9000/b/x - HTTP error: refused",
        ),
        (
            f"Error at https://b.example/x?X-Amz-Credential={ACCESS_KEY}&X-Amz-Signature=1 (late)",
            "Error at https://b.example/x (late)",
        ),
        (
            f"DeleteObjects request failed for key a/x: {ACCESS_KEY} may not (code: AccessDenied)",
            "DeleteObjects request failed for key a/x (AccessDenied)",
        ),
        (
            f"for path External AWS credential provider: OSError: {SECRET_KEY}\n\nDebug source: 1",
            "for path External AWS credential provider: OSError",
        ),
        (f"no credentials like {ACCESS_KEY} here", "no credentials like (access key) here"),
    ],
)
def test_what_may_be_secret_is_left_out_of_an_error(text: str, said: str, s3_url: str):
    assert reason(GenericError(text)) == said
