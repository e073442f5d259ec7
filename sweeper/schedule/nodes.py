"""Which nodes there are, which of them are avoided, and on which a trial has failed; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field

from sweeper.schedule.executor import Avoided
from sweeper.schedule.seats import Place
from sweeper.schedule.suspects import Suspects

ELSEWHERE_SECONDS = 60.0  # that an order waits for a better node, at first
LONGEST_REST = 3600.0  # seconds that a suspect is spared, at most
MOST_EXCUSED = 8  # failures of a trial, before it is to blame wherever it was

Alive = Callable[[], Mapping[Place, bool]]  # where slots answer, and whether one there is idle
Needed = Callable[[str], int]  # how many slots of the size of a trial share a GPU of a node, or 0

_BEST = (True, True, True)  # that a node can be worth to a trial
_DOUBLINGS = 16  # of a trial's patience


@dataclass(frozen=True)
class Site:
    """A node that has room for slots, as the driver knows it; `kind` is that of its GPUs."""

    host: str
    kind: str = ""


@dataclass
class _Tried:
    """On which nodes a trial has failed, how often, and since when it is in line again."""

    nodes: set[str] = field(default_factory=set)
    n_failed: int = 0
    since: float = 0.0


@dataclass
class _Rest:
    """Until when a suspect gets nothing that has not failed yet, and how long that was."""

    until: float
    seconds: float


class Nodes:
    """The nodes of a sweep. Before the driver has told of any, every node will do."""

    def __init__(self) -> None:
        self._sites: dict[str, Site] = {}
        self._avoided: dict[str, Avoided] = {}
        self._tried: dict[str, _Tried] = {}
        self._rests: dict[str, _Rest] = {}
        self._suspects = Suspects()

    def sees(self, sites: Mapping[str, Site]) -> None:
        """Take note of what there is; by its name, a node that has gone never comes back."""
        for node in self._sites.keys() - sites.keys():
            self.gone(node)
        self._sites = dict(sites)

    def gone(self, node: str) -> None:
        """A node has gone, or goes: what failed with it is not its fault."""
        self._suspects.gone(node)
        self._rests.pop(node, None)

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
        self.gone(node)
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

    def failed(
        self, trial_id: str, node: str, step: int, signature: str, *, is_gone: bool = False
    ) -> None:
        """An attempt failed there, which may be the node's fault, unless that is gone or avoided.

        Parameters
        ----------
        step : the last that the attempt had made; -1 for none.
        is_gone : whether the node is known to have gone, or to go.
        """
        tried = self._tried.setdefault(trial_id, _Tried())
        tried.nodes.add(node)
        tried.n_failed += 1
        if not is_gone and self.is_open(node):
            self._suspects.failed(trial_id, node, step, signature)

    def waits(self, trial_id: str, since: float) -> None:
        """A trial that failed is in line again at that time."""
        if trial_id in self._tried:
            self._tried[trial_id].since = since

    def tried(self, trial_id: str) -> frozenset[str]:
        """The nodes on which a trial has failed."""
        tried = self._tried.get(trial_id)
        return frozenset(tried.nodes) if tried else frozenset()

    def matters(self, node: str, alive: Alive) -> bool:
        """Whether it matters soon how what failed on this node does elsewhere."""
        is_more_than_one = len({node, *self._sites, *(place.node for place in alive())}) > 1
        return is_more_than_one and self._suspects.is_suspect(node)

    def excused(self, trial_id: str, alive: Alive, needed: Needed) -> Set[str]:
        """The nodes on which a trial's failures show nothing of it.

        These are the ones that are not known to be sound, for as long as there is another to try it
        on that is not known to be unsound; but where nodes come and go there always is.
        """
        tried = self._tried[trial_id]
        is_left = any(self._worth(at.node, tried) == _BEST for at in alive() if needed(at.node))
        if not is_left or tried.n_failed > MOST_EXCUSED:
            return frozenset()
        return {node for node in tried.nodes if not self._suspects.is_sound(node, trial_id)}

    def is_to_wait(
        self, trial_id: str, node: str, alive: Alive, needed: Needed, now: float
    ) -> bool:
        """Whether a trial that has failed is to wait, on this node, for a slot on a better one.

        For an idle one of its size it waits as long as that answers, and so for a busy one if
        others fail here, too; else for a while, which doubles with each failure of the trial if a
        slot answers there.
        """
        tried = self._tried.get(trial_id)
        if tried is None:
            return False
        here = self._worth(node, tried)
        if here == _BEST:
            return False
        found = alive()
        better = [at for at in found if self._worth(at.node, tried) > here and needed(at.node)]
        fitting = [at for at in better if at.per_gpu == needed(at.node)]
        if any(found[place] for place in fitting):
            return True
        if self._suspects.is_doubtful(node, but=trial_id) and any(
            not self._suspects.is_doubtful(place.node) for place in fitting
        ):
            return True
        may_come = bool(better) or any(
            self._worth(site, tried) > here and needed(site) for site in self._sites
        )
        doublings = min(tried.n_failed - 1, _DOUBLINGS) if better else 0
        return may_come and now - tried.since < ELSEWHERE_SECONDS * 2.0**doublings

    def rests_for(self, node: str, alive: Alive, now: float) -> Set[str]:
        """The nodes for which a suspect is to leave what has not failed yet, if they may run it.

        They will show soon who is to blame. Now and then it is given one nevertheless, each time
        after twice as long: it may not be to blame.
        """
        others: Set[str] = frozenset()
        if self._suspects.is_suspect(node) and self._suspects.is_doubtful(node):
            others = {at.node for at in alive() if self._worth(at.node, _Tried({node})) == _BEST}
        if not others:
            self._rests.pop(node, None)
            return others
        first = _Rest(now + ELSEWHERE_SECONDS, ELSEWHERE_SECONDS)
        return others if now < self._rests.setdefault(node, first).until else frozenset()

    def gives(self, node: str, now: float) -> None:
        """A node is given an order."""
        rest = self._rests.get(node)
        if rest is not None and now >= rest.until:  # and what no other may run counts for nothing
            rest.seconds = min(2 * rest.seconds, LONGEST_REST)
            rest.until = now + rest.seconds

    def _worth(self, node: str, tried: _Tried) -> tuple[bool, bool, bool]:
        """How well a node will do for a trial: whether it is open, not doubtful, and untried."""
        is_doubtful = self._suspects.is_doubtful(node)
        return self.is_open(node), not is_doubtful, node not in tried.nodes
