"""What a slot's process has for itself on its node: a folder, threads and a GPU; what it shares.

Temporary files go to a folder of its own, which nobody else of the node's users can read. Compiled
graphs go to one that a user's slots share: not to the home folder, which may be on a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweeper.train.sources.on_node import NODE_TMP_VARIABLE, own_folder

_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
_LONGEST_PARENT = 50  # of the 107 characters of a socket's path; `pymp-…/listener-…` has 32
_LOCK = ".in-use"  # locked for as long as the folder's process lives, whoever kills it


@contextmanager
def own_surroundings(threads: int, gpus: Sequence[int | str]) -> Iterator[None]:
    """Give this process its own for as long as it serves as this slot.

    Parameters
    ----------
    threads : of the trials, and of what they start.
    gpus : the ids of those that are its share; it sees no other.

    Raises
    ------
    OSError : the node has no room for temporary files.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    node_tmp = os.environ.setdefault(NODE_TMP_VARIABLE, tempfile.gettempdir())
    with contextlib.suppress(OSError):  # then there are the libraries' own places
        _share_caches(own_folder())
    with temporary_folder(Path(node_tmp)) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            os.environ["TMPDIR"] = tempfile.tempdir = node_tmp


def _share_caches(folder: Path) -> None:
    for variable, name in _CACHES.items():
        os.environ.setdefault(variable, str(folder / name))


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that goes with this process; what killed ones of this user have left goes first.

    Its path is short, or in `/tmp`: the sockets of a DataLoader's workers are below it.
    """
    if len(str(parent)) > _LONGEST_PARENT:
        parent = Path("/tmp")
    prefix = f"sw{os.getuid()}-"
    for left in parent.glob(f"{prefix}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with (folder / ".new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / _LOCK)  # which is therefore never seen without its lock
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a process that was killed: the kernel has let go of its lock."""
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
