"""Which nodes there are, which of them are avoided, and on which a trial has failed; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sweeper.schedule.executor import Avoided
from sweeper.schedule.seats import Seat
from sweeper.schedule.suspects import Suspects

ELSEWHERE_SECONDS = 60.0  # that an order waits for a slot of its size on a node it did not fail on


@dataclass(frozen=True)
class Site:
    """A node that has room for slots, as the driver knows it; `kind` is that of its GPUs."""

    host: str
    kind: str = ""


@dataclass
class _Tried:
    """On which nodes a trial has failed, and since when it is in line again."""

    nodes: set[str]
    since: float


class Nodes:
    """The nodes of a sweep. Before the driver has told of any, every node will do."""

    def __init__(self) -> None:
        self._sites: dict[str, Site] = {}
        self._avoided: dict[str, Avoided] = {}
        self._tried: dict[str, _Tried] = {}
        self._suspects = Suspects()

    def sees(self, sites: Mapping[str, Site]) -> None:
        """Take note of what there is; by its name, a node that has gone never comes back."""
        for node in self._sites.keys() - sites.keys():
            self.gone(node)
        self._sites = dict(sites)

    def gone(self, node: str) -> None:
        """A node has gone, or goes: what failed with it is not its fault."""
        self._suspects.gone(node)

    def is_known(self, node: str) -> bool:
        """Whether the driver has told of it."""
        return node in self._sites

    def kind(self, node: str) -> str:
        """The kind of its GPUs; empty where that is not known."""
        return self._sites[node].kind if node in self._sites else ""

    def is_open(self, node: str) -> bool:
        """Whether it may be given orders."""
        return node not in self._avoided and (not self._sites or node in self._sites)

    # --- who is avoided -------------------------------------------------------------------

    @property
    def avoided(self) -> frozenset[str]:
        """The nodes that get no more orders."""
        return frozenset(self._avoided)

    @property
    def why_none(self) -> str:
        """Why none of the nodes that there are may be given orders; empty while one may."""
        if not self._sites or self._sites.keys() - self._avoided.keys():
            return ""
        return str([self._avoided[node] for node in self._sites][-1])

    def avoid(
        self, node: str, reason: str, trial_ids: tuple[str, ...] = (), signature: str = ""
    ) -> list[Avoided]:
        """Give a node no more orders; what is new of it."""
        if node in self._avoided:
            return []
        host = self._sites[node].host if node in self._sites else node
        self._avoided[node] = Avoided(node, host, reason, trial_ids, signature)
        self._suspects.gone(node)
        return [self._avoided[node]]

    def judge(self, seated: Collection[str]) -> list[Avoided]:
        """Avoid the nodes that fail what goes well elsewhere; never the last one.

        Parameters
        ----------
        seated : nodes where slots are.
        """
        found: list[Avoided] = []
        there = {*self._sites} or {*seated}
        for node, blame in self._suspects.to_blame(len(there)).items():
            if any(map(self.is_open, there - {node})):
                reason = f"{len(blame.trial_ids)} trials failed there and went well elsewhere"
                found += self.avoid(node, reason, blame.trial_ids, blame.signature)
        return found

    # --- how trials do where --------------------------------------------------------------

    def reached(self, trial_id: str, node: str, step: int) -> None:
        """An attempt made a step."""
        self._suspects.reached(trial_id, node, step)

    def completed(self, trial_id: str, node: str) -> None:
        """A trial completed or diverged."""
        self._suspects.completed(trial_id, node)
        self.ended(trial_id)

    def ended(self, trial_id: str) -> None:
        """A trial needs no other attempt."""
        self._suspects.ended(trial_id)
        self._tried.pop(trial_id, None)

    def failed(self, trial_id: str, node: str, ready_at: float) -> None:
        """An attempt failed there; the trial is in line again at that time."""
        tried = self._tried.setdefault(trial_id, _Tried(set(), ready_at))
        tried.nodes.add(node)
        tried.since = ready_at

    def charge(
        self, trial_id: str, node: str, step: int, signature: str, alive: Sequence[Seat]
    ) -> bool:
        """A failure may be the node's fault; whether it matters soon how the trial does elsewhere.

        Parameters
        ----------
        step : the last that the attempt had made; -1 for none.
        """
        self._suspects.failed(trial_id, node, step, signature)
        is_more_than_one = len({node, *self._sites, *(seat.node for seat in alive)}) > 1
        return is_more_than_one and self._suspects.is_suspect(node)

    def is_to_wait(
        self,
        trial_id: str,
        node: str,
        alive: Callable[[], Sequence[Seat]],
        fits: Callable[[Seat], bool],
        now: float,
    ) -> bool:
        """Whether a trial that has failed on this node is to wait for a slot on another.

        For one of its size it waits as long as that answers; for one that may come, a while.
        """
        tried = self._tried.get(trial_id)
        if tried is None or node not in tried.nodes:
            return False
        seats = [seat for seat in alive() if self._is_other(seat.node, tried)]
        if any(map(fits, seats)):
            return True
        may_come = bool(seats) or any(self._is_other(site, tried) for site in self._sites)
        return may_come and now - tried.since < ELSEWHERE_SECONDS

    def _is_other(self, node: str, tried: _Tried) -> bool:
        return node not in tried.nodes and self.is_open(node)
