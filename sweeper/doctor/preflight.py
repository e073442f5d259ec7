"""What `launch` looks at itself: here, and on a cluster that it has joined, before trials run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeper.doctor.demands import check_devices, check_time_limit
from sweeper.doctor.examine import Question
from sweeper.doctor.finding import Finding
from sweeper.doctor.nodes import ask_nodes, names_of
from sweeper.doctor.place import marked
from sweeper.doctor.report import Found, fold, named
from sweeper.errors import PlanError
from sweeper.journal import Tally
from sweeper.plan import Plan
from sweeper.sweep_dir import SweepDir
from sweeper.work import Rates

if TYPE_CHECKING:
    from sweeper.schedule.cluster import Node

ANSWER_SECONDS = 60.0  # in which a node must answer: one that is busy is no reason to give up


def check_demands(
    folder: SweepDir, made: Plan, address: str | None, time_limit: float | None
) -> None:
    """Refuse what cannot be had, as far as it is known before anything is started.

    Parameters
    ----------
    address : of the cluster that is to be joined; None for this machine alone.
    time_limit : seconds that a trial may run; None for no limit.

    Raises
    ------
    SweeperError
    """
    import torch

    if address is None:
        check_devices(made.todo, torch.cuda.device_count())
    if time_limit is not None:
        known = Tally.read(folder.status, folder.journal).trials
        check_time_limit(made, Rates(made.work, known), time_limit)


@dataclass(frozen=True)
class Preflight:
    """What is about to be launched.

    Parameters
    ----------
    root : of its store.
    threads : processors that a slot has.
    may_grow : whether the cluster may get nodes that it has not yet.
    force : whether to go on although a check fails; not where the store is another on each node.
    say : told of what is only worth a warning.
    """

    made: Plan
    root: str
    threads: int
    may_grow: bool
    force: bool
    say: Callable[[str], None]

    def __call__(self, nodes: Sequence[Node]) -> None:
        """Refuse a cluster on which the sweep would fail.

        Raises
        ------
        PlanError : naming the nodes and the cure of the first thing that is wrong.
        """
        if not self.may_grow and not self.force:
            check_devices(self.made.todo, sum(node.n_gpus for node in nodes))
        with marked(self.root) as mark:
            question = Question.of(self.made, self.threads, mark, briefly=True)
            found = ask_nodes(question, ANSWER_SECONDS)
        names = names_of(list(found))
        roomy = with_slots(list(found), self.threads)
        if not roomy:
            self.say(
                "no node for trials yet: of those that join, the code is checked when a slot starts"
            )
        self.judge({names[node]: found[node] for node in roomy})

    def judge(self, found: Found) -> None:
        """Refuse what the nodes that can run trials have found, by name, or warn of it.

        Raises
        ------
        PlanError : see `__call__`.
        """
        lines = [
            (named(nodes, len(found)), finding)
            for nodes, findings in fold(found)
            for finding in findings
            if finding.verdict != "pass"
        ]
        failures = [line for line in lines if line[1].verdict == "fail"]
        failures.sort(key=lambda line: line[1].check != "store")
        if failures and not (self.force and failures[0][1].check != "store"):
            raise _refusal(*failures[0], len(failures))
        for where, finding in lines:
            self.say(f"warning: {where}: {finding.text}")


def _refusal(where: str, finding: Finding, n_failures: int) -> PlanError:
    rest = [] if finding.check == "store" else ["`--force` goes on all the same"]
    if n_failures > 1:
        rest.append(f"`sweeper doctor GRID --address …` shows this and {n_failures - 1} more")
    return PlanError(where, finding.text, hint="; ".join([*filter(None, [finding.cure]), *rest]))


def with_slots(nodes: Sequence[Node], threads: int) -> list[Node]:
    """The nodes that slots can be on: where there are GPUs, those that have some."""
    roomy = [node for node in nodes if node.n_cpus >= threads]
    return [node for node in roomy if node.n_gpus] or roomy
