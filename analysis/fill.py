"""Compute a matrix of distances tile by tile, and go on where a killed run stopped."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from analysis.earlier import Earlier, earlier_of
from analysis.memory import size_text
from analysis.squares import Layout, Part, Plan, Square
from analysis.tiles import (
    Distances,
    Tile,
    Tiling,
    aside,
    bytes_of,
    create,
    describe,
    finished,
    record_of,
    tile_name,
    unfinished,
    write_tile,
)
from analysis.underway import Underway, begun, drop, drop_all
from analysis.upper import Progress
from sweeper.durable import crash_point, remove_partials, sync_folder, write_atomically
from sweeper.errors import AnalysisError, StoreError
from sweeper.processors import n_cores
from sweeper.room import free_room

_STORED_AT_ONCE = 8  # tiles, which disks take no more of
_SHARED = "put the sweep directory, or the folder that `--out` names, on a shared file system"

Record = dict[str, Any]
Done = float | Record  # the share of a square that is computed, or what says that a tile is stored
Task = Callable[[Square], Iterable[Done]]
Map = Callable[[Task, Iterable[Square], Callable[[Any], str]], Iterable[Iterable[Done]]]
Ask = Callable[[Callable[[], Any]], Sequence[tuple[str, Any]]]


class Source(Protocol):
    """Where the values come from; must be picklable if `map` leaves this process."""

    def plan(
        self, missing: Sequence[Tile], layout: Layout, ask: Ask, begun: Sequence[Square]
    ) -> Plan:
        """Squares of the tiles that are missing, for machines that may be asked what they have.

        Those of which sums are stored are given as `begun`.
        """

    def compute(
        self, square: Square, layout: Layout, run: int, underway: Underway
    ) -> Iterator[float | Part]:
        """Of a square, the shares of the work as they are done, then the tiles."""


def map_here(task: Task, squares: Iterable[Square], unfit: object) -> Iterator[Iterable[Done]]:
    """Compute all squares in this process."""
    return map(task, squares)


def ask_here(question: Callable[[], Any]) -> list[tuple[str, Any]]:
    """The answer of this process."""
    return [("this machine", question())]


def fill(
    path: Path,
    source: Source,
    tiling: Tiling,
    about: Mapping[str, Any],
    map: Map = map_here,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda message: None,
    ask: Ask = ask_here,
) -> int:
    """Compute and store every tile that is not there yet, whole and undamaged.

    One process calls this for a path at a time; `map` may compute squares in other processes that
    see the same folder. Durable tile by tile, and idempotent. What else is at `path`, such as a
    matrix about something else, stays there until the last tile is finished: the new matrix grows
    beside it, in `tiles.unfinished(path)`, and then takes its place. Distances that it has, or
    that an unfinished one about something else has, are taken from there.

    Parameters
    ----------
    path : folder of the matrix.
    about : JSON values that say what the matrix is of, kept as its attributes; matrices of equal
        `fingerprint` are of the same.
    map : like the built-in, lazy or not, in any order; may draw what the function gives to a list.
        Where it is called on several machines, it is not on one of which the third argument, given
        its answer, says why it is unfit.
    progress : called with the tiles that are computed, squares that are under way in proportion,
        and with their number.
    say : is told what is reused.
    ask : calls a function on every machine that `map` may use; their names and answers.

    Returns
    -------
    How many tiles were written.

    Raises
    ------
    StoreError, HoleError : from `source`, when predictions are damaged or absent.
    AnalysisError : there is too little memory, or too little room on the disk.
    """
    _recover(path)
    place, done = path, undamaged(path, tiling, about)
    if done is None:
        place = unfinished(path)
        done = undamaged(place, tiling, about)
    missing = [tile for tile in tiling.upper() if done is None or tile_name(tile) not in done]
    _make_room(path, place, len(missing) * bytes_of(tiling))
    if done is None:
        _set_aside(place, aside(path), about)
        create(place, tiling, about)
        done = {}
    remove_partials(place)
    write_atomically(record_of(place), b"".join(_line(entry) for entry in done.values()))
    earlier = earlier_of([path, aside(path)], about) if missing and place != path else None
    layout = _layout(tiling, earlier)
    if earlier is not None:
        n_reused = sum(layout.n_known(tile) for tile in missing)
        say(f"{n_reused:,} of {tiling.M * (tiling.M - 1) // 2:,} distances were there before")
    n_done, total = len(done), len(done) + len(missing)
    progress(n_done, total)
    with record_of(place).open("ab") as record:
        for events in _events(place, source, layout, earlier, missing, map, say, ask):
            # Of one square, or of what is only copied.
            for event in events:
                if not isinstance(event, dict):
                    progress(n_done + event, total)
                    continue
                record.write(_line(event))
                record.flush()
                os.fsync(record.fileno())
                crash_point("tile")
                n_done += 1
                done[event["tile"]] = event
                progress(n_done, total)
            drop(place, done)
    describe(place, tiling, about)  # what is left out may differ, though the tiles do not
    if place != path:
        _publish(place, path)
    drop_all(path)
    shutil.rmtree(aside(path), ignore_errors=True)
    return len(missing)


def undamaged(path: Path, tiling: Tiling, about: Mapping[str, Any]) -> dict[str, Record] | None:
    """The records of the tiles that are as recorded; None unless there is a matrix about this."""
    try:
        stored = Distances(path)
        if stored.about["fingerprint"] != about["fingerprint"] or stored.tiling != tiling:
            return None
    except (AnalysisError, StoreError):
        return None
    found = finished(path)
    return {
        tile_name(tile): found[tile_name(tile)] for tile in tiling.upper() if stored.is_sound(tile)
    }


def _make_room(path: Path, place: Path, n_bytes: int) -> None:
    """Refuse a disk on which the tiles to be written do not fit, even in the place of sums."""
    free = free_room(path.parent).n_bytes
    if free is not None and n_bytes > free:
        drop_all(place)
        free = free_room(path.parent).n_bytes
    if free is not None and n_bytes > free:
        raise AnalysisError(
            str(path),
            f"{size_text(n_bytes)} to write, {size_text(free)} are free",
            "a disk on which the distances fit",
            "make room, or name another folder with `--out`",
        )


def _layout(tiling: Tiling, earlier: Earlier | None) -> Layout:
    if earlier is None:
        return Layout(tiling)
    return Layout(tiling, earlier.there >= 0, earlier.reusable(tiling))


def _events(
    place: Path,
    source: Source,
    layout: Layout,
    earlier: Earlier | None,
    missing: Sequence[Tile],
    map: Map,
    say: Callable[[str], None],
    ask: Ask,
) -> Iterator[Iterable[Done]]:
    """What is done for the missing tiles: at first those that are only copied."""
    computed = [tile for tile in missing if next(layout.pairs(tile), None)]
    copied = sorted(set(missing) - set(computed))
    yield (_stored(place, layout, earlier, Part(tile, (), ())) for tile in copied)
    if computed:
        found = begun(place, computed)
        for square, saved in found:
            tiles = f"{len(square):,} of {len(computed):,} tiles"
            say(f"{tiles} were under way before, at {saved.share:.0%} of the samples")
        plan = source.plan(computed, layout, ask, [square for square, _ in found])
        if plan.note:
            say(plan.note)
        reserve = len(missing) * bytes_of(layout.tiling)
        task = functools.partial(
            _computed, place.absolute(), source, layout, earlier, plan.run, reserve
        )
        yield from map(task, plan.squares, plan.unfit)


def _computed(
    place: Path,
    source: Source,
    layout: Layout,
    earlier: Earlier | None,
    run: int,
    reserve: int,
    square: Square,
) -> Iterator[Done]:
    if not record_of(place).exists():
        raise AnalysisError(
            str(place), "not on this machine", "a folder that every machine sees", _SHARED
        )
    storing: deque[Future[Record]] = deque()
    n_threads = min(n_cores(), _STORED_AT_ONCE)
    with ThreadPoolExecutor(n_threads) as pool:
        for found in source.compute(square, layout, run, Underway(place, square, reserve)):
            if isinstance(found, Part):
                storing.append(pool.submit(_stored, place, layout, earlier, found))
                if len(storing) > n_threads:  # so that few tiles wait in memory
                    yield storing.popleft().result()
            else:
                yield found * len(square)
        while storing:
            yield storing.popleft().result()


def _stored(place: Path, layout: Layout, earlier: Earlier | None, part: Part) -> Record:
    """Write a tile of what was computed and what was there before; returns its record."""
    tile, tiling = part.tile, layout.tiling
    rows, columns = tiling.span(tile[0]), tiling.span(tile[1])
    is_diagonal, is_reused = tile[0] == tile[1], tile in layout.reusable
    values = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, np.float32)
    if earlier is not None and is_reused:
        earlier.copy(rows, columns, values)
    for piece in part.pieces:
        p, q = piece.p.rows - rows.start, piece.q.rows - columns.start
        values[np.ix_(p, q)] = piece.D
        if is_diagonal:
            values[np.ix_(q, p)] = piece.D.T
    references = np.full((2, len(values)), np.nan) if is_diagonal else None
    if references is not None:
        if earlier is not None and is_reused:
            earlier.copy_references(rows, references)
        for group, found in part.references:
            references[:, group.rows - rows.start] = found
    entry = write_tile(place, tile, values, references)
    crash_point("tile-data")
    return entry


def _line(entry: Record) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _publish(made: Path, path: Path) -> None:
    """Move a finished matrix to `path`, in the place of what is there.

    No rename replaces a folder that is not empty, so the previous one is moved out of the way
    first; `_recover` moves it back if this process is killed before the second move.
    """
    if path.exists():
        path.rename(_previous(path))
        crash_point("publish")
    made.rename(path)
    sync_folder(path.parent)
    _recover(path)


def _recover(path: Path) -> None:
    """Move back what a killed `_publish` moved out of the way, or remove it if it was replaced."""
    previous = _previous(path)
    if previous.exists() and path.exists():
        shutil.rmtree(previous)
    elif previous.exists():
        previous.rename(path)


def _previous(path: Path) -> Path:
    return path.parent / f"{path.stem}.previous{path.suffix}"


def _set_aside(made: Path, kept: Path, about: Mapping[str, Any]) -> None:
    """Keep of two matrices that were never finished the one of which more can be used."""
    best = earlier_of([made, kept], about)
    if best is None or best.path == made:
        shutil.rmtree(kept, ignore_errors=True)
        if best is not None:
            drop_all(made)
            made.rename(kept)
