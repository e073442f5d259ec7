"""What happened to a sweep: an append-only file of JSON lines with one writer, the driver.

Events, each with `t` (Unix seconds) and `event`:

=========  ==============================================================================
launched   n_planned, n_todo, host, pid
started    trial, attempt, host, device, step (0, or where it resumed), n_steps
finished   trial, attempt, state (complete or diverged), seconds, digest
failed     trial, attempt, kind, error, message
lost       trial: its worker died
stopped    trial: drained, checkpointed, to be resumed
requeued   trial: taken out of the store as damaged, to be run again
ended      reason (complete, failures or stopped)
=========  ==============================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sweeper.durable import crash_point, sync_folder, write_all, write_atomically
from sweeper.errors import SweepDirError


@dataclass(frozen=True)
class Events:
    """Events read from a journal; `offset` is where the next read goes on.

    `torn` is the number of bytes of an incomplete last line, which a crash can leave.
    """

    events: list[dict[str, Any]]
    offset: int
    torn: int


def read_events(path: Path, offset: int = 0) -> Events:
    """All whole events from `offset` on; none when there is no journal yet.

    Raises
    ------
    SweepDirError : a line other than a torn last one is not an event.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return Events([], 0, 0)
    *lines, torn = data.split(b"\n")
    events = [_parse(line) for line in lines]
    if None in events:
        raise _damaged(path, offset, lines, events.index(None))
    return Events([event for event in events if event], offset + len(data) - len(torn), len(torn))


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event of a line, None when it is not one."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    needed = {"t", *_NEEDED.get(event["event"], ("trial",))}
    return event if needed <= event.keys() else None


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "launched": (),
    "ended": (),
    "finished": ("trial", "state"),
    "failed": ("trial", "error", "message"),
}


def _damaged(path: Path, offset: int, lines: list[bytes], index: int) -> SweepDirError:
    """The error that names the line, counted from the beginning of the journal."""
    with path.open("rb") as file:
        number = file.read(offset).count(b"\n") + index + 1
    return SweepDirError(
        str(path),
        f"line {number} is not an event: `{lines[index][:40].decode(errors='replace')}`",
        "one JSON object with `event` and `t` per line",
        "the store holds every result: move the journal away and launch again",
    )


@dataclass
class Tally:
    """What the events add up to: each trial's last state, and the launches so far.

    `trials` holds for each trial its `state` (`running`, `complete`, `diverged`, `failed`,
    `lost`, `stopped` or `requeued`), `t` of its last event, `attempt`, and `seconds` or `error` and
    `message`. `offset` is where in the journal the tally ends.
    """

    offset: int = 0
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    launched: dict[str, Any] | None = None  # the last launch
    ended: dict[str, Any] | None = None  # its end, None while it runs or if it was killed
    torn: int = 0  # bytes of an incomplete last line

    @classmethod
    def read(cls, digest: Path, journal: Path) -> Tally:
        """The tally of a whole journal, from its saved digest on."""
        tally = cls._saved(digest, journal)
        found = read_events(journal, tally.offset)
        for event in found.events:
            tally.add(event)
        tally.offset, tally.torn = found.offset, found.torn
        return tally

    @classmethod
    def _saved(cls, digest: Path, journal: Path) -> Tally:
        """The saved digest; an empty tally when there is none that fits the journal."""
        try:
            saved = cls(**json.loads(digest.read_bytes()))
            return saved if saved._fits(journal) else cls()
        except (OSError, ValueError, TypeError):  # the journal alone tells the same
            return cls()

    def _fits(self, journal: Path) -> bool:
        """Whether a line of this journal ends where the tally does."""
        if not isinstance(self.trials, dict) or self.offset <= 0:
            return False
        if not all(_is_tallied(found) for found in self.trials.values()):
            return False
        with journal.open("rb") as file:
            file.seek(self.offset - 1)
            return file.read(1) == b"\n"

    def add(self, event: dict[str, Any]) -> None:
        """Take one event into account."""
        kind = event["event"]
        if kind == "launched":
            self.launched, self.ended = event, None
        elif kind == "ended":
            self.ended = event
        else:
            state = {"started": "running", "finished": event.get("state")}.get(kind, kind)
            kept = {key: event[key] for key in _TALLIED if key in event}
            self.trials[event["trial"]] = {"state": state, **kept}

    def save(self, digest: Path) -> None:
        """Replace the saved digest."""
        write_atomically(digest, json.dumps(asdict(self), separators=(",", ":")).encode())


def _is_tallied(found: Any) -> bool:
    """Whether this is what `Tally.add` keeps of a trial."""
    if not isinstance(found, dict) or not {"state", "t"} <= found.keys():
        return False
    return found["state"] != "failed" or {"error", "message"} <= found.keys()


_TALLIED = ("t", "attempt", "seconds", "kind", "error", "message")


class Journal:
    """The writer. An event is durable when `append` returns.

    A torn last line, left by a crash, is cut off when the journal is opened; `torn` says how
    many bytes it had.
    """

    def __init__(self, path: Path) -> None:
        found = read_events(path)
        self.torn = found.torn
        self._file = path.open("ab", buffering=0)
        sync_folder(path.parent)
        self.offset = found.offset
        if found.torn:
            self._file.truncate(found.offset)

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event and return it; when that fails, nothing of it stays."""
        line = {"t": round(time.time(), 3), "event": event, **fields}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            write_all(self._file, data)
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self.offset)
            raise
        self.offset += len(data)
        crash_point("journal")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
