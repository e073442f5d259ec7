"""What happened to a sweep: an append-only file of JSON lines with one writer, the driver.

Events, each with `t` (Unix seconds) and `event`:

=========  ==============================================================================
launched   n_planned, n_todo, n_slots, n_gpus, host, pid
started    trial, attempt, host, device, step (0, or where it resumed), n_steps, per_gpu
finished   trial, attempt, state (complete or diverged), seconds, steps, digest; and label, the
           name of its folder, where that is not the id (stored under an older id schema)
retried    trial, attempt, kind, error, message, signature, delay, host, device: the attempt
           failed and the trial is run again
failed     the same without delay: not run again in this launch
stopped    trial, attempt, seconds, steps: drained, checkpointed, to be resumed
requeued   trial: taken out of the store as damaged, to be run again
packed     shape, kind, per_gpu, reason, peak_bytes, device_bytes: how trials of a shape share a GPU
           of this kind; 0 if it is too small (older journals name no kind)
avoided    node, host, reason, trials, signature: the node gets no more trials in this launch; those
           named failed there, mostly alike, and went well elsewhere
stranded   kinds, shapes, n_trials: trials wait for GPUs of kinds that no node has any more; of a
           kind without a name, where no node is left
ended      reason (complete, failures, stopped or halted), n_slots, n_gpus; signature, where
           halted
lost       trial: its worker died; it is run again (in older journals only)
=========  ==============================================================================
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    events = _parse_all(lines)
    if None in events:
        raise _damaged(path, offset, lines, events.index(None))
    return Events([event for event in events if event], offset + len(data) - len(torn), len(torn))


def _parse_all(lines: list[bytes]) -> list[dict[str, Any] | None]:
    """The event of each line, None for one that is not an event."""
    try:  # a million lines at once, a third faster than one by one
        found = json.loads(b"[%b]" % b",".join(lines))
    except ValueError:
        found = []
    if len(found) != len(lines):
        found = [_parse(line) for line in lines]
    return [event if _is_event(event) else None for event in found]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_event(found: Any) -> bool:
    """Whether a line has what its kind of event needs."""
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return False
    if found.get("trial", "").__class__ is not str:
        return False
    return _NEEDED.get(found["event"], _OF_A_TRIAL) <= found.keys()


_OF_A_TRIAL = frozenset({"t", "trial"})
_FAILED = _OF_A_TRIAL | {"error", "message"}
_NEEDED: Mapping[str, frozenset[str]] = {
    "launched": frozenset({"t"}),
    "ended": frozenset({"t"}),
    "packed": frozenset({"t", "shape", "per_gpu"}),
    "avoided": frozenset({"t", "host", "reason"}),
    "stranded": frozenset({"t"}),
    "finished": _OF_A_TRIAL | {"state"},
    "retried": _FAILED,
    "failed": _FAILED,
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
    `retried`, `lost`, `stopped` or `requeued`), `t` of its last event, and of the rest of that
    event what tells how the trial is; what its last attempt failed of stays while it is run again,
    and until it has ended `seconds` and `steps` of its last attempt that was measured, and `step`,
    the last optimizer step that it is known to have behind it (of a running one, where it began).
    `packed` holds for each shape how many trials share a GPU, by its kind, `avoided` the nodes that
    the last launch gave up, `hosts` where attempts were made, and `offset` is where in the journal
    the tally ends. A driver has it in memory, so that a finished trial keeps only what its sweep's
    status and estimates need.
    """

    offset: int = 0
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    launched: dict[str, Any] | None = None  # the last launch
    ended: dict[str, Any] | None = None  # its end, None while it runs or if it was killed
    torn: int = 0  # bytes of an incomplete last line
    packed: dict[str, dict[str, int]] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    avoided: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sharing(self) -> dict[str, int]:
        """How many trials of each shape share a GPU, of the kind that takes the most."""
        return {shape: max(of_kind.values()) for shape, of_kind in self.packed.items()}

    @classmethod
    def read(cls, digest: Path, journal: Path) -> Tally:
        """The tally of a whole journal, from its saved digest on."""
        tally = cls._saved(digest, journal)
        tally.catch_up(journal)
        return tally

    def catch_up(self, journal: Path) -> None:
        """Take into account what the journal has beyond `offset`."""
        found = read_events(journal, self.offset)
        last: dict[str, dict[str, Any]] = {}  # of each trial: most others need no look
        for event in found.events:
            trial = event.get("trial")
            if trial is None:
                self.add(event)
                continue
            if trial in last and self._matters(last[trial], event):
                self.add(last[trial])
            self._note_host(event)
            last[trial] = event
        for event in last.values():
            self.add(event)
        self.offset, self.torn = found.offset, found.torn

    def _matters(self, event: dict[str, Any], after: dict[str, Any]) -> bool:
        """Whether anything of a trial's event, or of those before, stays after its next one."""
        if after["event"] == "finished":
            return False
        if after["event"] in ("started", "stopped") or event["trial"] in self.trials:
            return True
        return any(event.get(key) for key in _LASTING)

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
        if not (isinstance(self.trials, dict) and isinstance(self.packed, dict)):
            return False
        if not all(isinstance(of_kind, dict) and of_kind for of_kind in self.packed.values()):
            return False
        if (
            not (isinstance(self.hosts, list) and isinstance(self.avoided, list))
            or self.offset <= 0
            or not all(_is_tallied(found) for found in self.trials.values())
        ):
            return False
        with journal.open("rb") as file:
            file.seek(self.offset - 1)
            return file.read(1) == b"\n"

    def add(self, event: dict[str, Any]) -> None:
        """Take one event into account."""
        kind = event["event"]
        if kind == "launched":
            self.launched, self.ended, self.avoided = event, None, []
        elif kind == "ended":
            self.ended = event
        elif kind == "packed":
            self.packed.setdefault(event["shape"], {})[event.get("kind", "")] = event["per_gpu"]
        elif kind == "avoided":
            self.avoided.append(event)
        elif kind != "stranded":
            self.trials[event["trial"]] = self._kept(kind, event)
            self._note_host(event)

    def _note_host(self, event: dict[str, Any]) -> None:
        host = event.get("host")
        if host and host not in self.hosts:
            self.hosts.append(host)

    def _kept(self, kind: str, event: dict[str, Any]) -> dict[str, Any]:
        """What stays of a trial's last event; equal texts are kept once."""
        state = event["state"] if kind == "finished" else _STATES.get(kind, kind)
        kept = {"state": _once(state), "t": event["t"]}
        before = self.trials.get(event["trial"])
        if before is not None and kind not in _ANEW:
            kept |= _lasting(kind, event, before)
        for key in _TALLIED.get(kind, _LEAST):
            if key in event:
                kept[key] = _once(event[key])
        return kept

    def save(self, digest: Path) -> None:
        """Replace the saved digest."""
        write_atomically(digest, json.dumps(vars(self), separators=(",", ":")).encode())


