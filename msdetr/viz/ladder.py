"""The ladder in one figure: groups of queries, who sees whom, and who learns from which object."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from msdetr.analysis.branches import branch_title
from msdetr.analysis.ladder import Rung

from .style import DARK, MARKERS, PALETTE, safe, subplots

BORDER = "#9a9a9a"


def ladder_figure(rungs: Mapping[str, Rung], columns: int = 3) -> Figure:
    """Two panels per rung, over the same queries from top to bottom. Left: whom each attends to (filled). Right: the objects
    that it learns from, a mark per branch; filled marks are read from a layer's output, open ones inside the layer."""
    branches = list(dict.fromkeys(name for rung in rungs.values() for name in rung.lessons))
    marks = {name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(branches)}
    rows = -(-len(rungs) // columns)
    figure, axes = subplots(2 * columns, rows, width=3.9 * columns, height=3.5, width_ratios=(2.4, 1) * columns)
    for ax in axes[2 * len(rungs) :]:
        ax.set_visible(False)
    for number, (title, rung) in enumerate(rungs.items()):
        _mask(axes[2 * number], rung, title)
        _lessons(axes[2 * number + 1], rung, marks)
    inside = {name for rung in rungs.values() for name, found in rung.lessons.items() if found.inside}
    handles = [
        Line2D([], [], ls="", marker=m, color=c, mfc="none" if name in inside else c, mew=1.5, label=branch_title(name))
        for name, (c, m) in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=9, frameon=False)
    return figure


def _mask(ax: Axes, rung: Rung, title: str) -> None:
    shade = np.where(rung.sees, 0.0, 1.0)
    ax.imshow(shade, cmap="Blues_r", vmin=-0.45, vmax=1.0, aspect="auto", interpolation="nearest")
    for where in list(rung.groups.values())[1:]:
        ax.axhline(where.start - 0.5, color=BORDER, lw=0.8)
        ax.axvline(where.start - 0.5, color=BORDER, lw=0.8)
    ax.set_title(safe(title), fontsize=10, loc="left")
    ax.set_xlabel("attends to", fontsize=8)
    ax.set_xticks([])
    middle = [(where.start + where.stop - 1) / 2 for where in rung.groups.values()]
    labels = [_named(name, where, rung.parts[name]) for name, where in rung.groups.items()]
    ax.set_yticks(middle, labels, fontsize=8, rotation=90, va="center")
    ax.tick_params(length=0)


def _named(name: str, where: slice, parts: int) -> str:
    count = where.stop - where.start
    return f"{name}\n{f'{parts} × {count // parts}' if parts > 1 else count}"


def _lessons(ax: Axes, rung: Rung, marks: Mapping[str, tuple[str, str]]) -> None:
    per_group: dict[str, list[str]] = {}
    for name, found in rung.lessons.items():
        per_group.setdefault(found.group, []).append(name)
    for name, found in rung.lessons.items():
        alike = per_group[found.group]
        shift = 0.3 * (alike.index(name) - (len(alike) - 1) / 2)  # two branches of one group side by side
        color, marker = marks[name]
        x, y = [target + shift for _, target in found.pairs], [query for query, _ in found.pairs]
        face = "none" if found.inside else color
        ax.plot(x, y, marker, color=color, mfc=face, mew=1.2, ms=3.6 if rung.queries > 40 else 4.6)
    for where in list(rung.groups.values())[1:]:
        ax.axhline(where.start - 0.5, color=BORDER, lw=0.8)
    ax.set_xlim(-0.6, rung.objects - 0.4)
    ax.set_ylim(rung.queries - 0.5, -0.5)
    ax.set_xticks(range(rung.objects), [str(i) for i in range(rung.objects)], fontsize=8)
    ax.set_xlabel("learns from\nobject", fontsize=8)
    ax.set_yticks([])
    ax.grid(axis="x", alpha=0.3, lw=0.6)
    ax.spines[:].set_color(DARK)
    ax.spines[:].set_linewidth(0.6)
