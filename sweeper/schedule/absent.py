"""Kinds of GPUs of which there is no node any more, and what waits for them; pure.

Where kinds have no name, and where there are no GPUs, any node will do: then none may be left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sweeper.schedule.executor import Stranded

GONE_SECONDS = 600.0  # that a kind may be away, before it is said what waits for it


class Absent:
    """Which kinds of GPUs are missed, and since when. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._there: frozenset[str] | None = None  # None before the driver has told of any node
        self._since: dict[str, float] = {}
        self._told: set[tuple[str, ...]] = set()

    def sees(self, kinds: Iterable[str]) -> None:
        """Take note of the kinds that there are; for one that comes back all begins anew."""
        self._there = frozenset(kinds)
        self._since = {kind: t for kind, t in self._since.items() if not self._is_there(kind)}
        self._told = {kinds for kinds in self._told if not any(map(self._is_there, kinds))}

    def stranded(
        self, waiting: Iterable[tuple[str, Sequence[str], int]], now: float
    ) -> list[Stranded]:
        """What has waited for too long for a kind that is gone, by the kinds that would do.

        Parameters
        ----------
        waiting : shapes, the kinds on which each can run, and how many trials of it are ready.
        """
        found: dict[tuple[str, ...], Stranded] = {}
        for shape, kinds, n_trials in waiting:
            key = tuple(kinds)
            if self._are_gone(key, now):
                before = found.get(key, Stranded(key, (), 0))
                shapes = tuple(dict.fromkeys([*before.shapes, shape]))
                found[key] = Stranded(key, shapes, before.n_trials + n_trials)
        return list(found.values())

    def news(self, found: Collection[Stranded]) -> list[Stranded]:
        """What of it has not been told yet, told once."""
        new = [event for event in found if event.kinds not in self._told]
        self._told.update(event.kinds for event in new)
        return new

    def _are_gone(self, kinds: tuple[str, ...], now: float) -> bool:
        """Whether none of these kinds has been there for long."""
        if self._there is None or any(map(self._is_there, kinds)):
            return False
        return now - max(self._since.setdefault(kind, now) for kind in kinds) >= GONE_SECONDS

    def _is_there(self, kind: str) -> bool:
        """Whether there is a node for it; a kind without a name may be any."""
        there = self._there or frozenset()
        return kind in there if kind else bool(there)
