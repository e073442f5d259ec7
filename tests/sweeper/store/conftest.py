"""The places that a store can be in."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

BACKENDS = ("local", "memory", "s3")


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new place in a folder, in this process's memory, and in a bucket."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/sweep"
    return str(tmp_path / "place")
