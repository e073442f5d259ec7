"""Where Ray's of several users, or several of one, get into one another's way."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from sweeper.doctor.finding import Finding, passed, warned

PORT = 6379  # of a cluster's head, unless it is told another
# A socket's path may have 107 bytes, and Ray puts this much below its folder.
_LONGEST = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store_1")
_OWN_FOLDER = "`ray start --temp-dir` with a short folder of your own, and RAY_TMPDIR for sweeper"


def check_ray_folder() -> Iterator[Finding]:
    """That Ray's temporary folder is ours, and short enough for its sockets."""
    above = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    folder = above / "ray"
    if len(os.fsencode(above)) > _LONGEST:
        text = f"`{above}` is too long a name for Ray's sockets: at most {_LONGEST} bytes"
        yield warned("ray's folder", text, _OWN_FOLDER)
    elif folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        text = f"`{folder}` is user {folder.stat().st_uid}'s and cannot be written"
        yield warned("ray's folder", text, _OWN_FOLDER)
    else:
        yield passed("ray's folder", f"{folder}")


def check_clusters() -> Iterator[Finding]:
    """Ray clusters that this user has on this machine, and who listens at a head's usual port."""
    yield from clusters(heads(_commands()), _is_taken(PORT))


def clusters(ours: set[str], is_taken: bool) -> Iterator[Finding]:
    """What is to be said of them.

    Parameters
    ----------
    ours : addresses of the heads of this user's clusters that have a node on this machine.
    is_taken : whether something listens at a head's usual port.
    """
    if len(ours) > 1:
        cure = "name the one that is meant: `--address HOST:PORT`, or RAY_ADDRESS"
        yield warned("ray clusters", f"{len(ours)} of yours: {', '.join(sorted(ours))}", cure)
    elif ours:
        yield passed("ray clusters", f"one of yours: {', '.join(ours)}")
    elif is_taken:
        cure = f"`ray start --head --port={PORT + 1}` or another free one"
        yield warned("ray clusters", f"something else listens at port {PORT}", cure)
    else:
        yield passed("ray clusters", "none of yours runs here")


def heads(commands: Iterable[str]) -> set[str]:
    """The addresses of the clusters whose node processes have these command lines."""
    flag = "--gcs-address="
    nodes = (words for words in (line.split("\0") for line in commands) if _is_node(words[0]))
    return {word.removeprefix(flag) for words in nodes for word in words if word.startswith(flag)}


def _is_node(program: str) -> bool:
    """Whether a program is what Ray runs once on each node of a cluster."""
    return program.rpartition("/")[2] == "raylet"


def _commands() -> Iterator[str]:
    """The command lines of this user's processes, NUL between the words."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if process.stat().st_uid == os.getuid():
                yield (process / "cmdline").read_text(errors="replace")


def _is_taken(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(0.5)
        return one.connect_ex(("127.0.0.1", port)) == 0
