"""A trial's log as it grows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

_MARKERS = re.compile(r"\s*[~^]+[~^\s]*")  # below a line of source, where in it an error is
_FRAME = re.compile(r'\s*File "[^"]+", line \d+')
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\](?!sweeper[/\\])")  # others' code
_REPEATED = re.compile(r"\s*\[Previous line repeated (\d+) more time")

Parts = Callable[[], Mapping[str, bytes]]


def last_lines(text: str, n_lines: int | None) -> str:
    """The last lines of a text, blank ones at its end left out; None for all of it."""
    if n_lines is None:
        return text
    lines = text.splitlines(keepends=True)
    while lines and not lines[-1].strip():
        lines.pop()
    return "".join(lines[len(lines) - min(n_lines, len(lines)) :])


def essence(text: str) -> str:
    """A log in which tracebacks have neither markers nor the frames of libraries."""
    return "".join(f"{line}\n" for line in _telling(text.splitlines()))


def _telling(lines: list[str]) -> Iterator[str]:
    n_frames, depth = 0, -1  # of libraries in a row; how far the last one's line is indented
    for line in lines:
        indent = len(line) - len(line.lstrip())
        is_frame, repeated = _FRAME.match(line), _REPEATED.match(line)
        if is_frame and _INSTALLED.search(line):
            n_frames, depth = n_frames + 1, indent
        elif n_frames and repeated:
            n_frames += int(repeated[1])
        elif n_frames and not is_frame and indent > depth:
            continue  # the source of a library's frame
        elif not _MARKERS.fullmatch(line):
            yield from _counted(n_frames, depth)
            n_frames = 0
            yield line
    yield from _counted(n_frames, depth)


def _counted(n_frames: int, indent: int) -> Iterator[str]:
    if n_frames:
        yield f"{' ' * indent}… {n_frames} frame{'s' * (n_frames != 1)} of libraries"


def follow(
    parts: Parts,
    n_lines: int | None,
    write: Callable[[str], None],
    is_over: Callable[[], bool],
    pause: Callable[[], None],
) -> None:
    """Write a log, and what is added to it until it is over.

    Parameters
    ----------
    parts : reads the log: bytes by name, oldest first (`Root.log_parts`).
    n_lines : of what is there already; None for all of it.
    """
    shown: dict[str, int] = {}
    is_first = True
    while True:
        over = is_over()  # asked first: what was added before the end is then read
        new = _added(parts(), shown, with_torn=over)
        if is_first:
            new, is_first = last_lines(new, n_lines), False
        if new:
            write(new)
        if over:
            return
        pause()


def _added(parts: Mapping[str, bytes], shown: dict[str, int], with_torn: bool) -> str:
    """The whole lines that are new, or all that is new; moves `shown` on."""
    added = []
    for name, data in parts.items():
        stop = len(data) if with_torn else data.rfind(b"\n") + 1
        start = shown.get(name, 0)
        if stop > start:
            added.append(data[start:stop])
            shown[name] = stop
    return b"".join(added).decode(errors="replace")
