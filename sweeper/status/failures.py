"""Failed trials, those that fail alike together, and what to do about them. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_LONGEST = 120  # characters of a message in one line
MOST_IDS = 10  # that a command names one by one


@dataclass(frozen=True)
class FailureGroup:
    """Trials that failed alike, the largest sweep's in the order of its plan.

    `error` and `message` are those of the first; `retried` are the ones among `trials` that the
    driver runs again, `interrupted` those that it was to run again before it ended. `kind` is empty
    in journals that know no kinds.
    """

    error: str
    message: str
    trials: tuple[str, ...]
    kind: str = ""
    signature: str = ""
    retried: tuple[str, ...] = ()
    interrupted: tuple[str, ...] = ()

    @property
    def n_failed(self) -> int:
        """How many have failed for this launch."""
        return len(self.trials) - len(self.retried) - len(self.interrupted)

    @property
    def summary(self) -> str:
        """The error in one line."""
        first = next(iter(self.message.splitlines()), "")
        short = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}..."
        return f"{self.error}: {short}" if short else self.error


def group_failures(
    states: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> tuple[FailureGroup, ...]:
    """The trials that failed or are run again after a failure, by signature, most trials first.

    Without a signature the error and its message count, in which numbers are taken as one.

    Parameters
    ----------
    states : of each trial, as `sweeper.status.states` has them.
    found : what the journal has of each (`Tally.trials`).
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for trial in states:
        last = found.get(trial)
        if last is not None and "error" in last and _is_open(states[trial], last):
            groups.setdefault(_alike(last), []).append(trial)
    ordered = sorted(groups.values(), key=lambda trials: -len(trials))
    return tuple(_group(trials, states, found) for trials in ordered)


def _is_open(state: str, last: Mapping[str, Any]) -> bool:
    """Whether a trial has failed, or has yet to show that it does not fail again."""
    if state == "failed":
        return True
    return last["state"] != "failed" and state in ("waiting", "running", "interrupted")


def _alike(last: Mapping[str, Any]) -> tuple[str, str]:
    if last.get("signature"):
        return str(last["signature"]), ""
    return str(last["error"]), _NUMBER.sub("#", str(last["message"]))


def _group(
    trials: list[str], states: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> FailureGroup:
    first = found[trials[0]]
    return FailureGroup(
        error=first["error"],
        message=first["message"],
        trials=tuple(trials),
        kind=first.get("kind", ""),
        signature=first.get("signature") or "",
        retried=tuple(trial for trial in trials if states[trial] in ("waiting", "running")),
        interrupted=tuple(trial for trial in trials if states[trial] == "interrupted"),
    )


# --- what to do -----------------------------------------------------------------------------

_ADVICE = {
    "invalid": "the configuration cannot be built: fix the grid, `sweeper plan GRID` checks it",
    "data": "its data is not on {hosts}: put it there, as the message says, then launch again",
    "oom": "it does not fit the GPU: a smaller `optim.batch_size`, or launch with `--per-gpu 1`",
    "lost": "the machine failed it, not the trial: look at {hosts}, its memory and `dmesg`",
    "storage": "see to the room and permissions of the store's disk or bucket, then launch again",
    "bug": "read the traceback: `sweeper logs {folder} {trial}`",
    "limit": "raise `--time-limit`, or look why it is slow: `sweeper logs {folder} {trial}`",
    "hung": (
        "look what it does on {hosts}: a data loader that hangs, a dead disk; where its steps "
        "are only long, a longer `--stalled-after`"
    ),
}


def advice(group: FailureGroup, folder: str, example: str, hosts: Sequence[str]) -> str:
    """What to do about a group, by its kind, and by what gave up a worker that was there."""
    where = ", ".join(hosts[:3]) if hosts else "its host"
    text = _ADVICE.get(_cause(group), _ADVICE["bug"])
    return text.format(hosts=where, folder=shlex.quote(folder), trial=example)


def _cause(group: FailureGroup) -> str:
    if group.error == "TimeLimit":
        return "limit"
    return "hung" if group.kind == "lost" and "taken to hang" in group.message else group.kind


def again(
    folder: str,
    where: Mapping[str, Any] | None = None,
    ids: Sequence[str] = (),
    states: Sequence[str] = ("failed",),
) -> str:
    """The command that runs trials in these states again: those with these values, or these."""
    command = " ".join(["sweeper resume", shlex.quote(folder), *(f"--state {s}" for s in states)])
    if where:
        return f"{command} --where {_quoted(expression(where))}"
    return " ".join([command, *(f"--id {trial}" for trial in ids)])


def expression(values: Mapping[str, Any]) -> str:
    """The `--where` that holds where all of these values are."""
    return " and ".join(f"{name} == {_literal(value)}" for name, value in values.items())


def _literal(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _quoted(text: str) -> str:
    """In a shell's double quotes, where these leave the text alone."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
