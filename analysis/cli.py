"""`sweeper analyze`: parse, call `analysis.stages`, print the paths of what was written."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

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
Components = Annotated[
    int | None, typer.Option(metavar="K", help="Axes to keep (default: 10).", show_default=False)
]


@app.command()
def distances(
    directories: Places,
    out: Out = None,
    where: Where = None,
    exclude_untrained: ExcludeUntrained = False,
) -> None:
    """Compute the distances between all snapshots of the complete trials."""
    from analysis import stages
    from analysis.places import asked

    folder, places = asked(directories, out)
    progress = _Progress("distances")
    _print(stages.distances(folder, where, exclude_untrained, _say, progress, places))


@app.command()
def inpca(directory: Dir, components: Components = None) -> None:
    """Embed the distances, and place truth and ignorance."""
    from analysis import stages
    from analysis.places import existing

    _print(stages.embed(existing(directory), components, _say))


@app.command()
def report(directory: Dir) -> None:
    """Draw the embedding: one HTML page that works offline, and figures."""
    from analysis import stages
    from analysis.places import existing

    _print(stages.report(existing(directory), _say))


@app.command(name="all")
def all_stages(
    directories: Places,
    out: Out = None,
    where: Where = None,
    exclude_untrained: ExcludeUntrained = False,
    components: Components = None,
) -> None:
    """Run distances, inpca and report; what is unchanged is skipped."""
    from analysis import stages
    from analysis.places import asked

    folder, _ = asked(directories, out)
    with stages.alone(folder):
        distances(directories, out, where, exclude_untrained)
        inpca(str(folder), components)
        report(str(folder))


def _print(paths: Iterable[Path]) -> None:
    for path in paths:
        print(path)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


class _Progress:
    """A line that is redrawn on a terminal, one line per half-minute elsewhere."""

    interval = 30.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: int | None = None  # tiles that were there before this run
        self.started = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        interactive = sys.stderr.isatty()
        if not interactive and now - self.shown < self.interval:
            return
        self.shown = now
        end = "\n" if done == total or not interactive else ""
        start = "\r\x1b[K" if interactive else ""
        print(f"{start}{self.name}: {self._text(done, total, now)}", end=end, file=sys.stderr)

    def _text(self, done: int, total: int, now: float) -> str:
        """How far, and the time that the rest takes at the rate of this run."""
        computed = done - (self.first or 0)
        left = (now - self.started) / computed * (total - done) if computed else None
        eta = f", {left:.0f} s left" if left is not None and done < total else ""
        return f"{done}/{total} tiles{eta}"
