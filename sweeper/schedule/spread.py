"""A `map` over the nodes of a cluster, one call a node at a time; what is lost is done again."""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sweeper.errors import ClusterError
from sweeper.schedule.cluster import Node, joined, nodes, set_up
from sweeper.train.sources.place import data_root

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
Map = Callable[[Callable[[Item], Iterable[Result]], Iterable[Item]], Iterator[Iterable[Result]]]

TRIES = 3  # of a call whose process or node is lost
_LOOK_SECONDS = 5.0  # between two looks for nodes that have come


@contextmanager
def spread(address: str) -> Iterator[tuple[Map[Any, Any], int]]:
    """Join a cluster for as long as this lasts.

    Parameters
    ----------
    address : `host:port`, or `auto`.

    Yields
    ------
    map, n_nodes : like the built-in `map` of a function that gives several results, which arrive
        as lists in the order in which they are done; and how many nodes there are. Each call has
        all processors and GPUs of its node.

    Raises
    ------
    SweeperError : no cluster answers at the address.
    ClusterError : it has no nodes, they are lost, or a call's process is, several times.
    """
    with os.fdopen(os.dup(2), "w", buffering=1) as messages, joined(address):
        sys.stderr = messages  # and not to the file where Ray's go; `joined` puts it back
        yield _spread, len(_workers())


def _spread(
    function: Callable[[Item], Iterable[Result]], items: Iterable[Item]
) -> Iterator[list[Result]]:
    import ray

    shared = ray.put(function)
    waiting, tries = deque(items), Counter[Item]()
    running: dict[Any, tuple[Node, Item]] = {}
    while waiting or running:
        busy = {node.node_id for node, _ in running.values()}
        for node in _workers():
            if waiting and node.node_id not in busy:
                item = waiting.popleft()
                running[_start(node, shared, item)] = node, item
        done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
        for call in done:
            node, item = running.pop(call)
            try:
                yield ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                tries[item] += 1
                if tries[item] == TRIES:
                    found = f"a process was lost {TRIES} times, at last on {node}"
                    hint = "its memory may be too small: give less by `--memory`"
                    raise ClusterError("ray", found, hint=hint) from error
                waiting.appendleft(item)


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
    set_up(import_path, data)
    return list(function(item))


def _workers() -> list[Node]:
    """The nodes that have something to work with.

    Raises
    ------
    ClusterError : there are none.
    """
    found = [node for node in nodes() if node.n_cpus or node.n_gpus]
    if not found:
        hint = "what is finished is kept: run it again when the cluster has nodes"
        raise ClusterError("ray", "no node with processors or GPUs is there", hint=hint)
    return found
