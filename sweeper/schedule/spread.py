"""A `map` over the nodes of a cluster, one call a node at a time; what is lost is done again.

Nodes differ, come and go. Each is asked once what it has, those that come later when they come, and
gets calls if that will do.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sweeper.errors import ClusterError, first_line
from sweeper.say import say
from sweeper.schedule.cluster import Node, joined, nodes, set_up
from sweeper.train.sources.place import data_root

Answer = TypeVar("Answer")
Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
Unfit = Callable[[Any], str]  # given a node's answer, why it gets no calls; empty if it does
Map = Callable[
    [Callable[[Item], Iterable[Result]], Iterable[Item], Unfit], Iterator[Iterable[Result]]
]
Ask = Callable[[Callable[[], Answer]], Sequence[tuple[str, Answer]]]

TRIES = 3  # of a call whose process or node is lost
_LOOK_SECONDS = 5.0  # between two looks for nodes that have come
_OTHERS_SECONDS = 60.0  # in which nodes answer that are not busy, once one has


@contextmanager
def spread(address: str) -> Iterator[tuple[Map[Any, Any], Ask[Any]]]:
    """Join a cluster for as long as this lasts.

    Parameters
    ----------
    address : `host:port`, or `auto`.

    Yields
    ------
    map, ask : `ask`, which comes first, calls a function on every node that is not busy, and
        returns the nodes' names and what they have answered. `map` is like the built-in, of a
        function that gives several results, which arrive as lists in the order in which they are
        done; a node of whose answer the third argument says that it is unfit has no part in it.
        Each call has all processors and GPUs that Ray has on its node, and sees no other GPUs.

    Raises
    ------
    SweeperError : no cluster answers at the address.
    ClusterError : it has no nodes or no fit ones, they are lost, or a call's process is, several
        times.
    """
    with os.fdopen(os.dup(2), "w", buffering=1) as messages, joined(address):
        sys.stderr = messages  # and not to the file where Ray's go; `joined` puts it back
        workers = _Workers()
        yield workers.map, workers.ask


class _Workers:
    """The nodes that have something to work with, and what they have answered."""

    def __init__(self) -> None:
        self._question: Any = None
        self._asked: dict[Any, Node] = {}  # by the call that has not returned
        self._answers: dict[str, Any] = {}  # by the node's id, as what follows
        self._problems: dict[str, Exception] = {}
        self._lost = Counter[str]()

    def ask(self, question: Callable[[], Answer]) -> list[tuple[str, Answer]]:
        """See `spread`."""
        import ray

        self._question = ray.put(functools.partial(_answer, question))
        deadline = math.inf
        while True:
            there = self._there()
            answered = [node for node in there if node.node_id in self._answers]
            if answered:
                deadline = min(deadline, time.monotonic() + _OTHERS_SECONDS)
                if not self._asked or time.monotonic() >= deadline:
                    break
            elif not self._asked:
                raise self._problems[there[-1].node_id]
            done, _ = ray.wait(list(self._asked), timeout=_LOOK_SECONDS)
            for call in done:
                self._hear(call)
        for node in there:
            if node.node_id in self._problems:
                say(f"{node} is not used: {first_line(self._problems[node.node_id])}")
        return [(str(node), self._answers[node.node_id]) for node in answered]

    def map(
        self, function: Callable[[Item], Iterable[Result]], items: Iterable[Item], unfit: Unfit
    ) -> Iterator[list[Result]]:
        """See `spread`."""
        import ray

        shared = ray.put(function)
        waiting, tries = deque(items), Counter[Item]()
        running: dict[Any, tuple[Node, Item]] = {}
        while waiting or running:
            busy = {node.node_id for node, _ in running.values()}
            there = self._there()
            for node in there:
                if waiting and node.node_id not in busy and self._why_not(node, unfit) == "":
                    item = waiting.popleft()
                    running[_start(node, shared, item)] = node, item
            if not running and not self._asked:
                left = ", ".join(f"{node}: {self._why_not(node, unfit)}" for node in there)
                hint = "what is finished is kept: run it again, for the nodes that are there"
                raise ClusterError("ray", f"no fit node is left ({left})", hint=hint)
            done, _ = ray.wait([*running, *self._asked], timeout=_LOOK_SECONDS)
            for call in done:
                if call in self._asked:
                    node = self._hear(call)
                    if reason := self._why_not(node, unfit):
                        say(f"{node} is not used: {reason}")
                    continue
                node, item = running.pop(call)
                try:
                    yield ray.get(call)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    tries[item] += 1
                    if tries[item] == TRIES:
                        raise _lost(node) from error
                    waiting.appendleft(item)

    def _there(self) -> list[Node]:
        """The nodes that are there; those that have come are asked.

        Raises
        ------
        ClusterError : there are none.
        """
        found = [node for node in nodes() if node.n_cpus or node.n_gpus]
        if not found:
            hint = "what is finished is kept: run it again when the cluster has nodes"
            raise ClusterError("ray", "no node with processors or GPUs is there", hint=hint)
        asked = {node.node_id for node in self._asked.values()}
        for node in found:
            if node.node_id not in asked | self._answers.keys() | self._problems.keys():
                self._asked[_start(node, self._question, None)] = node
        return found

    def _hear(self, call: Any) -> Node:
        """Take note of what a node has answered, or of why it cannot; one that is lost is not."""
        import ray

        node = self._asked.pop(call)
        try:
            [self._answers[node.node_id]] = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            self._problems[node.node_id] = error.cause
        except ray.exceptions.RayError:
            self._lost[node.node_id] += 1
            if self._lost[node.node_id] == TRIES:
                self._problems[node.node_id] = _lost(node)
        return node

    def _why_not(self, node: Node, unfit: Unfit) -> str | None:
        """Why a node gets no calls; empty if it does, None if that is not known yet."""
        if node.node_id in self._problems:
            return first_line(self._problems[node.node_id])
        if node.node_id in self._answers:
            return unfit(self._answers[node.node_id])
        return None


def _answer(question: Callable[[], Answer], nothing: None) -> list[Answer]:
    return [question()]


def _lost(node: Node) -> ClusterError:
    found = f"a process was lost {TRIES} times, at last on {node}"
    return ClusterError("ray", found, hint="its memory may be too small: give less by `--memory`")


def _start(node: Node, function: Any, item: Any) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(_call).options(
        num_cpus=node.n_cpus,
        num_gpus=node.n_gpus,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
    )
    return task.remote(list(sys.path), str(data_root()), function, item)


def _call(
    import_path: Sequence[str], data: str, function: Callable[[Any], Iterable[Any]], item: Any
) -> list[Any]:
    """On a node: all results of a call."""
    import ray

    set_up(import_path, data)
    # By itself Ray hides no GPU from a call that has none.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, ray.get_gpu_ids()))
    return list(function(item))
