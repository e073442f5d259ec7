"""The main views as PNG: trajectories, spectrum, accuracy."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.contents import Contents
from analysis.palette import FAINT, GRID, INK, SPACE_LIKE, TIME_LIKE, colours, levels, named
from sweeper.durable import write_atomically

FIGURES = ("trajectories-3d.png", "trajectories.png", "spectrum.png", "accuracy.png")

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
_MARKS = {"truth": "*", "ignorance": "o"}
_SHOWN = 50  # eigenvalues in the spectrum


def write_figures(contents: Contents, folder: Path) -> list[Path]:
    """Draw every figure; each file is replaced atomically and names its provenance."""
    draw = dict(
        zip(FIGURES, (_trajectories_3d, _trajectories_2d, _spectrum, _accuracy), strict=True)
    )
    with mpl.rc_context(_STYLE):
        for name, function in draw.items():
            buffer = io.BytesIO()
            described = f"sweeper {contents.about['fingerprint']}"
            function(contents).savefig(
                buffer, format="png", bbox_inches="tight", metadata={"Description": described}
            )
            write_atomically(folder / name, buffer.getvalue())
    return [folder / name for name in FIGURES]


def _trajectories_3d(contents: Contents) -> Figure:
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot(projection="3d")
    axes.set_position((0.0, 0.0, 1.0, 1.0))
    axes.set_box_aspect((4, 3, 2.4), zoom=0.95)
    k = min(3, contents.n_components)
    for trajectory, colour in _trajectories(contents):
        axes.plot(*_padded(trajectory, k), color=colour, linewidth=0.7, alpha=0.6)
    for name, point in zip(
        contents.references["trial_id"], np.transpose(_padded(contents.references, k)), strict=True
    ):
        axes.scatter(*point, marker=_MARKS[name], s=60, color=INK, depthshade=False)
        axes.text(*point, f"  {name}")
    for index, name in zip(range(1, k + 1), "xyz", strict=False):
        getattr(axes, f"set_{name}label")(contents.axis(index))
        axis = getattr(axes, f"{name}axis")
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_color(FAINT)
        axis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7, colors=FAINT)
    axes.view_init(elev=20, azim=-62)
    _legend(figure, contents, "upper left")
    return figure


def _padded(points: pd.DataFrame, k: int) -> list[Any]:
    """Three columns of coordinates, zero where the embedding has fewer axes."""
    columns = [points[f"pc{i}"].to_numpy(dtype=float) for i in range(1, k + 1)]
    return columns + [np.zeros(len(points))] * (3 - k)


def _trajectories_2d(contents: Contents) -> Figure:
    pairs = [pair for pair in ((1, 2), (1, 3), (2, 3)) if max(pair) <= contents.n_components]
    figure = Figure(figsize=(3.4 * len(pairs) or 3.4, 3.4), layout="constrained")
    for index, (a, b) in enumerate(pairs, start=1):
        axes = figure.add_subplot(1, len(pairs), index)
        for trajectory, colour in _trajectories(contents):
            axes.plot(
                trajectory[f"pc{a}"], trajectory[f"pc{b}"], color=colour, linewidth=0.7, alpha=0.6
            )
        for name, point in contents.references.set_index("trial_id").iterrows():
            x, y = point[f"pc{a}"], point[f"pc{b}"]
            axes.plot(x, y, marker=_MARKS[str(name)], markersize=8, color=INK, linestyle="none")
            axes.annotate(str(name), (x, y), textcoords="offset points", xytext=(6, 5))
        axes.set(xlabel=contents.axis(a), ylabel=contents.axis(b))
        axes.set_aspect("equal", adjustable="datalim")
    _legend(figure, contents)
    return figure


def _spectrum(contents: Contents) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = np.asarray(contents.spectrum["spectrum"])[:_SHOWN]
    k = np.arange(1, len(values) + 1)
    for sign, colour, name in ((1, SPACE_LIKE, "λ > 0"), (-1, TIME_LIKE, "λ < 0, time-like")):
        chosen = np.sign(values) == sign
        if chosen.any():
            left.semilogy(k[chosen], np.abs(values[chosen]), "o", ms=4, color=colour, label=name)
    left.set(title="Eigenvalues of W", xlabel="component", ylabel="|λ|")
    left.legend()
    stress = contents.stress[:_SHOWN]
    right.plot(k, stress, "-o", ms=3, color=INK, linewidth=1)
    lines = [f"χ$_{{{i}}}$ = {stress[i - 1]:.3f}" for i in (1, 2, 3, 10, 50) if i <= len(stress)]
    right.text(0.95, 0.06, "\n".join(lines), transform=right.transAxes, ha="right", va="bottom")
    right.set(title="Explained stress", xlabel="components", ylabel="χ", ylim=(0, 1.02))
    return figure


def _accuracy(contents: Contents) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for trajectory, colour in _trajectories(contents):
        axes.plot(
            trajectory["epoch"],
            100 * trajectory["accuracy"],
            color=colour,
            linewidth=0.8,
            alpha=0.6,
        )
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    _legend(figure, contents)
    return figure


def _coloured_by(contents: Contents) -> tuple[str, dict[str, str]]:
    """The column that colours the figures and its values' colours."""
    column = contents.varying[0] if contents.varying else "model.name"
    distinct = levels(list(contents.embedded_trials[column]))
    return column, dict(zip(map(named, distinct), colours(distinct), strict=True))


def _trajectories(contents: Contents) -> Iterator[tuple[pd.DataFrame, str]]:
    """Each trial's points with its colour."""
    column, palette = _coloured_by(contents)
    values = contents.embedded_trials[column]
    for trial_id, trajectory in contents.embedding.groupby("trial_id", sort=False):
        yield trajectory, palette[named(values[trial_id])]


def _legend(figure: Figure, contents: Contents, place: str = "outside right upper") -> None:
    column, palette = _coloured_by(contents)
    lines = [mpl.lines.Line2D([], [], color=colour, linewidth=2) for colour in palette.values()]
    figure.legend(lines, list(palette), title=column, loc=place)
