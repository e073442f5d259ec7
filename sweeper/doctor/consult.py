"""The whole of `sweeper doctor`: what the driver's machine shows, and every node of a cluster."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sweeper.doctor.demands import check_devices
from sweeper.doctor.examine import Question, examine
from sweeper.doctor.finding import SLOW, Check, Finding, passed, refused, run_checks, warned
from sweeper.doctor.machine import size
from sweeper.doctor.nodes import ask_nodes, names_of
from sweeper.doctor.place import UNREACHED, Mark, marked
from sweeper.doctor.software import SLOW_IMPORT
from sweeper.errors import SweeperError

if TYPE_CHECKING:
    from sweeper.plan import Plan
    from sweeper.schedule.cluster import Node

T = TypeVar("T")
Planning = Callable[[], "tuple[Plan, str, int]"]

HERE = "where sweeper runs"  # the heading of what is no node's
SECONDS = 15.0  # for one machine, but for the time that the plan of a large grid takes
STORE_SECONDS = 5.0  # for the store to take a mark, or to let it be removed
IMPORT_SECONDS = 7.0  # for PyTorch, before the plan needs it
PLAN_SECONDS = 60.0  # that 100,000 trials may take
LEAST_SECONDS = 6.0  # for a machine's own checks, whatever took how long before
ANSWER_SECONDS = 45.0  # for a node of a cluster: most of it to start a worker, where it is busy


def consult(
    planning: Planning | None, root: str | None, address: str | None
) -> tuple[dict[str, list[Finding]], int]:
    """What is found, by the node's name, and how many nodes there are.

    Parameters
    ----------
    planning : makes a grid's plan; also the root of its store, and the processors of a slot.
    root : of the store, where it is known without the plan.
    address : of a cluster to ask; None for this machine.
    """
    here: list[Finding] = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        mark = _left(here, stack, root)
        if planning and (why := _unplannable(root, mark)) is not None:
            here.append(why)
            planning = None
        made, threads = None, 1
        planned = _tried(here, "grid", planning, PLAN_SECONDS) if planning else None
        if planned is not None:
            made, place, threads = planned
            mark = mark or _left(here, stack, place)
            look = Check(lambda: check_plan(made, place), place)
            here += run_checks(STORE_SECONDS, {"room": look})
        question = Question.of(made, threads, mark)
        if address is None:
            seconds = max(LEAST_SECONDS, started + SECONDS - time.monotonic())
            here += _gpus_for(made, _n_gpus_here)
            return {HERE: here + examine(question, seconds).findings}, 1
        try:
            there = _on_cluster(address, question)
        except SweeperError as error:
            return {HERE: [*here, refused("cluster", error)]}, 0
    here += _cluster(list(there), made, threads)
    names = names_of(list(there))
    return {HERE: here, **{names[node]: found for node, found in there.items()}}, len(there)


def _unplannable(root: str | None, mark: Mark | None) -> Finding | None:
    """Why a grid is not to be planned, if so."""
    if root and not mark:
        return warned("grid", "not planned: its store cannot be used", "")
    if _is_imported("torch"):
        return None
    text = f"not planned: importing PyTorch takes more than {IMPORT_SECONDS:.0f} s"
    return warned("grid", text, SLOW_IMPORT)


def _is_imported(name: str) -> bool:
    """Whether a library is imported in time, or fails to be, which whoever needs it says."""

    def run() -> None:
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(IMPORT_SECONDS)
    return not thread.is_alive()


def _tried(
    here: list[Finding],
    name: str,
    make: Callable[[], T],
    seconds: float,
    place: str = "",
    cure: str = SLOW,
) -> T | None:
    """What is made; None where that fails or takes too long, which is then a finding."""
    made: list[T] = []

    def run() -> Iterator[Finding]:
        made.append(make())
        yield from ()

    here += run_checks(seconds, {name: Check(run, place, "fail", cure)})
    return made[0] if made else None


def _left(here: list[Finding], stack: contextlib.ExitStack, root: str | None) -> Mark | None:
    """The mark that the driver could leave in the store's place, until the stack is unwound."""
    if root is None:
        return None
    own = contextlib.ExitStack()
    enter = partial(own.enter_context, marked(root))
    mark = _tried(here, "store", enter, STORE_SECONDS, root, UNREACHED)
    # In a thread: a place that has fallen silent is not waited for for ever.
    stack.callback(_tried, [], "store", own.close, STORE_SECONDS)
    return mark


def check_plan(made: Plan, root: str) -> Iterator[Finding]:
    """What a plan needs, against what is free where its store is."""
    from sweeper.room import check_room, free_room

    yield passed("grid", f"{len(made.trials):,} trials, {len(made.todo):,} to run")
    if not made.todo or "://" in root:
        return
    needed, free = made.room, free_room(Path(root))
    cure = "a --sweep-dir or --store with more room"
    warnings = check_room(root, needed, free, force=False)
    for text in warnings:
        yield warned("room", text.removeprefix("warning: "), cure)
    if not warnings:
        text = f"{size(needed.n_bytes or 0)} needed, {size(free.n_bytes or 0)} free"
        if free.n_files is not None:
            text += f"; {needed.n_files:,} files of {free.n_files:,}"
        yield passed("room", text)


def _gpus_for(made: Plan | None, n_gpus: Callable[[], int]) -> list[Finding]:
    def check() -> Iterator[Finding]:
        if made is not None:
            check_devices(made.todo, n_gpus())
        yield from ()

    return run_checks(LEAST_SECONDS, {"precision": Check(check, "asking PyTorch for GPUs")})


def _n_gpus_here() -> int:
    if util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def _on_cluster(address: str, question: Question) -> dict[Node, list[Finding]]:
    for name in ("torch", "ray"):
        if util.find_spec(name) is None:
            hint = "`pip install sweeper` brings it"
            raise SweeperError("--address", f"{name} is not installed here", "both", hint)
    from sweeper.schedule.cluster import joined

    with joined(address):
        return ask_nodes(question, ANSWER_SECONDS)


def _cluster(nodes: Sequence[Node], made: Plan | None, threads: int) -> list[Finding]:
    """What the nodes have together."""
    n_slots, n_gpus = sum(node.n_cpus // threads for node in nodes), sum(n.n_gpus for n in nodes)
    text = f"{len(nodes)} nodes, room for {n_slots} slots, {n_gpus} GPUs"
    if not n_slots:
        cure = "start Ray with `--num-cpus`; a cluster that grows starts nodes for `--slots N`"
        return [warned("cluster", f"{text}: no node has {threads} processors for a slot", cure)]
    return [passed("cluster", text), *_gpus_for(made, lambda: n_gpus)]
