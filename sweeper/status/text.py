"""What `sweeper status` says: for people on a terminal, and in one line where there is none."""

from __future__ import annotations

from collections.abc import Iterator

from sweeper.duration import duration
from sweeper.status.failures import FailureGroup
from sweeper.status.summary import Status
from sweeper.store.claim import heard
from sweeper.sweep_dir import name_of

N_GROUPS = 3  # of failures that are shown
SILENT_SECONDS = 600.0  # from which on a running trial's silence is worth a word


def status_lines(place: str, found: Status) -> Iterator[str]:
    """The status, one fact a line."""
    yield f"{place}: {found.n_planned:,} trials, {_driven(found)}"
    for state, count in found.counts.items():
        if count:
            yield f"  {state:<12}{count:>8,}"
    yield from (f"  {fact}" for fact in (_pace(found), _use(found), _beat(found)) if fact)
    for shape, n in found.packed.items():
        yield f"  {n} trials share a GPU: {shape}"
    for node in found.avoided:
        alike = f" ({node['signature']})" if node.get("signature") else ""
        how = "is" if found.driver else "was"
        yield f"  {node['host']} {how} avoided: {node['reason']}{alike}"
    for group in found.failures[:N_GROUPS]:
        yield from (f"  {line}" for line in _group(group))
    if found.failures:
        n_more = len(found.failures) - N_GROUPS
        others = f"{n_more} more kinds of failure; " if n_more > 0 else ""
        yield f"  {others}`sweeper failures {place}` tells more"
    if found.n_torn_bytes:
        yield f"  the journal's last line is torn ({found.n_torn_bytes} bytes): a crash; ignored"


def status_line(found: Status) -> str:
    """The status in one line."""
    told = ("diverged", "running", "failed", "interrupted")
    counts = [f"{found.counts[state]:,} {state}" for state in told if found.counts[state]]
    parts = [f"{found.n_ended:,}/{found.n_planned:,} trials complete", *counts, _pace(found)]
    return ", ".join(part for part in [*parts, "draining" * found.is_draining] if part)


def _driven(found: Status) -> str:
    if found.driver is None:
        return "complete" if found.is_complete else "not running"
    how = "draining, by" if found.is_draining else "driven by"
    since = f", {heard(found.driver)}" if "t" in found.driver else ""
    return f"{how} {name_of(found.driver)}{since}"


def _pace(found: Status) -> str:
    """Throughput and what is left, by work rather than by numbers."""
    parts = []
    if found.trials_per_minute:
        digits = 0 if found.trials_per_minute >= 100 else 2
        parts.append(f"{round(found.trials_per_minute, digits):,g} trials a minute")
    if found.seconds_left is not None:
        parts.append(f"{duration(found.seconds_left)} left")
    elif found.work_left:
        parts.append(f"{duration(found.work_left)} of slot time left")
    return ", ".join(parts)


def _use(found: Status) -> str:
    if found.n_gpus:
        return f"GPU share in use {found.in_use:g} of {found.n_gpus:g}"
    return f"slots {found.in_use:g} of {found.n_slots} busy" if found.n_slots else ""


def _beat(found: Status) -> str:
    beat = found.beat
    if beat is None:
        return ""
    where = " ".join(part for part in (beat.host, beat.device) if part)
    silent = "; it may hang" if beat.seconds >= SILENT_SECONDS else ""
    place = f" on {where}" if where else ""
    return f"silent for {duration(beat.seconds)}, the longest: {beat.trial}{place}{silent}"


def _group(group: FailureGroup) -> Iterator[str]:
    parts = []
    if group.n_failed:
        parts.append(f"{group.n_failed:,} failed with {group.summary}")
    if group.retried:
        more = "" if group.n_failed else f" after {group.summary}"
        parts.append(f"{len(group.retried):,} run again{more}")
    if group.interrupted:
        more = "" if parts else f" after {group.summary}"
        parts.append(f"{len(group.interrupted):,} were to be run again{more}")
    yield ", ".join(parts)
    first = ", ".join(group.trials[:4])
    yield f"  {first}{', ...' if len(group.trials) > 4 else ''}"
