"""Which places an analysis reads, and in which folder's `analysis/` it leaves its artifacts.

A place is a sweep directory, a store's folder or a URL. A folder that holds the artifacts of an
earlier analysis and no store stands for the places of that analysis, which are recorded in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from analysis.distance import BHATTACHARYYA, KINDS, Distance, kind_of
from analysis.tiles import DISTANCES, attributes_of, unfinished
from sweeper.errors import AnalysisError
from sweeper.store.url import check_url
from sweeper.sweep_dir import PREDICTIONS, SweepDir

ARTIFACTS = "analysis"
_FOR_EXAMPLE = "for example `--out merged`; the artifacts go into `merged/analysis`"


def asked(
    places: Sequence[str], out: str | None = None, distance: str = BHATTACHARYYA
) -> tuple[Path, list[str]]:
    """The folder whose `analysis/` holds the artifacts, and the places, as a command names them.

    Parameters
    ----------
    out : that folder; None for the sweep directory that is the only place.
    distance : a key of `analysis.distance.KINDS`; a sweep's own artifacts are of Bhattacharyya's.

    Raises
    ------
    AnalysisError : there is no `out` and it does not go without, or it is no place for artifacts;
        or there is no such distance.
    StoreURLError : a URL is no store's, or has credentials in it.
    """
    kind, found = kind_of(distance), [_place(text) for text in places]
    if out is not None:
        return _out(_folder(out, "--out", _FOR_EXAMPLE), found, kind), found
    if len(found) > 1 or "://" in found[0]:
        what = f"{len(found)} places" if len(found) > 1 else f"`{found[0]}`"
        raise AnalysisError("--out", f"missing, for {what}", "a folder", _FOR_EXAMPLE)
    folder = existing(found[0])
    if kind.name != BHATTACHARYYA and _is_sweep(folder):
        what = f"missing, for {kind.text}"
        raise AnalysisError("--out", what, "a folder of their own", _own(folder, kind))
    return folder, found


def existing(text: str) -> Path:
    """A folder that is there, as a command names it.

    Raises
    ------
    AnalysisError : it is a URL, or not there.
    """
    folder = _folder(text, "DIR", "name the folder that `--out` named")
    if not folder.is_dir():
        hint = "`sweeper launch GRID` makes one, by default `runs/<grid name>`"
        allowed = "a sweep directory, or what `--out` named"
        raise AnalysisError(text, "no such directory", allowed, hint)
    return folder


def artifacts(folder: Path) -> Path:
    """Where the artifacts of an analysis are.

    Raises
    ------
    AnalysisError : `folder` is a store.
    """
    if (folder / "zarr.json").exists():
        raise AnalysisError(
            str(folder),
            "a store, not a sweep directory",
            f"a directory that holds `{PREDICTIONS}`",
            f"artifacts go beside the store: give `{folder.parent}`, or another folder by `--out`",
        )
    return folder / ARTIFACTS


def to_record(place: str, folder: Path) -> str:
    """A place as it is recorded: a path from the folder, so that both can be moved together."""
    if "://" in place:
        return place
    return os.path.relpath(os.path.realpath(place), os.path.realpath(folder))


def recorded(folder: Path) -> list[str]:
    """The places that the distances in a folder are of, whether finished or not; none without."""
    path = folder / ARTIFACTS / DISTANCES
    attributes = attributes_of(path) or attributes_of(unfinished(path)) or {}
    places = [str(item["place"]) for item in attributes.get("about", {}).get("places", [])]
    return [place if "://" in place else str(folder / place) for place in places]


def _place(text: str) -> str:
    """A path, or a URL that may be shown."""
    text = text.removeprefix("file://")
    return check_url(text) if "://" in text else text


def _folder(text: str, where: str, hint: str) -> Path:
    text = text.removeprefix("file://")
    if "://" in text:
        raise AnalysisError(where, "a URL", "a folder on this machine", hint)
    return Path(text)


def _out(folder: Path, places: Sequence[str], kind: Distance) -> Path:
    """The folder, unless it is a sweep's own: whoever names that one means its own trials."""
    if not _is_sweep(folder):
        return folder
    found = f"`{folder}` is a sweep directory, whose artifacts are of"
    if {_root(place) for place in places} != {_root(str(folder))}:
        raise AnalysisError("--out", f"{found} its own trials", "another folder", _FOR_EXAMPLE)
    if kind.name != BHATTACHARYYA:
        found = f"{found} {KINDS[BHATTACHARYYA].text}"
        raise AnalysisError("--out", found, "another folder", _own(folder, kind))
    return folder


def _is_sweep(folder: Path) -> bool:
    return SweepDir(folder).manifest.is_file() or (folder / PREDICTIONS).exists()


def _own(folder: Path, kind: Distance) -> str:
    return f"for example `--out {folder / kind.name}`"


def _root(place: str) -> str:
    """Where the trials of a place are: of a sweep directory perhaps elsewhere."""
    root = place if "://" in place else SweepDir(place).root()
    return root if "://" in root else os.path.realpath(root)
