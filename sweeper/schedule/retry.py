"""What kind of failure an error is, what it is alike, and whether its trial is tried again; pure.

========  ==================================================================  ====================
kind      recognised by                                                       what happens
========  ==================================================================  ====================
data      `DataError`: its data is not on this machine                       on another node;
                                                                              else permanent
invalid   `ConfigError`: configuration or construction; a newer store         permanent
oom       CUDA out of memory, by type or text                                 again in a larger
                                                                              share or GPU; else
                                                                              permanent
lost      worker killed, node gone, hung; host memory; faulty device          budget 5, backoff
storage   `StoreError`, `CheckpointError`, errno of input and output          budget 5, backoff
bug       anything else                                                       once more
========  ==================================================================  ====================

What fails on a node that may be to blame itself uses up no budget, while a sound one may try.

A network that diverges is a result and no failure.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import sysconfig
import traceback
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import sweeper
from sweeper.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FormatVersionError,
    StoreError,
    StoreURLError,
    SweeperError,
)

BUDGETS = {"lost": 5, "storage": 5, "bug": 1}  # attempts after the first that failed so
BREAK_AFTER = 10  # permanent failures in a row with one signature
MESSAGE_LENGTH = 500  # characters of an error that the journal and the display carry

_DELAYS = {"lost": 1.0, "storage": 15.0, "bug": 0.0}  # seconds before the first of them, then twice

_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA (?:driver )?error: out of memory|Triton Error \[CUDA\]: out of memory"
    r"|_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation"
    # What cuBLAS and cuDNN say when there is no room for what they need beside the tensors.
    r"|CUBLAS_STATUS_NOT_INITIALIZED|valid cuDNN algorithm|unable to find an engine to execute"
)
_FAULTY_MACHINE = re.compile(  # a device, its node or its memory that fails, whatever the trial is
    r"uncorrectable ECC|fallen off the bus|busy or unavailable|CUDA error: unknown error"
    r"|no CUDA-capable device|CUDA driver initialization failed|system not yet initialized"
    r"|hardware stack error|DataLoader worker .*(?:killed by signal|exited unexpectedly)"
    r"|DefaultCPUAllocator: |Cannot allocate memory",
    re.IGNORECASE,
)
_TRANSIENT = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EAGAIN),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EBUSY),
    *(errno.EMFILE, errno.ENFILE, getattr(errno, "EREMOTEIO", errno.EIO)),  # the last is Linux's
}
_DRAWN = re.compile(  # names that are drawn: hexadecimal, with and without dashes
    r"\b(?=[\d-]*[a-f])(?=[a-f-]*\d)[0-9a-f]{8}[0-9a-f-]*\b", re.IGNORECASE
)
_NUMBER = re.compile(
    r"0x[0-9a-f]+|(?:(?<!\w)-)?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE
)
_NAMED = re.compile(r"\bt[0-9a-f]{12}\b|/[^\s:'\"`]*/")  # trial ids, and the folders of paths
_INSTALLED = ("/site-packages/", "/dist-packages/")  # the user's and other environments', too
_PYTHON, _OURS = sysconfig.get_path("stdlib"), str(Path(sweeper.__file__).parent)


@dataclass(frozen=True)
class Failure:
    """An attempt failed: its class, the exception's type and message, and what it is alike.

    As an event, a failure for good: the trial is not run again before the next launch.
    """

    trial_id: str
    kind: str
    error: str
    message: str
    signature: str = ""
    host: str = ""

    @classmethod
    def of(cls, trial_id: str, error: BaseException) -> Failure:
        """The failure that `error` is, on this host."""
        text = _text(error)
        if isinstance(error, SweeperError) and error.hint:
            text = f"{text} (hint: {_encodable(error.hint)})"
        if len(text) > MESSAGE_LENGTH:
            text = f"{text[:MESSAGE_LENGTH]} … (the rest is in the trial's log)"
        name, host = type(error).__name__, socket.gethostname()
        return cls(trial_id, classify(error), name, text, signature(error), host)

    @classmethod
    def lost(cls, trial_id: str, reason: str, error: str = "WorkerDied") -> Failure:
        """The failure of an attempt whose worker is gone, or is given up."""
        return cls(trial_id, "lost", error, reason, f"{error}: {_normalised(reason)}")


def classify(error: BaseException) -> str:
    """The failure class of an error that a trial raised, or of what caused it."""
    chain = list(_chain(error))
    if any(_is_out_of_memory(found) for found in chain):
        return "oom"
    if any(_is_worker_lost(found) for found in chain):
        return "lost"
    if any(isinstance(found, OSError) and found.errno in _TRANSIENT for found in chain):
        return "storage"
    ours = (ConfigError, StoreError, CheckpointError)
    said = next((found for found in chain if isinstance(found, ours)), None)
    if said is None:
        return "bug"
    if isinstance(said, DataError):
        return "data"
    is_for_good = isinstance(said, (ConfigError, FormatVersionError, StoreURLError))
    return "invalid" if is_for_good else "storage"


def signature(error: BaseException) -> str:
    """What alike failures share: type, innermost frame of our own or a plug-in's, and message.

    Of the message, numbers, trial ids and folders are left out.
    """
    raised = [found for found in _chain(error) if found.__traceback__] or [error]
    frames = [
        (frame.f_code.co_filename, frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(raised[-1].__traceback__)
    ]
    own = [frame for frame in frames if _is_own(frame[0])] or frames
    where = f" in {Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
    first, *_ = _text(error).splitlines() or [""]
    return f"{type(error).__name__}{where}: {_normalised(first)}"


class Retries:
    """How often each trial failed, in which way and where, and whether it is worth another try."""

    def __init__(self) -> None:
        self._failed: dict[str, Counter[tuple[str, str]]] = {}  # by kind and node

    def delay(
        self,
        failure: Failure,
        *,
        is_larger_left: bool,
        node: str = "",
        excused: Container[str] = (),
    ) -> float | None:
        """Seconds to wait before another attempt; None when the failure is for good.

        Parameters
        ----------
        is_larger_left : whether there is more memory to be had, in a larger share or GPU.
        node : where it failed; empty if the node has gone.
        excused : nodes whose failures do not count at the moment.
        """
        kind = failure.kind
        if kind == "oom":
            return 0.0 if is_larger_left else None
        failed = self._failed.setdefault(failure.trial_id, Counter())
        failed[kind, node] += 1
        there = {where: n for (other, where), n in failed.items() if other == kind}
        budget = BUDGETS.get(kind, 0)
        if sum(n for where, n in there.items() if where not in excused) > budget:
            return None
        return backoff(failure.trial_id, kind, min(sum(there.values()), budget))

    def forgive(self, node: str) -> None:
        """Give back what was used up on a node that turned out to be to blame."""
        for failed in self._failed.values():
            for kind, where in list(failed):
                if where == node:
                    del failed[kind, where]

    def forget(self, trial_id: str) -> None:
        """Drop what is known of a trial that has ended."""
        self._failed.pop(trial_id, None)


def backoff(trial_id: str, kind: str, n_failed: int) -> float:
    """Seconds before attempt `n_failed + 1`: doubling, times 0.5 to 1.5 by the trial's id.

    The jitter keeps what failed together from coming back together; it is the same each time.
    """
    drawn = hashlib.sha256(f"{trial_id} {kind} {n_failed}".encode()).digest()[0] / 256
    return _DELAYS[kind] * 2.0 ** (n_failed - 1) * (0.5 + drawn)


class Breaker:
    """Counts permanent failures in a row that have one signature."""

    def __init__(self) -> None:
        self._signature, self._n = "", 0

    def failed(self, failure: Failure) -> int | None:
        """How many in a row there are now, when these are too many; else None."""
        alike = failure.signature == self._signature
        self._signature, self._n = failure.signature, self._n + 1 if alike else 1
        return self._n if self._n == BREAK_AFTER else None

    def completed(self) -> None:
        """A trial went well: not everything is broken."""
        self._n = 0


# --- reading exceptions ---------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        is_caused = found.__suppress_context__  # by `raise … from …`
        found = found.__cause__ if is_caused else found.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    kind = type(error)
    if kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch":
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(_text(error)))


def _is_worker_lost(error: BaseException) -> bool:
    """Whether the machine failed the trial: its memory, its device, or a process of its own."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and bool(_FAULTY_MACHINE.search(_text(error)))


def _text(error: BaseException) -> str:
    try:
        text = str(error).strip()
    except Exception:  # a plug-in's own exception may fail even at this
        text = "its message cannot be shown"
    return _encodable(text)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _normalised(text: str) -> str:
    return _NUMBER.sub("#", _DRAWN.sub("#", _NAMED.sub("…", text)))[:200]


def _is_own(path: str) -> bool:
    """Whether a frame is of this package or of a plug-in, not of Python or a library."""
    if path.startswith(_OURS):
        return True
    is_library = path.startswith((_PYTHON, "<")) or any(part in path for part in _INSTALLED)
    return not is_library
