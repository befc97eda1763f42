"""A study in pictures: rows of cells in, Figures out (see ``msdetr.analysis.study``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from msdetr.analysis.cells import Cell
from msdetr.analysis.runs import Statistic
from msdetr.analysis.study import PERCENT, Difference, Rows, paired_difference

from .style import DARK, PALETTE, colors, finish, safe, subplots

CURVES = ("AP", "AP50", "AP75")  # measures that every evaluation of a run has


def study_figure(
    rows: Rows, measures: Sequence[str] = ("AP", "top-5 IoU", "duplicate gap"), variant: str | None = None
) -> Figure:
    """A panel per measure, a line per row: a dot per seed, a bar at their mean.

    variant: rows whose names differ in this ending only share a color, and those without it are drawn hollow.
    """
    figure, axes = subplots(len(measures), width=10.5, height=1.3 + 0.3 * len(rows), sharey=True)
    names = list(rows)
    kinds = {name: name.removesuffix(variant or "") for name in names}
    order = list(dict.fromkeys(kinds.values()))
    for ax, measure in zip(axes, measures, strict=True):
        factor = 100 if measure in PERCENT else 1
        for i, name in enumerate(names):
            found = Statistic.of(cell.value(measure) for cell in rows[name])
            if found.mean is None:
                continue
            color = PALETTE[order.index(kinds[name]) % len(PALETTE)]
            ax.plot([factor * found.mean] * 2, [i - 0.32, i + 0.32], color=color, linewidth=2.5)
            face = "white" if variant and name == kinds[name] else color
            dots = factor * np.array(found.values)
            ax.plot(dots, np.full(len(dots), i), "o", color=color, markerfacecolor=face, markersize=6)
        ax.set_yticks(range(len(names)), [f"{safe(n)} ({_runs(len(rows[n]))})" for n in names])
        finish(ax, measure, "%" if measure in PERCENT else "", "", legend=False)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def difference_figure(rows: Rows, reference: str, measure: str = "AP") -> Figure:
    """Every row minus the reference, seed by seed: a dot per seed, the mean, and its interval, Student's, as a band that may leave
    the picture."""
    figure, (ax,) = subplots(height=1.4 + 0.34 * len(rows))
    factor, labels = 100 if measure in PERCENT else 1, []
    shades = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(rows)}  # as in study_figure
    for i, name in enumerate(name for name in rows if name != reference):
        found, color = paired_difference(rows[name], rows[reference], measure), shades[name]
        labels.append(f"{safe(name)} ({_runs(len(found.values))})")
        _draw_difference(ax, i, found, factor, color)
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.margins(x=0.12)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    unit = "percent points; " if measure in PERCENT else ""
    finish(ax, f"{measure} minus that of {safe(reference)}", f"{unit}band: 95 % interval of the mean", "", legend=False)
    return figure


def sets_figure(
    sets: Mapping[str, Rows],
    name: str,
    reference: str,
    measures: Sequence[str] = ("AP", "AP50", "AP75", "top-5 IoU"),
) -> Figure:
    """One row minus the reference on several sets of images: a panel per measure, a line per set, drawn as in
    ``difference_figure``. sets: the rows of each by its name; both rows have to be in each."""
    figure, axes = subplots(len(measures), width=10.5, height=1.7 + 0.34 * len(sets), sharey=True)
    labels = []
    for i, (title, rows) in enumerate(sets.items()):
        differences = [paired_difference(rows[name], rows[reference], measure) for measure in measures]
        labels.append(f"{safe(title)} ({_runs(len(differences[0].values))})")
        for ax, measure, found in zip(axes, measures, differences, strict=True):
            _draw_difference(ax, i, found, 100 if measure in PERCENT else 1, PALETTE[i % len(PALETTE)])
    for ax, measure in zip(axes, measures, strict=True):
        ax.axvline(0, color=DARK, linewidth=0.8)
        ax.set_yticks(range(len(labels)), labels)
        finish(ax, measure, "percent points" if measure in PERCENT else "", "", legend=False)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"{safe(name)} minus {safe(reference)}; band: 95 % interval of the mean", fontsize=11)
    return figure


def curve_figure(rows: Rows, measure: Literal["AP", "AP50", "AP75"] = "AP") -> Figure:
    """A measure over the epochs of training: a thin line per seed, a thick one at the mean where all seeds were evaluated."""
    figure, (ax,) = subplots()
    for name, (color, marker) in colors(rows).items():
        curves = [
            {e["epoch"]: 100 * e[measure] for e in cell.evaluations if e[measure] is not None} for cell in rows[name]
        ]
        for curve in curves:
            ax.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, alpha=0.45)
        if shared := sorted(set.intersection(*map(set, curves))):
            means = [np.mean([curve[epoch] for curve in curves]) for epoch in shared]
            ax.plot(
                shared, means, color=color, marker=marker, linewidth=2.2, label=f"{safe(name)} ({_runs(len(curves))})"
            )
    finish(
        ax,
        f"{measure} on the validation images while training (thick: mean over seeds)",
        "epoch",
        f"{measure} (%)",
        loc="lower right",
    )
    return figure


def setting_figure(
    settings: Mapping[str, Mapping[float, Sequence[Cell]]],
    usual: Mapping[str, float],
    measures: Sequence[str] = ("AP", "duplicate gap"),
) -> Figure:
    """What one setting at a time does: a column per setting, a row per measure; a dot and a thin line per seed, a thick line
    at the mean of the seeds that all values have.

    settings: by their names, cells by the setting's value (see ``analysis.study.varied``). usual: the value of each that the
    other columns have, drawn filled.
    """
    count = len(settings)
    figure, axes = subplots(count, len(measures), width=10.5, height=2.5, sharey="row")
    for place, ax in enumerate(axes):
        row, column = divmod(place, count)
        measure, (name, values) = measures[row], list(settings.items())[column]
        factor, color = 100 if measure in PERCENT else 1, PALETTE[column % len(PALETTE)]
        found = [{cell.seed: cell.value(measure) for cell in cells} for cells in values.values()]
        table = np.array([[of.get(s) for s in sorted(set().union(*found))] for of in found], dtype=float) * factor
        ax.plot(list(values), table, color=color, linewidth=0.8, alpha=0.45)
        shared = table[:, np.isfinite(table).all(0)]
        if shared.size:
            ax.plot(list(values), shared.mean(1), color=color, linewidth=2.4)
        for value, dots in zip(values, table, strict=True):
            face = color if value == usual.get(name) else "white"
            ax.plot(np.full(len(dots), value), dots, "o", color=color, markerfacecolor=face, markersize=6)
        left = measure + (" (%)" if measure in PERCENT else "") if column == 0 else ""
        below, above = row == len(measures) - 1, row == 0
        finish(ax, f"only {safe(name)} changed" if above else "", safe(name) if below else "", left, legend=False)
        ax.set_xticks(list(values), [f"{value:g}" for value in values])
        ax.margins(x=0.12)
    return figure


def _draw_difference(ax: Axes, y: float, found: Difference, factor: float, color: str) -> None:
    """A dot per seed, the mean, and its interval as a band. The band does not widen the axis: of two seeds it is
    thirteen times as wide as they are apart."""
    if found.mean is None:
        return
    dots = factor * np.array(found.values)
    if found.low is not None and found.high is not None:
        ends = factor * found.low, factor * found.high
        ax.add_artist(Line2D(ends, (y, y), color=color, linewidth=6, alpha=0.3, solid_capstyle="butt"))
    ax.plot(dots, np.full(len(dots), y), "o", color=color, markersize=4)
    ax.plot(factor * found.mean, y, "|", color=color, markersize=18, markeredgewidth=2.5)


def _runs(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
