"""Messages, which go to standard error, so that standard output stays data."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print a message, if anybody listens: a closed terminal or a full disk ends no command."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)
