"""The objects of a store in a bucket, through obstore: S3, Google Cloud, Azure, memory."""

from __future__ import annotations

import itertools
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotSupportedError

from sweeper.durable import Bytes
from sweeper.errors import UnavailableStoreError
from sweeper.store import url
from sweeper.store.objects import Entry, Objects
from sweeper.store.url import check_url, cure, open_url, reason

# Up to here an object is one PUT; above, a multipart upload of so large parts, a few at once.
# Either appears whole or not at all.
ONE_PUT_BYTES = 64 << 20
_PART_BYTES, _PARTS_AT_ONCE = 16 << 20, 4
_NEAR_BYTES = 1 << 20  # ranges that are no further apart are one request
_CONFLICT_SECONDS, _CONFLICTS = 0.2, 50  # how often, and with what pauses, to create once more


class RemoteObjects(Objects):
    """Objects below a URL (see `Objects`).

    Credentials come from the environment or the platform's standard files, never from the URL.
    `create` is a conditional PUT.
    """

    def __init__(self, location: str) -> None:
        self.location = check_url(location)
        self._store, self._prefix = open_url(self.location)

    def __reduce__(self) -> tuple[type[RemoteObjects], tuple[str]]:
        return type(self), (self.location,)

    def read(self, key: str) -> Bytes:
        """The bytes of an object."""
        with self._reached(key) as path:
            return memoryview(obstore.get(self._store, path).bytes())

    def read_tail(self, key: str, size: int) -> Bytes:
        """The last `size` bytes of an object, or all of a smaller one."""
        with self._reached(key) as path:
            try:
                found = obstore.get(self._store, path, options={"range": {"suffix": size}})
                return memoryview(found.bytes())
            except BaseError as error:
                if not _is_about_ranges(error):
                    raise
            stop = obstore.head(self._store, path)["size"]
            if stop == 0:
                return b""
            start = max(0, stop - size)
            return memoryview(obstore.get_range(self._store, path, start=start, end=stop))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Parts of an object, each from its start up to its stop, cut where the object ends."""
        runs = _runs(ranges)
        starts, stops = [start for start, _ in runs], [stop for _, stop in runs]
        with self._reached(key) as path:
            try:
                # Obstore would join them, too, and panic where the object ends between two.
                found = obstore.get_ranges(self._store, path, starts=starts, ends=stops)
            except BaseError as error:
                if not _is_about_ranges(error):
                    raise
                starts, found = [0], [obstore.get(self._store, path).bytes()]
        parts = []
        for start, stop in ranges:
            at = bisect_right(starts, start) - 1
            parts.append(memoryview(found[at])[start - starts[at] : stop - starts[at]])
        return parts

    def write_parts(self, key: str, parts: Iterable[Bytes]) -> None:
        """Replace an object by these parts, which may be made as they are written."""
        left = iter(parts)
        first = _take(left, ONE_PUT_BYTES)
        following = next(left, None)
        with self._reached(key, writes=True) as path:
            if following is None:
                obstore.put(self._store, path, b"".join(first), use_multipart=False)
                return
            obstore.put(
                self._store,
                path,
                (bytes(part) for part in itertools.chain(first, [following], _elsewhere(left))),
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; whether this call wrote it.

        An answer can be lost after the object was written, so whoever fails looks whether what
        is there is its own; hence what several processes may create must differ between them.
        """
        for _ in range(_CONFLICTS):
            try:
                with self._reached(key, writes=True) as path, suppress(AlreadyExistsError):
                    put = partial(obstore.put, mode="create", use_multipart=False)
                    _again_if_late(put, self._store, path, data)
                    return True
            except UnavailableStoreError:
                with suppress(UnavailableStoreError, FileNotFoundError):
                    if self.exists(key):
                        return bytes(self.read(key)) == data
                raise
            with suppress(FileNotFoundError):
                return bytes(self.read(key)) == data
            # Refused because of others who create it at this moment, none of whom may succeed.
            time.sleep(_CONFLICT_SECONDS)
        found = "it is neither there nor can it be created"
        raise UnavailableStoreError(f"{self.location}/{key}", found)

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
                try:
                    obstore.head(self._store, path)
                except BaseError as error:
                    if not _is_refusal(error):
                        raise
                    obstore.get(self._store, path)  # an answer to HEAD has no room for the reason
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove `key` and everything below it; nothing happens when it does not exist."""
        while found := self._below(key):
            # Another process may remove them, too; some services make an error of that.
            with suppress(FileNotFoundError), self._reached(key):
                _again_if_late(obstore.delete, self._store, found)
                return

    def _below(self, key: str) -> list[str]:
        """The paths of all objects below `key`, or its own if it is one."""
        found = [self._path(entry.key) for entry in self.walk(key)]
        if not found and key and self.exists(key):
            return [self._path(key)]
        return found

    def remove_partials(self, older_than: float = 0.0) -> None:
        """There are none that can be listed; a rule of the bucket can end stale uploads."""

    def settle(self, key: str) -> None:
        """What is there is durable."""

    def below(self, key: str) -> RemoteObjects:
        """The same backend, one level down; the connections are shared."""
        inner = type(self).__new__(type(self))
        inner.location = f"{self.location}/{key}"
        inner._store, inner._prefix = self._store, self._path(key)
        return inner

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix and key else self._prefix or key

    @contextmanager
    def _reached(self, key: str, writes: bool = False) -> Iterator[str]:
        """Errors of the service as ours; what is absent to a reader stays FileNotFoundError."""
        where = f"{self.location}/{key}" if key else self.location
        try:
            yield self._path(key)
        except (BaseError, OSError) as error:
            # Not `from error`: what the service answered may name an access key.
            if isinstance(error, FileNotFoundError) and not writes:
                raise FileNotFoundError(where) from None
            said = reason(error)
            raise UnavailableStoreError(where, said, hint=cure(said)) from None


def _take(parts: Iterator[Bytes], size: int) -> list[Bytes]:
    """Parts until they have more than `size` bytes, or all of them."""
    taken, total = [], 0
    for part in parts:
        taken.append(part)
        total += memoryview(part).nbytes
        if total > size:
            break
    return taken


def _elsewhere(parts: Iterator[Bytes]) -> Iterator[Bytes]:
    """The parts, made in another thread.

    Obstore asks for them inside its own runtime, where a request of ours, such as for what is
    being sealed, would panic.
    """
    with ThreadPoolExecutor(1) as pool:
        while (part := pool.submit(next, parts, None).result()) is not None:
            yield part


def _again_if_late(act: Callable[..., Any], *arguments: Any) -> None:
    """Do it, once more after a time-out: it may have been done, so obstore does not dare to."""
    deadline = time.monotonic() + url.RETRY_SECONDS
    while True:
        try:
            act(*arguments)
            return
        except GenericError as error:
            if "kind: Timeout" not in str(error) or time.monotonic() > deadline:
                raise


def _runs(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in ascending order, those that are near one another joined."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if runs and start <= runs[-1][1] + _NEAR_BYTES:
            start, last = runs.pop()
            stop = max(stop, last)
        runs.append((start, stop))
    return runs


def _is_refusal(error: Exception) -> bool:
    """Whether the service does not let us in, as far as a status alone can tell."""
    return re.search(r"\b40[013] (?:Bad|Unauthorized|Forbidden)", str(error)) is not None


def _is_about_ranges(error: Exception) -> bool:
    """Whether a range was refused: it begins beyond the end, or the service (Azure) cannot."""
    pattern = "416 Range Not Satisfiable|non-partial response|Invalid range"
    return isinstance(error, NotSupportedError) or re.search(pattern, str(error)) is not None
