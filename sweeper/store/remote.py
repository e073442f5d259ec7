"""The objects of a store in a bucket, through obstore: S3, Google Cloud, Azure, memory."""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import MemoryStore, from_url

from sweeper.durable import Bytes
from sweeper.errors import StoreURLError, UnavailableStoreError
from sweeper.store.objects import Entry, Objects

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory")
MAX_KEY_BYTES = 1024  # of S3, Google and Azure alike
_LONGEST_NAME = 120  # of our own objects below a store

# Throttling (429, 503), errors of the server and lost connections are tried again for so long.
RETRY_SECONDS = 180.0
_MAX_RETRIES = 12
_BACKOFF = {
    "init_backoff": timedelta(milliseconds=200),
    "max_backoff": timedelta(seconds=20),
    "base": 2,
}
# Up to here an object is one PUT; above, a multipart upload of so large parts, a few at once.
# Either appears whole or not at all.
ONE_PUT_BYTES = 64 << 20
_PART_BYTES, _PARTS_AT_ONCE = 16 << 20, 4

_memory: dict[str, MemoryStore] = {}  # `memory://name` is one store in all of this process


class RemoteObjects(Objects):
    """Objects below a URL (see `Objects`).

    Credentials come from the environment or the platform's standard files, never from the URL.
    `create` is a conditional PUT.
    """

    def __init__(self, url: str) -> None:
        self.location = check_url(url)
        self._store, self._prefix = _open(self.location)

    def __reduce__(self) -> tuple[type[RemoteObjects], tuple[str]]:
        return type(self), (self.location,)

    def read(self, key: str) -> Bytes:
        """The bytes of an object."""
        with self._reached(key) as path:
            return memoryview(obstore.get(self._store, path).bytes())

    def read_tail(self, key: str, size: int) -> Bytes:
        """The last `size` bytes of an object, or all of a smaller one."""
        with self._reached(key) as path:
            found = obstore.get(self._store, path, options={"range": {"suffix": size}})
            return memoryview(found.bytes())

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Parts of an object, each from its start up to its stop, cut where the object ends."""
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        with self._reached(key) as path:
            found = obstore.get_ranges(self._store, path, starts=starts, ends=stops)
            return [memoryview(part) for part in found]

    def write_parts(self, key: str, parts: Iterable[Bytes]) -> None:
        """Replace an object by these parts, which may be made as they are written."""
        left = iter(parts)
        first = _take(left, ONE_PUT_BYTES)
        following = next(left, None)
        with self._reached(key) as path:
            if following is None:
                obstore.put(self._store, path, b"".join(first), use_multipart=False)
                return
            obstore.put(
                self._store,
                path,
                (bytes(part) for part in itertools.chain(first, [following], left)),
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; whether this call wrote it.

        An answer can be lost after the object was written, so whoever fails looks whether what
        is there is its own; hence what several processes may create must differ between them.
        """
        try:
            with self._reached(key) as path:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            pass
        except UnavailableStoreError:
            if not self.exists(key):
                raise
        else:
            return True
        return bytes(self.read(key)) == data

    def names(self, key: str) -> list[str]:
        """The names directly below `key`, sorted; empty when it does not exist."""
        with self._reached(key) as path:
            found = obstore.list_with_delimiter(self._store, path or None)
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def stamps(self, key: str, name: str) -> dict[str, str]:
        """The stamp of `key/<child>/name` for every child that has it."""
        named = re.compile(rf"{re.escape(key)}/([^/]+)/{re.escape(name)}")
        matches = ((named.fullmatch(entry.key), entry.stamp) for entry in self.walk(key))
        return {match[1]: stamp for match, stamp in matches if match}

    def walk(self, key: str) -> Iterator[Entry]:
        """Every object below `key`, at any depth, in the order of their names."""
        skipped = len(self._prefix) + 1 if self._prefix else 0
        with self._reached(key) as path:
            for page in obstore.list(self._store, path or None, chunk_size=1000):
                for item in page:
                    stamp = item["e_tag"] or item["last_modified"]
                    yield Entry(item["path"][skipped:], int(item["size"]), str(stamp))

    def exists(self, key: str) -> bool:
        """Whether the object `key` is there."""
        try:
            with self._reached(key) as path:
                obstore.head(self._store, path)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove `key` and everything below it; nothing happens when it does not exist."""
        found = [self._path(entry.key) for entry in self.walk(key)]
        if not found and self.exists(key):
            found = [self._path(key)]
        with self._reached(key):
            if found:
                obstore.delete(self._store, found)

    def remove_partials(self) -> None:
        """There are none that can be listed; a rule of the bucket can end stale uploads."""

    def settle(self, key: str) -> None:
        """What is there is durable."""

    def below(self, key: str) -> RemoteObjects:
        """The same backend, one level down; the connections are shared."""
        inner = copy.copy(self)
        inner.location, inner._prefix = f"{self.location}/{key}", self._path(key)
        return inner

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix and key else self._prefix or key

    @contextmanager
    def _reached(self, key: str) -> Iterator[str]:
        """Errors of the service as ours; what is absent stays FileNotFoundError."""
        where = f"{self.location}/{key}" if key else self.location
        try:
            yield self._path(key)
        except FileNotFoundError:
            raise FileNotFoundError(where) from None
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            # Not `from error`: what the service answered may name an access key.
            raise UnavailableStoreError(where, reason(error)) from None


def _take(parts: Iterator[Bytes], size: int) -> list[Bytes]:
    """Parts until they have more than `size` bytes, or all of them."""
    taken, total = [], 0
    for part in parts:
        taken.append(part)
        total += len(part)
        if total > size:
            break
    return taken


def reason(error: Exception) -> str:
    """Why the service did not do it, on one line, without what may be secret.

    Answers of S3 can repeat the access key, and a signed URL carries its signature.
    """
    text = str(error).partition("\n\nDebug source")[0]
    said, _, answer = text.partition("<?xml")
    code = re.search(r"<Code>([^<]*)</Code>", answer)
    said = re.sub(r"\?[^\s'\")]*", "", said).strip().rstrip(":")
    return " ".join(said.split()) + (f" ({code.group(1)})" if code else "")


def check_url(url: str) -> str:
    """The URL without a trailing slash.

    Raises
    ------
    StoreURLError : of another scheme, with credentials, or with a name that no object can have.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # never what may be a secret
    if parts.username or parts.password or parts.query or parts.fragment:
        found = "credentials or parameters in the URL of a store"
        hint = "set AWS_ACCESS_KEY_ID and the like, or the standard files of the platform"
        raise StoreURLError(shown, found, "they come from the environment", hint)
    if parts.scheme not in SCHEMES:
        raise StoreURLError(
            shown, f"unknown scheme `{parts.scheme}`", f"one of {', '.join(SCHEMES)}"
        )
    path = parts.path.strip("/")
    names = path.split("/") if path else []
    if any(re.fullmatch(r"[A-Za-z0-9!_.*'()=+@,-]+", name) is None for name in names) or (
        {".", ".."} & set(names)
    ):
        allowed = "names of letters, digits and !_.*'()=+@,- between single slashes"
        raise StoreURLError(shown, "a prefix that not every store can have", allowed)
    if len(path) + _LONGEST_NAME > MAX_KEY_BYTES:
        allowed = f"at most {MAX_KEY_BYTES - _LONGEST_NAME}"
        raise StoreURLError(shown, f"a prefix of {len(path)} bytes", allowed)
    return url.rstrip("/")


def _open(url: str) -> tuple[Any, str]:
    """Obstore's own store, and the prefix below it."""
    scheme, _, path = url.partition("://")
    name, _, prefix = path.partition("/")
    if scheme == "memory":
        return _memory.setdefault(name, MemoryStore()), prefix
    options: dict[str, Any] = {
        "client_options": {"timeout": "120s", "connect_timeout": "10s"},
        "retry_config": {
            "max_retries": _MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": _BACKOFF,
        },
    }
    if scheme in ("s3", "s3a"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
        if endpoint.startswith("http://"):  # said by the user: a store of their own network
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
    StoreURLError : there are profiles, and boto3, which knows how to read them, is not installed.
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
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        found = "the credentials of a profile need boto3, which is not installed"
        hint = "`pip install 'sweeper[s3]'`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StoreURLError("~/.aws", found, hint=hint) from None
    try:
        return Boto3CredentialProvider()
    except ValueError:  # the profiles have none: the platform may
        return None
