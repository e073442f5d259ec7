"""`sweeper data`: parse, call `sweeper.train.sources`, say what is there."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from sweeper.errors import ConfigError, SweeperError, nearest
from sweeper.options import Json
from sweeper.registry import BUILT_IN
from sweeper.say import say

app = typer.Typer(
    help="Put data sets where training looks for them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set, e.g. cifar10.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Default: $SWEEPER_DATA, else data."),
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=1, help="As `data.image_size`. Default: 224.")
]

OnCluster = Annotated[
    str | None,
    typer.Option(
        "--address", help="Do it on every node of a Ray cluster, `auto` or `host:port`; else here."
    ),
]

_NODE_SECONDS = 24 * 3600.0  # that a node may take; a server that is silent is given up long before
_ALWAYS_THERE = ("digits", "synthetic")


@app.command()
def get(name: Name, root: Root = None, address: OnCluster = None) -> None:
    """Download the data set NAME and check it; what is there already is only checked."""
    _known(name)
    if name in _ALWAYS_THERE:
        say(f"{name} needs no files")
        return
    _refuse_what_is_not_public(name)
    _use(root)
    _do(f"data get {name}", address, functools.partial(_get, name))


def _get(name: str) -> str:
    from sweeper.train.sources.fetch import fetch
    from sweeper.train.sources.place import data_root

    root = data_root()
    with contextlib.redirect_stdout(sys.stderr):
        is_new = fetch(name, root, lambda: say(f"{name}: waiting for another download"))
    return f"{root / name}: {'downloaded and checked' if is_new else 'was there; checked'}"


@app.command()
def prepare(
    name: Name, image_size: ImageSize = None, root: Root = None, address: OnCluster = None
) -> None:
    """Decode and resize NAME (imagenet) once, into a copy that trains without decoding.

    A copy that is there already is read and checked. At the default size it takes 262 GB.
    """
    _known(name)
    if name != "imagenet":
        raise SweeperError(f"data prepare {name}", "only `imagenet` is decoded while training")
    _use(root)
    _do(f"data prepare {name}", address, functools.partial(_prepare, name, image_size))


def _prepare(name: str, image_size: int | None) -> str:
    from sweeper.train.sources.folder import list_imagenet, stored_side
    from sweeper.train.sources.place import data_root
    from sweeper.train.sources.prepared import place_of, prepare

    folder, (stored, _) = data_root() / name, stored_side(image_size)
    names = {split: list_imagenet(split).names for split in ("train", "val")}
    with _counted(sum(map(len, names.values()))) as progress:
        is_new = prepare(
            folder, stored, names, progress, lambda: say(f"{name}: waiting for another copy")
        )
    return f"{place_of(folder, stored)}: {'made' if is_new else 'was there; checked'}"


@app.command("list")
def list_(root: Root = None, as_json: Json = False) -> None:
    """Show which data sets are there. Reads no data."""
    _use(root)
    from sweeper.sections import DataConfig
    from sweeper.train.data import present
    from sweeper.train.sources.place import data_root

    rows = {}
    for name in sorted(set(BUILT_IN["data"]) - {"image_folder"}):
        try:
            present(DataConfig(name=name))
        except ConfigError as error:
            is_begun = any((data_root() / name).glob("*"))
            rows[name] = {"there": False, "found": error.found if is_begun else "absent"}
        else:
            copies = sorted(path.name for path in (data_root() / name).glob("prepared-*[0-9]"))
            rows[name] = {"there": True, "found": ", ".join(["there", *copies])}
    if as_json:
        print(json.dumps({"root": str(data_root()), "data": rows}, indent=1))
        return
    print(f"{data_root()}")
    for name, row in rows.items():
        print(f"  {name:<14}{row['found']}")


def _use(root: Path | None) -> None:
    """Make a root that was given that of this process, and of nodes that it asks."""
    from sweeper.train.sources.place import ROOT_VARIABLE

    if root is not None:
        os.environ[ROOT_VARIABLE] = str(root)


def _known(name: str) -> None:
    if name not in BUILT_IN["data"]:
        known = sorted(BUILT_IN["data"])
        hint = nearest(name, known)
        raise SweeperError("data", f"unknown data set `{name}`", f"known: {', '.join(known)}", hint)


def _refuse_what_is_not_public(name: str) -> None:
    if name == "imagenet":
        from sweeper.train.sources.folder import IMAGENET_REMEDY

        raise SweeperError("data get imagenet", "it cannot be downloaded", hint=IMAGENET_REMEDY)
    if name == "image_folder":
        raise SweeperError(
            "data get image_folder",
            "these are your own images",
            "`PATH/train/CLASS/*` and `PATH/test/CLASS/*`, PATH being `data.path`",
        )


def _do(where: str, address: str | None, task: Callable[[], str]) -> None:
    """Do it here, or on every node of a cluster, and say what came of it."""
    if address is not None:
        _do_on_every_node(where, address, task)
    elif isinstance(said := _tried(where, task), SweeperError):
        raise said
    else:
        say(said)


def _do_on_every_node(where: str, address: str, task: Callable[[], str]) -> None:
    """Nodes that share the folder wait for one another by its lock, if their mount has locks."""
    from sweeper.schedule.cluster import Answer, Node, ask_every_node, joined

    say(f"{where}: on every node of the cluster at `{address}`")
    # Of its own: while Ray is joined, what it says is kept from standard error.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="replace") as shown:

        def tell(answer: Answer[str | SweeperError] | None, left: Sequence[Node]) -> None:
            waiting = f"not yet: {', '.join(map(str, left))}"
            said = f"{answer.node}: {answer.problem or answer.said}" if answer else waiting
            print(said, file=shown)

        with joined(address):
            answers = ask_every_node(functools.partial(_tried, where, task), _NODE_SECONDS, tell)
    failed = [answer for answer in answers if not isinstance(answer.said, str)]
    if failed:
        named = ", ".join(f"`{answer.node}`" for answer in failed)
        hints = [answer.said.hint for answer in failed if isinstance(answer.said, SweeperError)]
        found = f"failed on {len(failed)} of {len(answers)} nodes: {named}"
        raise SweeperError(where, found, hint=next(iter(hints), ""))


def _tried(where: str, task: Callable[[], str]) -> str | SweeperError:
    """What came of it, or what is wrong with the data set, said of the command."""
    try:
        return task()
    except ConfigError as error:
        return SweeperError(where, error.found, error.allowed, error.hint)
    except SweeperError as error:
        return error


@contextlib.contextmanager
def _counted(total: int) -> Iterator[Callable[[int], None]]:
    """A function that counts images: a bar on a terminal, a line per half-minute elsewhere."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from sweeper.display import LINE_SECONDS
    from sweeper.duration import duration

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("images", total=total)
            yield lambda n: progress.advance(task, n)
        return
    done, started = 0, time.monotonic()
    shown = started

    def count(n: int) -> None:
        nonlocal done, shown
        done += n
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            left = (shown - started) / done * (total - done)
            say(f"{done:,}/{total:,} images, {duration(left)} left")

    yield count
