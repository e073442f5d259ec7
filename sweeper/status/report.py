"""What `sweeper failures` says of each group of failures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sweeper.plan import planned_configs
from sweeper.status.affected import Axes, in_words
from sweeper.status.failures import MOST_IDS, FailureGroup, advice, again, group_failures
from sweeper.status.logs import essence, last_lines
from sweeper.status.states import ENDED, Seen
from sweeper.store.root import Root
from sweeper.sweep_dir import SweepDir

N_LINES = 8  # of a log that are shown
N_GROUPS = 20  # that are shown to people


@dataclass(frozen=True)
class Report:
    """A group of failures, and what helps to understand and cure it.

    `affected` says which trials they are by the values of the axes; `hosts` where they failed, out
    of `n_hosts` that the sweep has used; `log` are the last lines of the first one's log that
    matter. `again`
    is the command that runs them again, and with them `n_more` that failed otherwise.
    """

    group: FailureGroup
    affected: str
    hosts: tuple[str, ...]
    n_hosts: int
    example: str
    log: str
    advice: str
    again: str
    n_more: int

    def fields(self) -> dict[str, Any]:
        """Itself for `--json`."""
        found = asdict(self)
        return {"n_trials": len(self.group.trials), **found.pop("group"), **found}


def reports(
    folder: SweepDir,
    seen: Seen,
    only: Collection[str] | None = None,
    n_groups: int | None = N_GROUPS,
) -> tuple[list[Report], int]:
    """The reports of the largest groups, and how many groups there are.

    Parameters
    ----------
    seen : all planned trials, which tell whether a value is that of failed trials alone.
    only : the trials to report on; None for all.
    n_groups : at most so many reports; None for all.
    """
    groups = group_failures(seen.states, seen.tally.trials)
    wanted = [(_restricted(group, only), group) for group in groups]
    wanted = sorted((pair for pair in wanted if pair[0].trials), key=lambda p: -len(p[0].trials))
    if not wanted:
        return [], 0
    axes = Axes(list(seen.states), planned_configs(folder.plan))
    about = _About(folder, Root(folder.root()), axes, seen)
    return [_report(about, group, whole) for group, whole in wanted[:n_groups]], len(wanted)


def _restricted(group: FailureGroup, only: Collection[str] | None) -> FailureGroup:
    if only is None:
        return group
    trials = tuple(trial for trial in group.trials if trial in only)
    return replace(
        group,
        trials=trials,
        retried=tuple(trial for trial in group.retried if trial in only),
        interrupted=tuple(trial for trial in group.interrupted if trial in only),
    )


@dataclass(frozen=True)
class _About:
    """What all reports of a sweep are made of."""

    folder: SweepDir
    root: Root
    axes: Axes
    seen: Seen


def _report(about: _About, group: FailureGroup, whole: FailureGroup) -> Report:
    states, tallied = about.seen.states, about.seen.tally.trials
    place = str(about.folder.path)
    alike, retried = set(whole.trials), set(group.retried)
    others = [trial for trial in states if trial not in alike]
    ended = [t for t in others if states[t] in ENDED]
    unended = [t for t in others if states[t] not in ENDED]
    hosts = {str(tallied[trial].get("host") or "") for trial in group.trials}
    failed = [trial for trial in group.trials if trial not in retried]
    example = (failed or group.trials)[0]
    command, n_more = _again(about, place, failed, group)
    return Report(
        group=group,
        affected=in_words(about.axes, group.trials, ended, unended),
        hosts=tuple(sorted(hosts - {""})),
        n_hosts=len(about.seen.tally.hosts),
        example=example,
        log=last_lines(essence(about.root.read_log(example)), N_LINES).rstrip(),
        advice=advice(group, place, example, sorted(hosts - {""})),
        again=command,
        n_more=n_more,
    )


def _again(
    about: _About, place: str, failed: Sequence[str], group: FailureGroup
) -> tuple[str, int]:
    """The command for these trials, and how many others it runs, if it can only be short.

    Empty where the driver runs all of them again.
    """
    if not failed:
        return "", 0
    inside = set(failed)
    states = ["failed"] * bool(group.n_failed) + ["interrupted"] * bool(group.interrupted)
    rivals = [t for t, s in about.seen.states.items() if s in states and t not in inside]
    values, n_more = about.axes.tell_apart(failed, rivals)
    if (n_more or len(values) > len(failed)) and len(failed) <= MOST_IDS:
        return again(place, ids=failed, states=states), 0
    return again(place, where=values, states=states), n_more


def report_lines(place: str, found: Sequence[Report], n_groups: int) -> Iterator[str]:
    """The reports for people."""
    n_failed = sum(report.group.n_failed for report in found)
    n_retried = sum(len(report.group.retried) for report in found)
    parts = [f"{n_failed:,} trials failed" if n_failed else "no trial has failed for good"]
    parts += [f"{n_retried:,} are run again"] if n_retried else []
    n_interrupted = sum(len(report.group.interrupted) for report in found)
    parts += [f"{n_interrupted:,} were to be run again"] if n_interrupted else []
    yield f"{place}: {', '.join(parts)}, for {n_groups:,} reason{'s' * (n_groups != 1)}"
    for report in found:
        yield ""
        yield from _lines(report)
    if n_groups > len(found):
        yield ""
        yield f"{n_groups - len(found):,} more reasons; `--json` has them all"


def _lines(report: Report) -> Iterator[str]:
    group = report.group
    kind = f" [{group.kind}]" if group.kind else ""
    yield f"{len(group.trials):,} × {group.summary}{kind}"
    if group.retried:
        yield f"  of these     {len(group.retried):,} run again by themselves"
    if group.interrupted:
        yield f"  of these     {len(group.interrupted):,} were to be run again: launch does"
    yield f"  affected     {report.affected}"
    if len(report.hosts) == 1 and report.n_hosts > 1:
        yield f"  host         all on {report.hosts[0]}, one of {report.n_hosts} hosts"
    yield f"  example      {report.example}"
    for line in report.log.splitlines():
        yield f"    | {line}"
    yield f"  what to do   {report.advice}"
    if report.again:
        yield f"  run again    {report.again}"
    if report.n_more:
        yield f"               (and {report.n_more:,} {_others(group)})"


def _others(group: FailureGroup) -> str:
    """What else a group's command runs."""
    return "that did not end for other reasons" if group.interrupted else "that failed otherwise"
