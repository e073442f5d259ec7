"""One HTML page that shows a sweep's manifold, works offline, and says what it was made of."""

from __future__ import annotations

import html
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from analysis.contents import METRICS, Contents
from analysis.palette import colours, levels, named
from sweeper.durable import write_atomically

_HEADLINES = (1, 2, 3, 10)
_DIGITS = 5  # of a coordinate: a screen shows no more
_FINGERPRINT = '<meta name="sweeper-fingerprint" content="{}">'


def write_report(contents: Contents, path: Path) -> None:
    """Write the page, atomically: Plotly, data, style and provenance are all inside."""
    files = resources.files("analysis") / "page"
    parts = {name: (files / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts |= {
        "title": html.escape(contents.name),
        "distance": html.escape(contents.distance.text),
        "fingerprint": _FINGERPRINT.format(contents.about["fingerprint"]),
        "plotly": get_plotlyjs(),
        "data": _json(_data(contents)),
    }
    page = (files / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    write_atomically(path, page.encode())


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint of the provenance of a page that is there."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(_FINGERPRINT.format("([0-9a-f]+)"), file.read(4096))
    return found[1] if found else None


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")


def _data(contents: Contents) -> dict[str, Any]:
    """All that the page's script draws."""
    k = min(3, contents.n_components)
    return {
        "headlines": _headlines(contents),
        "distance": contents.distance.text,
        "axes": [contents.axis(i) for i in range(1, k + 1)],
        "points": _points(contents, k),
        "references": _references(contents, k),
        "columns": [_column(contents, name) for name in contents.varying],
        "spectrum": _spectrum(contents),
        "trials": _trials(contents),
        "left_out": contents.about["left_out"],
        "notes": contents.notes,
        "provenance": contents.about,
    }


def _headlines(contents: Contents) -> list[list[str]]:
    """Numbers and what they count."""
    asked, stress = contents.about["parameters"], contents.stress
    found = [
        [f"{len(contents.embedded_trials):,}", "trials"],
        [f"{len(contents.embedding):,}", "snapshots"],
        [f"{asked['n_samples']:,} × {asked['n_classes']}", f"{asked['split']} samples × classes"],
    ]
    shown = [k for k in _HEADLINES if k <= len(stress)]
    return found + [
        [f"{100 * stress[k - 1]:.1f} %", f"χ{k}: explained by {k} {'axis' if k == 1 else 'axes'}"]
        for k in shown
    ]


def _points(contents: Contents, k: int) -> list[dict[str, Any]]:
    """One entry a trajectory: its trial, coordinates, epochs and accuracies."""
    return [
        {
            "trial": trial_id,
            "x": [_rounded(table[f"pc{i}"]) for i in range(1, k + 1)],
            "epoch": _rounded(table["epoch"]),
            "accuracy": _rounded(table["accuracy"]),
        }
        for trial_id, table in contents.embedding.groupby("trial_id", sort=False)
    ]


def _references(contents: Contents, k: int) -> list[dict[str, Any]]:
    records = contents.references.to_dict("records")
    return [
        {"name": row["trial_id"], "x": [float(row[f"pc{i}"]) for i in range(1, k + 1)]}
        for row in records
    ]


def _column(contents: Contents, name: str) -> dict[str, Any]:
    """A configuration column: its distinct values, their colours, and which each trial has."""
    found = [_plain(value) for value in contents.embedded_trials[name]]
    distinct = levels(found)
    index = {str(value): i for i, value in enumerate(distinct)}
    return {
        "name": name,
        "values": [_shown(value) for value in distinct],
        "colours": colours(distinct),
        "of": [index[str(value)] for value in found],
    }


def _spectrum(contents: Contents) -> dict[str, Any]:
    found = contents.spectrum
    return {
        "values": _rounded(found["spectrum"][:50]),
        "stress": _rounded(contents.stress[:50]),
        "frobenius": _rounded(found["explained_frobenius"]),
        "l1": _rounded(found["explained_l1"]),
        "time_like_share": found["time_like_share"],
        "bound": found["bound"],
        "n_certified": found["n_certified"],
    }


def _trials(contents: Contents) -> dict[str, Any]:
    """The table of all trials: identity, state, metrics and the columns that vary."""
    table = contents.trials.reset_index()
    metrics = [name for name in METRICS if name in table.columns]
    names = ["trial_id", "state", "n_snapshots", *metrics, *contents.varying]
    rows = [[_cell(value) for value in row] for row in table[names].itertuples(index=False)]
    return {"names": names, "rows": rows, "kept": table["left_out"].isna().tolist()}


def _plain(value: Any) -> Any:
    """A table's cell without NumPy's types, absent as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str | int | float | None:
    value = _plain(value)
    if value is None or isinstance(value, (bool, str)):
        return _shown(value) if isinstance(value, bool) else value
    return float(f"{value:.5g}") if isinstance(value, float) else _number_or_text(value)


def _number_or_text(value: Any) -> str | int:
    return value if isinstance(value, int) else named(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return named(value)


def _rounded(values: Any) -> list[float | None]:
    return [
        float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None
        for x in np.asarray(values, dtype=float).tolist()
    ]
