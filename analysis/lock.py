"""One analysis at a time in a folder of artifacts."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from sweeper.errors import AnalysisError

_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if absent, as its only writer; who holds it may hold it again inside.

    The kernel's file lock on `folder/lock` decides, so that a killed analysis blocks no other. A
    folder that was made for nothing, because what is done inside raised, is removed again, and so
    are those above it.

    Raises
    ------
    AnalysisError : another process or thread holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _taken(folder, file.read()) from None
        if os.fstat(file.fileno()).st_nlink == 0:  # its holder removed it as we opened it
            raise _taken(folder, "")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        token = _held.set(_held.get() | {place})
        try:
            yield
        except BaseException:
            if made and os.listdir(folder) == ["lock"]:
                (folder / "lock").unlink()
                with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                    for path in made:
                        path.rmdir()
            raise
        finally:
            _held.reset(token)


def _taken(folder: Path, pid: str) -> AnalysisError:
    return AnalysisError(
        str(folder),
        f"another analysis is at work, process `{pid}`",
        "one at a time",
        f"wait for it, or stop it with `kill {pid}`: what it has finished is kept",
    )
