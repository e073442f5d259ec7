"""A trial's state as bytes, checked when they are read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from sweeper.errors import CheckpointError, first_line


def to_bytes(state: dict[str, Any]) -> memoryview:
    """A state as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def from_bytes(data: bytes | bytearray | memoryview, where: str) -> dict[str, Any]:
    """The state of a file's bytes, its tensors on the CPU; runs no code from them.

    Raises
    ------
    CheckpointError : the bytes are truncated, altered, or no checkpoint; `where` names the file.
    """
    buffer = io.BytesIO(data)
    try:
        # torch.load does not look at the checksums that torch.save wrote.
        with zipfile.ZipFile(buffer) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise ValueError(f"checksum of `{altered}` differs")
        buffer.seek(0)
        state = torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise a dozen types for bad bytes
        reason = first_line(error)
        raise _unreadable(where, reason) from error
    if not isinstance(state, dict):
        raise _unreadable(where, f"a {type(state).__name__} in the place of a state")
    return state


def load(path: Path) -> dict[str, Any]:
    """The state in the file at `path`.

    Raises
    ------
    CheckpointError : as `from_bytes` does. OSError : the file cannot be read.
    """
    return from_bytes(path.read_bytes(), str(path))


def _unreadable(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        where,
        f"not a checkpoint: {reason}",
        hint="remove it to train from the beginning",
    )
