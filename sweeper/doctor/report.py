"""Findings of many nodes in few lines: what is alike is said once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from sweeper.doctor.finding import Finding

Found = Mapping[str, Sequence[Finding]]  # by the node's name
Groups = list[tuple[tuple[str, ...], list[Finding]]]

_SHOWN = 3  # names of nodes in a heading
_MEASURED = re.compile(r"([0-9][0-9,.]*)(?= (?:ms|s|%|MiB|GiB|files|processors)\b)")
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def fold(found: Found) -> Groups:
    """What several nodes found alike, once, under all of their names.

    Findings are alike when they differ at most in measurements, numbers with a unit behind them;
    these become a range.
    """
    alike: dict[tuple[str, ...], dict[str, Finding]] = {}
    for node, findings in found.items():
        for finding in findings:
            key = (*_key(finding),)
            alike.setdefault(key, {}).setdefault(node, finding)
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for of_node in alike.values():
        first = next(iter(of_node.values()))
        text = _ranges([finding.text for finding in of_node.values()])
        folded = Finding(first.check, first.verdict, text, first.cure)
        groups.setdefault(tuple(of_node), []).append(folded)
    return list(groups.items())


def _key(finding: Finding) -> Iterator[str]:
    yield from (finding.check, finding.verdict, _MEASURED.sub("#", finding.text), finding.cure)


def _ranges(texts: Sequence[str]) -> str:
    """The texts as one, each measurement from its least to its greatest."""
    columns = iter(zip(*(_MEASURED.findall(text) for text in texts), strict=True))

    def between(_: re.Match[str]) -> str:
        ordered = sorted(set(next(columns)), key=lambda number: float(number.replace(",", "")))
        return f"{ordered[0]}–{ordered[-1]}" if len(ordered) > 1 else ordered[0]

    return _MEASURED.sub(between, texts[0])


def named(nodes: Sequence[str], n_nodes: int) -> str:
    """Some of the nodes, in a few words."""
    if len(nodes) == 1:
        return nodes[0]
    if len(nodes) == n_nodes:
        return f"all {n_nodes} nodes"
    more = len(nodes) - _SHOWN
    names = [*nodes[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
    return f"{len(nodes)} nodes: {', '.join(names)}"


def verdict_of(found: Found) -> str:
    """The worst verdict there is."""
    verdicts = {finding.verdict for findings in found.values() for finding in findings}
    return next((verdict for verdict in ("fail", "warn") if verdict in verdicts), "pass")


def fields(found: Found) -> dict[str, Any]:
    """The findings for scripts: nothing folded, in the order of nodes and checks."""
    rows = [
        {
            "node": node,
            "check": finding.check,
            "verdict": finding.verdict,
            "text": finding.text,
            "cure": finding.cure,
        }
        for node, findings in found.items()
        for finding in findings
    ]
    return {"verdict": verdict_of(found), "findings": rows}


def show(found: Found, n_nodes: int, stream: TextIO) -> None:
    """Print the findings, a line each and one for its cure, in colour on a terminal that has it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True)
    groups = fold(found)
    width = max((len(finding.check) for _, findings in groups for finding in findings), default=0)
    for nodes, findings in groups:
        console.print(Text(named(nodes, n_nodes), "bold"))
        for finding in findings:
            line = Text("  ").append(finding.verdict, _STYLES[finding.verdict])
            console.print(line.append(f"  {finding.check:<{width}}  {finding.text}"))
            if finding.cure:
                console.print(Text(f"{'':<{width + 10}}hint: {finding.cure}"))
    console.print(Text(_summary(groups)))


def _summary(groups: Groups) -> str:
    verdicts = [finding.verdict for _, findings in groups for finding in findings]
    counts = {verdict: verdicts.count(verdict) for verdict in ("fail", "warn", "pass")}
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
