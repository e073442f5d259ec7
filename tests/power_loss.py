"""A disk that loses power: of what was written, only what was fsynced is sure to be there.

Harsher than any one file system:

- A file holds what it held at its last fsync. What was written since may be there, cut off, zeros,
  or absent.
- A folder has the names that it had at its last fsync. Each name that was made, replaced or
  removed since may, by itself, be as it was at any time in between.
- To fsync a file makes no name durable, and to fsync a folder not its own: with the name of a
  folder all that is in it is gone.
"""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

# `least`: nothing that was not fsynced. `names`: every name, and no whole content that was not
# fsynced. `mixture`: a draw for each name and each content.
Survival = Literal["least", "names", "mixture"]
Left = dict[str, "bytes | Left"]


class KilledError(BaseException):
    """The process is dead: whatever it does to the disk from here on is not done."""


@dataclass(eq=False)
class _File:
    """`descriptor` reads what the file holds now, whatever becomes of its names."""

    descriptor: int
    synced: bytes | None = None  # None before the first fsync

    def now(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


@dataclass(eq=False)
class _Folder:
    """For each name what it was since the last fsync, oldest first; None where it was absent."""

    names: dict[str, list[_File | _Folder | None]] = field(default_factory=dict)

    def now(self) -> dict[str, _File | _Folder]:
        return {name: past[-1] for name, past in self.names.items() if past[-1] is not None}

    def set(self, name: str, node: _File | _Folder | None) -> None:
        self.names.setdefault(name, [None]).append(node)

    def sync(self) -> None:
        self.names = {name: [node] for name, node in self.now().items()}


class Disk:
    """All that this process does below `root` while it is entered; `root` itself is durable.

    Every operation that changes the disk, or makes a change durable, is a step. An operation that
    passes by unseen is an error (`check_seen`), so that nothing is taken for durable by mistake.

    Parameters
    ----------
    before_step : called before each step, with the disk as a power loss would find it.
    ignores : kinds of fsync that this disk takes and forgets, as bad ones do.
    """

    def __init__(
        self,
        root: Path,
        before_step: Callable[[], None] = lambda: None,
        ignores: frozenset[Literal["file", "folder"]] = frozenset(),
    ) -> None:
        self.root, self.before_step, self.ignores = root.absolute(), before_step, ignores
        self.steps: list[str] = []  # what each did
        self.dies_at: int | None = None  # the step that is not taken any more
        self._tree = _Folder()
        self._nodes: dict[tuple[int, int], _File | _Folder] = {_identity(root): self._tree}
        self._open, self._alone = ExitStack(), threading.RLock()

    # --- what may be left of it -----------------------------------------------------------

    def left(self, survival: Survival, draw: random.Random) -> Left:
        """What a power loss at this instant may leave: by name a file's bytes, or a folder's."""
        return _left(self._tree, survival, draw)

    def check_seen(self) -> None:
        """Fail if the disk is not as the steps that were seen have made it."""
        assert _names(self._tree) == _names_below(self.root), "a step passed by unseen"

    # --- its steps ------------------------------------------------------------------------

    def __enter__(self) -> Disk:
        assert not os.listdir(self.root), "what is there already is of unknown durability"
        patch = self._open.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(io, "open", self._opening(io.open))
        patch.setattr(os, "fsync", self._syncing(os.fsync))
        patch.setattr(os, "mkdir", self._making(os.mkdir))
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, self._removing(getattr(os, name)))
        for name in ("replace", "rename"):
            patch.setattr(os, name, self._moving(getattr(os, name), moves=True))
        patch.setattr(os, "link", self._moving(os.link, moves=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        for node in self._nodes.values():
            if isinstance(node, _File):
                os.close(node.descriptor)

    def _step(self, name: str) -> None:
        if self.dies_at is not None and len(self.steps) >= self.dies_at:
            raise KilledError
        self.before_step()
        self.steps.append(name)

    def _place(self, path: Any, folder: int | None = None) -> tuple[_Folder, str] | None:
        """The folder that holds this name, and the name; None when it is on another disk.

        `shutil.rmtree` names what it removes relative to a folder that it has open.
        """
        parent, name = os.path.split(os.fspath(path))
        where: Any = (parent or ".") if folder is None else folder
        if folder is None and not os.path.isdir(parent or "."):
            return None
        found = self._nodes.get(_identity(where))
        return (found, name) if isinstance(found, _Folder) else None

    def _opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            place = None if isinstance(file, int) or not set(mode) & set("wax+") else file
            place = place and self._place(place)
            if place is None:
                return original(file, mode, *args, **options)
            with self._alone:
                self._step("open")
                opened = original(file, mode, *args, **options)
                folder, name = place
                if name not in folder.now():
                    node = _File(os.open(file, os.O_RDONLY))
                    folder.set(name, node)
                    self._nodes[_identity(file)] = node
                return opened

        return watched

    def _syncing(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def watched(descriptor: int) -> None:
            node = self._nodes.get(_identity(descriptor))
            if node is None:
                return original(descriptor)
            with self._alone:
                self._step("fsync")
                if isinstance(node, _Folder) and "folder" not in self.ignores:
                    node.sync()
                elif isinstance(node, _File) and "file" not in self.ignores:
                    node.synced = node.now()
            return None

        return watched

    def _making(self, original: Callable[..., None]) -> Callable[..., None]:
        def watched(path: Any, *args: Any, **options: Any) -> None:
            place = self._place(path)
            if place is None:
                return original(path, *args, **options)
            with self._alone:
                self._step("mkdir")
                original(path, *args, **options)
                node = _Folder()
                place[0].set(place[1], node)
                self._nodes[_identity(path)] = node
            return None

        return watched

    def _removing(self, original: Callable[..., None]) -> Callable[..., None]:
        def watched(path: Any, *, dir_fd: int | None = None) -> None:
            place = self._place(path, dir_fd)
            if place is None:
                return original(path, dir_fd=dir_fd)
            with self._alone:
                self._step("remove")
                original(path, dir_fd=dir_fd)
                folder, name = place
                if isinstance(gone := folder.now().get(name), _Folder):
                    self._nodes = {key: node for key, node in self._nodes.items() if node != gone}
                folder.set(name, None)
            return None

        return watched

    def _moving(self, original: Callable[..., None], moves: bool) -> Callable[..., None]:
        def watched(source: Any, target: Any) -> None:
            before, after = self._place(source), self._place(target)
            if before is None or after is None:
                return original(source, target)
            with self._alone:
                self._step("move" if moves else "link")
                original(source, target)
                after[0].set(after[1], before[0].now()[before[1]])
                if moves:
                    before[0].set(before[1], None)
            return None

        return watched


def put(left: Left, folder: Path) -> None:
    """Make a folder hold what is left of a disk."""
    folder.mkdir()
    for name, found in left.items():
        if isinstance(found, bytes):
            (folder / name).write_bytes(found)
        else:
            put(found, folder / name)


def frozen(left: Left) -> tuple[Any, ...]:
    """The same, to be told apart from others."""
    return tuple(
        (name, found if isinstance(found, bytes) else frozen(found))
        for name, found in sorted(left.items())
    )


def _identity(file: Any) -> tuple[int, int]:
    found = os.fstat(file) if isinstance(file, int) else os.stat(file)
    return found.st_dev, found.st_ino


def _left(folder: _Folder, survival: Survival, draw: random.Random) -> Left:
    left: Left = {}
    for name, past in folder.names.items():
        node = {"least": past[0], "names": past[-1]}.get(survival, draw.choice(past))
        if isinstance(node, _Folder):
            left[name] = _left(node, survival, draw)
        elif node is not None:
            left[name] = _content(node, survival, draw)
    return left


def _content(file: _File, survival: Survival, draw: random.Random) -> bytes:
    synced, now = file.synced or b"", file.now()
    if survival == "least" or now == file.synced:
        return synced
    # A file that only grew keeps what was fsynced of it.
    kept = synced if now.startswith(synced) else b""
    cut = now[: draw.randrange(len(kept), max(len(now), len(kept) + 1))]
    zeros = kept + bytes(len(now) - len(kept))
    return draw.choice([cut, zeros] if survival == "names" else [synced, cut, zeros, now])


def _names(folder: _Folder, inside: str = "") -> set[str]:
    found = folder.now()
    below = (
        _names(node, f"{inside}{name}/")
        for name, node in found.items()
        if isinstance(node, _Folder)
    )
    return {f"{inside}{name}" for name in found}.union(*below)


def _names_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}
