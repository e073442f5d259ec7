"""The command line: parse, call, print. Heavy packages are imported by the commands alone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

import sweeper
from analysis.cli import app as analyze_app
from sweeper.data_cli import app as data_app
from sweeper.doctor_cli import doctor
from sweeper.errors import SweeperError
from sweeper.launch_cli import commands as launch_commands
from sweeper.say import say
from sweeper.store_cli import commands as store_commands
from sweeper.watch_cli import commands as watch_commands


def _spread(address: str) -> AbstractContextManager[tuple[Any, Any]]:
    """A cluster for `analyze`, which does not know Ray."""
    from sweeper.schedule.spread import spread

    return spread(address)


app = typer.Typer(
    name="sweeper",
    help="Train many networks, keep every prediction, and see the manifold they explore.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(analyze_app, name="analyze", context_settings={"obj": _spread})
app.add_typer(data_app, name="data")
for _name, _command in {**launch_commands, **watch_commands, **store_commands}.items():
    app.command(_name)(_command)
app.command("doctor")(doctor)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"sweeper {sweeper.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error a user can act on ends in two lines and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # as stderr is by itself: not all know all signs
    try:
        # Plug-ins are importable from where `sweeper` is started, but hide nothing installed.
        sys.path.append(os.getcwd())
        app()
    except SweeperError as error:
        _fail(str(error), error.hint, error.exit_code)
    except OSError as error:
        where = error.filename or "input or output"
        hint = "check that the path is right, may be written, and has room"
        _fail(f"{where}: {error.strerror or error}", hint, SweeperError.exit_code)


def _fail(message: str, hint: str, code: int) -> None:
    say(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""))
    sys.exit(code)
