"""`sweeper analyze`: parse, call `analysis.stages`, print the paths of what was written."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeper.say import say

app = typer.Typer(
    help="Reduce the predictions of a sweep: distances, InPCA, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Places = Annotated[
    list[str],
    typer.Argument(
        metavar="DIR...", help="Sweep directories, e.g. runs/digits, stores' folders, or URLs."
    ),
]
Dir = Annotated[
    str, typer.Argument(metavar="DIR", help="A sweep directory, or what `--out` named.")
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Artifacts go into DIR/analysis. Default: the sweep directory, if it is the only one.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="EXPR", help="Only trials for which this holds, e.g. \"model.name == 'vit'\"."
    ),
]
ExcludeUntrained = Annotated[
    bool,
    typer.Option("--exclude-untrained", help="Leave out trials with a final train error > 0.1."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Compute distances on all nodes of this Ray cluster: `auto`, or `host:port`.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What may be taken for distances, e.g. 8GiB. Default: half of what is free.",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--distance",
        metavar="NAME",
        help="`bhattacharyya`, `hellinger` or `symmetrised-kl`; the last two need `--out`.",
    ),
]
Components = Annotated[
    int | None, typer.Option(metavar="K", help="Axes to keep (default: 10).", show_default=False)
]
Landmarks = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Snapshots whose predictions the map keeps (default: 300).",
        show_default=False,
    ),
]
MapFile = Annotated[
    Path, typer.Argument(metavar="MAP", help="What `map` wrote: DIR/analysis/map.npz.")
]
Place = Annotated[
    str, typer.Argument(metavar="DIR", help="A sweep directory, a store's folder, or a URL.")
]
Weigh = Annotated[
    str | None,
    typer.Option(
        "--weigh",
        metavar="WHAT",
        help="`trials`: each trial counts alike, however many snapshots it has.",
        show_default=False,
    ),
]


@app.command()
def distances(
    context: typer.Context,
    directories: Places,
    out: Out = None,
    where: Where = None,
    exclude_untrained: ExcludeUntrained = False,
    memory: Memory = None,
    address: Address = None,
    distance: Kind = "bhattacharyya",
) -> None:
    """Compute the distances between all snapshots of the complete trials."""
    _distances(context, directories, out, where, exclude_untrained, memory, address, distance)


def _distances(
    context: typer.Context,
    directories: list[str],
    out: str | None,
    where: str | None,
    exclude_untrained: bool,
    memory: str | None,
    address: str | None,
    distance: str,
    components: int | None = None,
) -> None:
    from analysis import stages
    from analysis.places import asked

    n_bytes = _bytes(memory)
    folder, places = asked(directories, out, distance)
    progress = _Progress("distances")
    compute = functools.partial(stages.distances, distance=distance, n_components=components)
    with _spread(context, address) as shared:
        paths = compute(folder, where, exclude_untrained, say, progress, places, n_bytes, *shared)
    _print(paths)


@app.command()
def inpca(directory: Dir, components: Components = None, weigh: Weigh = None) -> None:
    """Embed the distances, and place truth and ignorance."""
    from analysis import stages
    from analysis.places import existing

    _print(stages.embed(existing(directory), components, say, weigh, _Progress("inpca")))


@app.command()
def report(directory: Dir) -> None:
    """Draw the embedding: one HTML page that works offline, and figures."""
    from analysis import stages
    from analysis.places import existing

    _print(stages.report(existing(directory), say))


@app.command(name="map")
def freeze(directory: Dir, landmarks: Landmarks = None) -> None:
    """Write the embedding into one file, in which other sweeps can be placed."""
    from analysis import maps
    from analysis.places import existing

    n = maps.LANDMARKS if landmarks is None else landmarks
    _print(maps.freeze(existing(directory), n, say, _Progress("map")))


@app.command()
def project(map_file: MapFile, place: Place, out: Out = None) -> None:
    """Place the snapshots of a sweep in the map of another."""
    from analysis import maps

    _print(maps.project(map_file, place, out, say, _Progress("projection", "snapshots")))


@app.command()
def check(
    directories: Places,
    out: Out = None,
    where: Where = None,
    exclude_untrained: ExcludeUntrained = False,
    snapshots: Annotated[int, typer.Option(help="Chosen evenly at random.")] = 300,
    resamples: Annotated[int, typer.Option(help="Test sets drawn from the samples.")] = 100,
    memory: Memory = None,
) -> None:
    """Tell how sure distances and axes are, and what other distances make of them."""
    from analysis import checks
    from analysis.places import asked

    n_bytes = _bytes(memory)
    folder, places = asked(directories, out)
    _print(
        checks.check(folder, where, exclude_untrained, snapshots, resamples, say, places, n_bytes)
    )


@app.command(name="all")
def all_stages(
    context: typer.Context,
    directories: Places,
    out: Out = None,
    where: Where = None,
    exclude_untrained: ExcludeUntrained = False,
    components: Components = None,
    weigh: Weigh = None,
    memory: Memory = None,
    address: Address = None,
    distance: Kind = "bhattacharyya",
) -> None:
    """Run distances, inpca and report; what is unchanged is skipped."""
    from analysis import stages
    from analysis.places import asked

    stages.check_asked(components, weigh)
    folder, _ = asked(directories, out, distance)
    with stages.alone(folder):
        options = (where, exclude_untrained, memory, address, distance, components)
        _distances(context, directories, out, *options)
        inpca(str(folder), components, weigh)
        report(str(folder))


def _bytes(memory: str | None) -> int | None:
    from analysis.memory import parse_size

    return None if memory is None else parse_size(memory, "--memory")


@contextlib.contextmanager
def _spread(context: typer.Context, address: str | None) -> Iterator[tuple[Any, ...]]:
    """What maps over a cluster's nodes and what asks them, or nothing without an address."""
    if address is None:
        yield ()
        return
    with context.obj(address) as shared:  # of `sweeper.schedule`, which `sweeper.cli` gives us
        yield shared


def _print(paths: Iterable[Path]) -> None:
    for path in paths:
        print(path)


class _Progress:
    """A line that is redrawn on a terminal, one line per half-minute elsewhere."""

    interval = 30.0

    def __init__(self, name: str, unit: str = "tiles") -> None:
        self.name, self.unit = name, unit
        self.first: float | None = None  # what was there before this run
        self.most = -1.0
        self.started = self.shown = time.monotonic()

    def __call__(self, done: float, total: int) -> None:
        if done <= self.most:  # tiles that are stored were told of as they were computed
            return
        self.most, now = done, time.monotonic()
        self.first = done if self.first is None else self.first
        interactive = sys.stderr.isatty()
        if not interactive and now - self.shown < self.interval:
            return
        self.shown = now
        end = "\n" if done == total or not interactive else ""
        start = "\r\x1b[K" if interactive else ""
        print(f"{start}{self.name}: {self._text(done, total, now)}", end=end, file=sys.stderr)

    def _text(self, done: float, total: int, now: float) -> str:
        """How far, and the time that the rest takes at the rate of this run."""
        computed = done - (self.first or 0)
        left = (now - self.started) / computed * (total - done) if computed else None
        eta = f", {left:.0f} s left" if left is not None and done < total else ""
        return f"{done:.0f}/{total} {self.unit}{eta}"
