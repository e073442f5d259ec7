"""A trial's state on disk, there whole or not at all."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from sweeper.durable import write_atomically
from sweeper.errors import CheckpointError


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` by `state`, durably; a crash leaves the old one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """The state saved at `path`, its tensors on the CPU; runs no code from the file.

    Raises
    ------
    CheckpointError : the file is truncated, altered, or not a checkpoint.
    OSError : it cannot be read.
    """
    buffer = io.BytesIO(path.read_bytes())
    try:
        # torch.load does not look at the checksums that torch.save wrote.
        with zipfile.ZipFile(buffer) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise ValueError(f"checksum of `{altered}` differs")
        buffer.seek(0)
        state = torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise a dozen types for bad bytes
        reason = str(error).strip().partition("\n")[0]
        raise _unreadable(path, reason) from error
    if not isinstance(state, dict):
        raise _unreadable(path, f"a {type(state).__name__} in the place of a state")
    return state


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        f"not a checkpoint: {reason}",
        hint="remove it to train from the beginning",
    )