def _lasting(kind: str, event: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What stays of a trial's earlier events."""
    kept = {}
    if kind == "started" and before["state"] in ("retried", "running"):
        kept = {key: before[key] for key in _FAILURE if key in before}
    if "seconds" not in event:
        kept |= {key: before[key] for key in _MEASURED if before.get(key)}
    n_made = event.get("steps") if kind == "stopped" else 0
    step = (before.get("step") or 0) + (n_made or 0)
    return kept | {"step": step} if step else kept


def _once(value: Any) -> Any:
    """The same value; of equal texts, one."""
    return sys.intern(value) if value.__class__ is str else value


def _is_tallied(found: Any) -> bool:
    """Whether this is what `Tally.add` keeps of a trial."""
    if not isinstance(found, dict) or not {"state", "t"} <= found.keys():
        return False
    return found["state"] not in ("failed", "retried") or {"error", "message"} <= found.keys()


_STATES = {"started": "running"}  # others are called as their events are
_ANEW = ("finished", "requeued")  # after which nothing of what was before counts
_LEAST = ("attempt",)
_MEASURED = ("seconds", "steps")
_LASTING = (*_MEASURED, "step")
_FAILURE = ("kind", "error", "message", "signature")
_PLACED = (*_FAILURE, "attempt", "host", "device")
_TALLIED: Mapping[str, tuple[str, ...]] = {
    "started": ("attempt", "host", "device", "step", "n_steps", "per_gpu"),
    "finished": ("attempt", "seconds", "steps", "label"),
    "retried": _PLACED,
    "failed": (*_PLACED, "seconds"),
    "stopped": ("attempt", "seconds", "steps"),
}


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
