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
from sweeper.doctor.place import UNREACHED, Mark, check_place
from sweeper.doctor.software import (
    SLOW_IMPORT,
    Versions,
    check_alike,
    check_import,
    check_kernels,
    check_versions,
    versions,
)
from sweeper.plan import Plan, plug_in_hashes
from sweeper.sections import DataConfig

Lane = dict[str, Check]  # checks that run one after another


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


def examine(question: Question, seconds: float) -> Reply:
    """Look at this node, for at most so long."""
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
    lanes = [_brief(question)] if question.briefly else _all(question)
    if question.mark is not None:
        mark = question.mark
        look = Check(lambda: check_place(mark, name), mark.place, "fail", UNREACHED)
        lanes.append({"store": look})
    return Reply(run_checks(seconds, *lanes), name)


def _brief(question: Question) -> Lane:
    return {
        "versions": Check(lambda: check_alike(question.versions)),
        **_inputs(question, verify=False),
    }


def _all(question: Question) -> list[Lane]:
    """What imports PyTorch is one lane: it is imported once, and two threads would get mixed up."""
    machine = {
        "versions": Check(lambda: check_versions(question.versions)),
        "memory": Check(lambda: check_memory(question.threads)),
        "open files": Check(check_open_files),
        "shared memory": Check(check_shared_memory),
        "temporary files": Check(check_temporary),
        "ray's folder": Check(check_ray_folder),
        "ray clusters": Check(check_clusters),
    }
    libraries = {
        "torch": _imported("torch", question),
        "distances": Check(check_kernels, "importing its kernels", cure=SLOW_IMPORT),
        **_inputs(question, verify=True),
        "torchvision": _imported("torchvision", question),  # the slowest, which holds up no other
    }
    return [machine, libraries, {"gpu": Check(check_gpus, "PyTorch with this machine's GPUs")}]


def _imported(name: str, question: Question) -> Check:
    return Check(lambda: check_import(name, question.versions), "importing it", cure=SLOW_IMPORT)


def _inputs(question: Question, verify: bool) -> Lane:
    plug_ins = Check(lambda: check_plug_ins(question.plug_ins), "importing them")
    data = Check(lambda: check_data(question.data, verify), "reading it")
    return {"plug-ins": plug_ins, "data": data}
