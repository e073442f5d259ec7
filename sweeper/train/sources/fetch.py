"""Download a data set, once, through torchvision."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from sweeper.errors import SweeperError
from sweeper.train.sources.place import made, only_one
from sweeper.train.sources.small import absent, damaged, reader, torchvision_class

_TIMEOUT = 60.0  # seconds without an answer


def fetch(name: str, root: Path, on_wait: Callable[[], None]) -> bool:
    """Put a data set of small images into `root/name`; whether it was downloaded.

    What is there already is only checked. A download is compared with its published MD5 sums and
    appears whole or not at all; of several processes one downloads and the others wait and check.

    Parameters
    ----------
    name : a key of `sweeper.train.sources.small.SOURCES`.
    on_wait : called before it waits for another process.

    Raises
    ------
    SweeperError : no server answers, what came is not what was published, or what is there is
        damaged.
    """
    folder = root / name
    with only_one(root, name, on_wait):
        if folder.exists():
            _check(name, folder)
            return False
        with made(folder) as partial, _naming(name, root):
            for is_train in (True, False):
                reader(name, partial, is_train, download=True)
            for archive in partial.glob("*.tar.gz"):  # unpacked beside it, with sums of its own
                archive.unlink()
    return True


def _check(name: str, folder: Path) -> None:
    missing = absent(name, folder)
    found = missing[0] if missing else damaged(name, folder)
    if found is not None:
        raise SweeperError(
            f"data get {name}",
            f"`{folder / found}` is {'absent' if missing else 'damaged'}",
            "the file that was published",
            f"remove `{folder}` and ask again",
        )


@contextmanager
def _naming(name: str, root: Path) -> Iterator[None]:
    """Say in our own words why a download failed, and give up on a server that is silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    except (URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _failed(name, root, f"offline, or no server answers ({reason})") from error
    except RuntimeError as error:  # torchvision's, of a wrong sum or of all mirrors
        found = "what was sent is not what was published"
        if "<urlopen error" in str(error):
            found = "offline, or no server answers"
        raise _failed(name, root, found) from error
    finally:
        socket.setdefaulttimeout(before)


def _failed(name: str, root: Path, found: str) -> SweeperError:
    return SweeperError(
        f"data get {name}",
        found,
        f"tried {', '.join(urls(name))}",
        f"without a network, copy `{root / name}` from a machine where this command has made it",
    )


def urls(name: str) -> list[str]:
    """Where a data set is asked for, in order."""
    kind = torchvision_class(name)
    if name == "svhn":
        return [kind.split_list[split][0] for split in ("train", "test")]
    if name.startswith("cifar"):
        return [kind.url]
    return list(kind.mirrors)
