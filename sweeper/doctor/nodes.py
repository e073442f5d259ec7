"""What every node of a cluster finds, and what only shows between it and the driver."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sweeper.doctor.examine import Question, Reply, examine
from sweeper.doctor.finding import Finding, failed, passed, warned
from sweeper.doctor.place import unseen, unseen_finding

if TYPE_CHECKING:
    from sweeper.schedule.cluster import Answer, Node

LOOKING = 1 / 3  # of a node's time is for what it looks at, the rest to start a worker
CLOCK_SECONDS = 3.0  # for a node that has just answered
SKEW_WARNED, SKEW_FAILED = 1.0, 30.0  # seconds; a driver's heartbeat counts as dead after 60

_CLOCK = "have chrony or ntpd set its clock: a driver that seems dead may be replaced"
_NO_CLOCK = warned("clock", f"not told within {CLOCK_SECONDS:.0f} s: the node is busy", _CLOCK)
_NO_ANSWER = (
    "see that the node is up and not overloaded, and that sweeper and what it needs are installed "
    "alike on every node"
)


def ask_nodes(question: Question, seconds: float) -> dict[Node, list[Finding]]:
    """What every node of the cluster that this process has joined finds.

    Parameters
    ----------
    seconds : in which a node must start a worker, look, and answer.
    """
    from sweeper.schedule.cluster import ask_every_node

    answers = ask_every_node(partial(examine, question, LOOKING * seconds), seconds)
    found = {answer.node: _said(answer) for answer in answers}
    for node, finding in _unseen(question, answers):
        found[node].append(finding)
    clocks = dict(_clocks())
    for answer in answers:
        if answer.said is not None:
            found[answer.node].append(clocks.get(answer.node, _NO_CLOCK))
    return found


def _said(answer: Answer[Reply]) -> list[Finding]:
    if answer.said is None:
        return [failed("node", answer.problem, _NO_ANSWER)]
    return list(answer.said.findings)


def _unseen(question: Question, answers: Sequence[Answer[Reply]]) -> Iterator[tuple[Node, Finding]]:
    """The nodes that wrote, as they say, what the driver does not see."""
    mark = question.mark
    if mark is None:
        return
    said = [(answer.said, answer.node) for answer in answers if answer.said is not None]
    names = {reply.name: node for reply, node in said if _wrote(reply)}
    for name in unseen(mark, names):
        yield names[name], unseen_finding(mark)


def _wrote(reply: Reply) -> bool:
    """Whether a node says that it could write to the store."""
    verdicts = [found.verdict for found in reply.findings if found.check == "store"]
    return bool(verdicts) and "fail" not in verdicts


def _clocks() -> Iterator[tuple[Node, Finding]]:
    """How far each node's clock is from the driver's.

    A node reads its clock at some moment of the round trip: only what is beyond is certain.
    """
    from sweeper.schedule.cluster import ask_every_node

    before = time.time()
    answers = ask_every_node(time.time, CLOCK_SECONDS)
    after = time.time()
    for answer in answers:
        if answer.said is not None:
            yield answer.node, clock(answer.said, before, after)


def clock(said: float, before: float, after: float) -> Finding:
    """What a clock that showed `said` between two moments of ours is worth, all in seconds."""
    ahead = said - after if said > after else min(said - before, 0.0)
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the driver's"
    if abs(ahead) > SKEW_FAILED:
        return failed("clock", text, _CLOCK)
    if abs(ahead) > SKEW_WARNED:
        return warned("clock", text, _CLOCK)
    seen_within = math.ceil(max(after - before, SKEW_WARNED))
    return passed("clock", f"within {seen_within} s of the driver's")


def names_of(nodes: Sequence[Node]) -> Mapping[Node, str]:
    """A name for each node; a host's several nodes are told apart by their ids."""
    names = [str(node) for node in nodes]
    return {
        node: name if names.count(name) == 1 else f"{name} {node.node_id[:6]}"
        for node, name in zip(nodes, names, strict=True)
    }
