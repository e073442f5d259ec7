"""Open a store's objects, and refuse what is not a store of this format."""

from __future__ import annotations

from pathlib import Path

from sweeper.durable import PARTIAL
from sweeper.errors import (
    FormatVersionError,
    MissingStoreError,
    StoreError,
    StoreURLError,
    UnavailableStoreError,
)
from sweeper.store.objects import Objects, metadata_key, open_objects
from sweeper.store.schema import FORMAT


def create_store(location: str | Path | Objects) -> Objects:
    """Open the store at a path or URL for writing, creating it if need be.

    Raises
    ------
    FormatVersionError : it is of a newer format.
    StoreError : the place holds something else.
    """
    objects = location if isinstance(location, Objects) else open_objects(location)
    # A crash, or another process that creates the store at this moment, leaves a partial file.
    others = [name for name in objects.names("") if not name.endswith(PARTIAL)]
    if others and not objects.exists(metadata_key("")):
        raise StoreError(objects.location, "a folder that is not a store", "an empty or new folder")
    objects.create_group("", {"sweeper_format": FORMAT})
    check_format(objects)
    return objects


def check_format(objects: Objects) -> None:
    """Refuse what is not a store, or one of a newer format.

    Raises
    ------
    MissingStoreError, FormatVersionError
    """
    found = (objects.attributes("") or {}).get("sweeper_format")
    if found is None:
        raise MissingStoreError(
            objects.location,
            "no prediction store here",
            "a sweep directory, or a store's folder or URL",
            "`sweeper launch GRID` makes one",
        )
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise FormatVersionError(
            objects.location,
            f"store format `{found}`",
            f"this sweeper reads formats 1 to {FORMAT}",
            "install the version of sweeper that wrote it, or a newer one",
        )


def check_place(root: str) -> None:
    """Refuse a root inside another sweep's store.

    Raises
    ------
    StoreURLError : naming that store.
    """
    objects = open_objects(root)
    if "://" in root:
        scheme, _, path = objects.location.partition("://")
        parts = path.split("/")
        above = [f"{scheme}://{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]
    else:
        folder = Path(root).absolute()
        above = [str(parent) for parent in (folder, *folder.parents)]
    for place in above:
        try:
            is_inside = open_objects(place).exists(metadata_key(""))
        except UnavailableStoreError:
            if place == above[0]:
                raise
            continue  # credentials may reach one prefix of a bucket and nothing above it
        if is_inside:
            raise StoreURLError(
                root,
                f"inside the store `{place}`",
                "a place outside every store",
                "name a sweep directory, or a root beside that store",
            )
