"""What can go wrong, said the same way everywhere.

::

    SweeperError                 exit 2   anything a user can act on
    ├── ConfigError              exit 2   one trial's configuration
    │   └── DataError            exit 2   data that is not on this machine
    ├── ExpressionError          exit 2   derive, exclude, --where
    ├── GridError                exit 2   a grid file
    ├── PlanError                exit 2   a grid that cannot become a sweep
    ├── SweepDirError            exit 2   a sweep directory, its lock or its journal
    ├── ClusterError             exit 4   a cluster that is lost or cannot be reached
    ├── AnalysisError            exit 2   a selection or a reduction of a store
    ├── CheckpointError          exit 5   a checkpoint that is damaged or another trial's
    └── StoreError               exit 5   a store that is damaged or inconsistent
        ├── FormatVersionError   exit 2   a store newer than this code
        ├── MissingStoreError    exit 2   no store, trial or array of that name
        ├── StoreURLError        exit 2   a URL that cannot be a store's
        ├── UnavailableStoreError  exit 2   a store that cannot be reached, or refuses us
        └── HoleError            exit 5   a snapshot that should be there is not

Every message reads ``where: found; allowed`` and may carry a hint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SweeperError(Exception):
    """An error a user can act on.

    Parameters
    ----------
    where : the file, key or trial that is wrong.
    found : what is there, values in backticks.
    allowed : what may be there.
    hint : what to do about it.
    """

    exit_code = 2
    usual_hint = ""  # where nothing more particular is known

    def __init__(self, where: str, found: str, allowed: str = "", hint: str = "") -> None:
        # All four go to Exception.args, so that the error survives pickling across processes.
        super().__init__(where, found, allowed, hint)
        self.where, self.found, self.allowed = where, found, allowed
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; {self.allowed}" if self.allowed else "")

    def within(self, where: str) -> SweeperError:
        """The same error, seen from further out: `where` is put before its place."""
        return type(self)(f"{where}: {self.where}", self.found, self.allowed, self.hint)


class ConfigError(SweeperError):
    """A trial's configuration is not one that can be run."""

    usual_hint = "`sweeper plan GRID` checks every trial of a grid and runs nothing"


class DataError(ConfigError):
    """The data that a trial needs is not on this machine, and may be on another."""


class ExpressionError(SweeperError):
    """An expression in `derive`, `exclude` or `--where` is not allowed or fails."""

    usual_hint = "an expression is like `model.name == 'vit' and seed < 45`"


class GridError(SweeperError):
    """A grid file does not describe a set of trials."""

    usual_hint = "README.md shows a grid; `sweeper plan GRID` checks one and runs nothing"


class PlanError(SweeperError):
    """A grid's trials cannot be run as one sweep."""


class SweepDirError(SweeperError):
    """A sweep directory is missing, held by another driver, or inconsistent."""

    usual_hint = "`sweeper status DIR` shows what a sweep directory holds"


class ClusterError(SweeperError):
    """A cluster cannot be reached, or was lost; what was done on it is in the store."""

    exit_code = 4


class AnalysisError(SweeperError):
    """A selection or reduction of a store cannot be made."""

    usual_hint = "`sweeper analyze all DIR` runs every stage that is not up to date"


class CheckpointError(SweeperError):
    """A checkpoint is damaged, or not one of this trial."""

    exit_code = 5


class StoreError(SweeperError):
    """A store is damaged or inconsistent."""

    exit_code = 5
    usual_hint = "`sweeper verify DIR` lists all damage"


class FormatVersionError(StoreError):
    """A store was written by a newer format than this code reads."""

    exit_code = 2


class MissingStoreError(StoreError):
    """There is no store, trial or array of that name."""

    exit_code = 2


class StoreURLError(StoreError):
    """A URL is of no kind that can be read, carries credentials, or names what cannot be one."""

    exit_code = 2
    usual_hint = "a store is a folder or a URL like `s3://bucket/prefix`"


class UnavailableStoreError(StoreError):
    """A store cannot be reached, or does not let us in, after retries where they can help."""

    exit_code = 2
    usual_hint = (
        "check the network, the bucket's name and the credentials in the environment; "
        "nothing is lost: launch again to go on"
    )


class HoleError(StoreError):
    """A snapshot below the number recorded is absent."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def few(names: Sequence[str]) -> str:
    """The first three of them, and how many more there are: `a, b, c and 4 more`."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest spelling, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean `{matches[0]}`?" if matches else ""
