"""Whether a node runs the code that the driver runs: versions, and hashes of sources.

Plug-ins must be what they were when the sweep was launched. Of sweeper itself the node's files must
be those that the driver has at the moment: who edits a checkout that all nodes share stops nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import sweeper
from sweeper.registry import source_hash

_LIBRARIES = ("numpy", "torch", "torchvision")

HINT = (
    "install sweeper, its libraries and the plug-ins alike on every node, as from one image; "
    "`sweeper doctor --address …` compares them"
)


def code_here(plug_ins: Iterable[str]) -> dict[str, str]:
    """What this process runs: a version or a hash for each name.

    Of a plug-in that cannot be imported it says why not.
    """
    python = "{}.{}".format(*sys.version_info)
    versions = {name: _version(name) for name in ("sweeper", *_LIBRARIES)}
    sources = {f"the source of `{name}`": _hash(name) for name in sorted(plug_ins)}
    return {"Python": python, **versions, **sources}


def difference(here: Mapping[str, str], drivers: Mapping[str, str]) -> str:
    """The first thing in which a node's code differs from the driver's; empty where none does."""
    for name, expected in drivers.items():
        found = here.get(name, "absent")
        if found != expected:
            return f"{name} is {found} there, and {expected} where the driver runs"
    return ""


def forget_sources() -> None:
    """Look for plug-ins anew, and at what is in their files by now."""
    importlib.invalidate_caches()
    source_hash.cache_clear()


def own_hash() -> str:
    """SHA-256 of this package's source files as they are now, 16 hex digits."""
    root, found = Path(sweeper.__file__).parent, hashlib.sha256()
    paths = (path for path in root.rglob("[!.]*.py") if path.is_file())  # no editor's locks
    for path in sorted(paths):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _version(name: str) -> str:
    """A package's version; which devices it was built for does not matter here."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "absent"


def _hash(name: str) -> str:
    try:
        return source_hash(name)
    except Exception as error:  # of whatever kind: it is the plug-in's own code that runs
        return f"not to be imported ({type(error).__name__}: {error})"
