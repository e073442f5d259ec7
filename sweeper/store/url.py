"""What a URL names: which ones are taken, whose credentials, how often a request is tried."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import MemoryStore, from_url

from sweeper.errors import StoreURLError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory")
MAX_KEY_BYTES = 1024  # of S3, Google and Azure alike
_LONGEST_NAME = 120  # of our own objects below a store

# Throttling (429, 503), errors of the server, time-outs and lost connections are tried again for
# so long.
RETRY_SECONDS, MAX_RETRIES = 180.0, 12
BACKOFF = {
    "init_backoff": timedelta(milliseconds=200),
    "max_backoff": timedelta(seconds=20),
    "base": 2,
}
REQUEST_SECONDS, CONNECT_SECONDS = 120.0, 10.0

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# What a service answered, in whatever form, or what another's code says, follows these words.
_BEFORE_AN_ANSWER = (
    r"status code: \d+[^:\n]*|request failed for key [^:]*|credential provider: [\w.]+"
)
_RENEW = (
    "the credentials have expired: sign in again, as by `aws sso login`, or put new ones into the "
    "environment, AWS_SESSION_TOKEN among them; nothing is lost: launch again to go on"
)
_CURES = {
    "ExpiredToken": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "RequestTimeTooSkewed": "this machine's clock is wrong: have chrony or ntpd set it",
}
_memory: dict[str, MemoryStore] = {}  # `memory://name` is one store in all of this process


def reason(error: Exception) -> str:
    """Why the service did not do it, on one line, without what may be secret.

    Answers of S3 can repeat the access key, a signed URL carries its signature, and an endpoint
    may be given with a password.
    """
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>|\(code: (\w+)\)", text)
    said = text.partition("\n\nDebug source")[0]
    said = re.sub(rf"({_BEFORE_AN_ANSWER}):.*", r"\1", said, flags=re.DOTALL)
    said = re.sub(r"\?[^\s'\")]*", "", said)
    said = re.sub(r"://\S*@", "://", said)
    if key := os.environ.get("AWS_ACCESS_KEY_ID"):
        said = said.replace(key, "(access key)")
    return " ".join(said.split()) + (f" ({code[1] or code[2]})" if code else "")


def cure(said: str) -> str:
    """What helps against a refusal with one of these codes; empty where nothing particular does."""
    return next((text for code, text in _CURES.items() if f"({code}" in said), "")


def check_url(url: str) -> str:
    """The URL without a trailing slash, its scheme in lower case.

    Raises
    ------
    StoreURLError : of another scheme, with credentials, or with a name that no object can have.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        scheme = url.partition("://")[0]
        raise StoreURLError(f"{scheme}://", f"not a URL ({error})") from None
    path = parts.path.rstrip("/")
    # Never what may be a secret, which may have slashes in it, so that it seems to be a path.
    shown = f"{parts.scheme}://{f'{parts.netloc}{path}'.rpartition('@')[2]}"
    # `abfss://container@account/...` is how Azure names a place.
    user = None if parts.scheme in ("abfs", "abfss") else parts.username
    if user or parts.password or "@" in path or parts.query or parts.fragment:
        found = "credentials or parameters in the URL of a store"
        hint = "set AWS_ACCESS_KEY_ID and the like, or the standard files of the platform"
        raise StoreURLError(shown, found, "they come from the environment", hint)
    if parts.scheme not in SCHEMES:
        raise StoreURLError(
            shown, f"unknown scheme `{parts.scheme}`", f"one of {', '.join(SCHEMES)}"
        )
    if re.fullmatch(r"[\w.@-]+", parts.netloc, re.ASCII) is None:
        raise StoreURLError(shown, "no bucket's name", "`s3://bucket/prefix`")
    names = path.split("/")[1:]
    if any(re.fullmatch(r"[A-Za-z0-9!_.*'()=+,-]+", name) is None for name in names) or (
        {".", ".."} & set(names)
    ):
        allowed = "names of letters, digits and !_.*'()=+,- between single slashes"
        raise StoreURLError(shown, "a prefix that not every store can have", allowed)
    if len(path) + _LONGEST_NAME > MAX_KEY_BYTES:
        allowed = f"at most {MAX_KEY_BYTES - _LONGEST_NAME}"
        raise StoreURLError(f"{shown[:60]}...", f"a prefix of {len(path)} bytes", allowed)
    return f"{parts.scheme}://{parts.netloc}{path}"


def open_url(url: str) -> tuple[Any, str]:
    """Obstore's own store, and the prefix below it."""
    scheme, _, path = url.partition("://")
    name, _, prefix = path.partition("/")
    if scheme == "memory":
        return _memory.setdefault(name, MemoryStore()), prefix
    options: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": BACKOFF,
        },
    }
    if scheme in ("s3", "s3a"):
        endpoints = [os.environ.get(variable, "") for variable in _ENDPOINTS]
        if any(place.startswith("http://") for place in endpoints):  # of the user's own network
            options["client_options"]["allow_http"] = True
        if provider := _credentials_of_files():
            options["credential_provider"] = provider
    try:
        return from_url(url, **options), ""
    except (BaseError, ValueError, OSError) as error:
        raise StoreURLError(url, reason(error)) from None


def _credentials_of_files() -> Any:
    """What reads the profiles of `~/.aws`, None where the environment or the platform has them.

    Raises
    ------
    StoreURLError : there are profiles that cannot be read, or boto3, which can, is not installed.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    files = [
        Path(os.environ.get(variable, Path.home() / ".aws" / name)).expanduser()
        for variable, name in (
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            ("AWS_CONFIG_FILE", "config"),
        )
    ]
    if "AWS_PROFILE" not in os.environ and not any(path.is_file() for path in files):
        return None
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        found = "the credentials of a profile need boto3, which is not installed"
        hint = "`pip install 'sweeper[s3]'`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StoreURLError("~/.aws", found, hint=hint) from None
    try:
        return Boto3CredentialProvider()
    except ValueError:  # the profiles have none: the platform may
        return None
    except BotoCoreError as error:
        found = str(error).partition(": ")[0]  # what a credential process said may follow
        hint = "check AWS_PROFILE and the files that it is looked up in"
        raise StoreURLError("~/.aws", found, hint=hint) from None
