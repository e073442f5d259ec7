"""A trial's log as it grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Parts = Callable[[], Mapping[str, bytes]]


def last_lines(text: str, n_lines: int | None) -> str:
    """The last lines of a text; None for all of them."""
    lines = text.splitlines(keepends=True)
    return text if n_lines is None else "".join(lines[len(lines) - min(n_lines, len(lines)) :])


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
