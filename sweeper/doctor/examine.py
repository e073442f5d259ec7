"""What is looked at on one node: all of it for `doctor`, what costs little for `launch`."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeper.doctor.clashes import check_clusters, check_ray_folder
from sweeper.doctor.finding import Check, Finding, run_checks
from sweeper.doctor.gpus import check_gpus
from sweeper.doctor.inputs import check_data, check_plug_ins
from sweeper.doctor.machine import (
    check_memory,
    check_open_files,
    check_shared_memory,
    check_temporary,
)
from sweeper.doctor.place import Mark, check_place
from sweeper.doctor.software import (
    Versions,
    check_alike,
    check_kernels,
    check_torch,
    check_versions,
    versions,
)
from sweeper.plan import Plan, plug_in_hashes
from sweeper.sections import DataConfig

NODE_SECONDS = 12.0  # for all checks of a node


@dataclass(frozen=True)
class Question:
    """What a node is asked.

    Parameters
    ----------
    versions : what the driver runs.
    threads : processors that a slot has.
    data : the data sets of the sweep.
    plug_ins : of the sweep, `source_hash` of each on the driver's side.
    mark : in the place of the sweep's store; None where there is none, or not even the driver
        can write there.
    briefly : whether only what costs little is looked at, and only what is wrong matters.
    """

    versions: Versions
    threads: int = 1
    data: tuple[DataConfig, ...] = ()
    plug_ins: Mapping[str, str] = field(default_factory=dict)
    mark: Mark | None = None
    briefly: bool = False

    @classmethod
    def of(
        cls, made: Plan | None, threads: int, mark: Mark | None, briefly: bool = False
    ) -> Question:
        """What to ask for a plan's trials that are left to run."""
        todo = made.todo if made is not None else ()
        data = tuple(dict.fromkeys(trial.config.data for trial in todo))
        return cls(versions(), threads, data, plug_in_hashes(todo), mark, briefly)


@dataclass(frozen=True)
class Reply:
    """What a node found, and the name of the mark that it left."""

    findings: list[Finding]
    name: str


def examine(question: Question, seconds: float = NODE_SECONDS) -> Reply:
    """Look at this node."""
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
    checks: dict[str, Check] = _brief(question) if question.briefly else _all(question)
    if question.mark is not None:
        mark = question.mark
        checks["store"] = lambda: check_place(mark, name)
    return Reply(run_checks(checks, seconds), name)


def _brief(question: Question) -> dict[str, Check]:
    return {
        "versions": lambda: check_alike(question.versions),
        "plug-ins": lambda: check_plug_ins(question.plug_ins),
        "data": lambda: check_data(question.data, verify=False),
    }


def _all(question: Question) -> dict[str, Check]:
    return {
        "versions": lambda: check_versions(question.versions),
        "memory": lambda: check_memory(question.threads),
        "open files": check_open_files,
        "shared memory": check_shared_memory,
        "temporary files": check_temporary,
        "ray's folder": check_ray_folder,
        "ray clusters": check_clusters,
        "torch": lambda: check_torch(question.versions),
        "distances": check_kernels,
        "gpu": check_gpus,
        "plug-ins": lambda: check_plug_ins(question.plug_ins),
        "data": lambda: check_data(question.data, verify=True),
    }
