"""One-to-many matching on tables small enough to read: scores in, annotated heat-maps out.

Rows are objects, columns are queries. Pairs that are still in the running are shaded by their score, others are pale;
framed cells are matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from msdetr.analysis.algorithm import AlgorithmStep, Sweep
from msdetr.structures import Predictions, Targets
from msdetr.viz.matching import canvas, object_color
from msdetr.viz.style import DARK, MARKERS, PALETTE, WIDTH, finish, subplots

PALE = "#f1f1f1"
FRAME = PALETTE[3]
SETTINGS = {
    "threshold": "threshold τ",
    "k": "k, queries per object at most",
    "alpha": "α, share of the class probability",
}


def scene_figure(predictions: Predictions, targets: Targets, title: str = "Objects and predicted boxes") -> Figure:
    """Draws one image of one layer: objects filled, the boxes of the queries dashed and numbered."""
    figure, (ax,) = subplots(width=6.0, height=4.6)
    draw_scene(ax, predictions, targets, title)
    return figure


def draw_scene(ax: Axes, predictions: Predictions, targets: Targets, title: str) -> None:
    """Draws objects in their colors and numbered, queries dashed; a query's number stands at one of its corners."""
    canvas(ax, None)
    for number, box in enumerate(targets.boxes.tolist()):
        color = object_color(number)
        _box(ax, box, fc=color, ec=color, alpha=0.22, lw=0)
        _box(ax, box, fill=False, ec=color, lw=2.6)
        ax.text(box[0] + box[2] / 2, box[1] + box[3] / 2 + 0.012, f"object {number}", ha="right", va="top",
                fontsize=9, color=color, fontweight="bold")  # fmt: skip
    for number, box in enumerate(predictions.boxes[0, 0].tolist()):
        _box(ax, box, fill=False, ec=DARK, lw=1.1, ls="--")
        ax.text(box[0] - box[2] / 2 + 0.012, box[1] - box[3] / 2 - 0.008, f"{number}", fontsize=9, color=DARK, va="bottom",
                bbox={"fc": "white", "ec": DARK, "lw": 0.6, "pad": 1.2})  # fmt: skip
    ax.set_title(title, fontsize=11)


def table_figure(
    table: np.ndarray, title: str = "score", alive: np.ndarray | None = None, matched: np.ndarray | None = None
) -> Figure:
    """Draws a table [T, Q] of numbers in [0, 1]; what is not alive is pale, what is matched is framed."""
    figure, (ax,) = subplots(width=min(WIDTH, max(5.2, 1.6 + 0.75 * table.shape[1])), height=0.95 + 0.42 * len(table))
    draw_table(ax, table, alive, matched)
    ax.set_title(title, fontsize=11)
    return figure


def score_figure(probability: np.ndarray, overlap: np.ndarray, score: np.ndarray, alpha: float) -> Figure:
    """Draws the two tables that a score is made of, and the score, each [T, Q]."""
    figure, axes = subplots(3, width=11.0, height=0.95 + 0.42 * len(score))
    titles = (f"α = {alpha:g}  ×  probability p", f"+   {1 - alpha:g}  ×  IoU", "=   score")
    for ax, values, title in zip(axes, (probability, overlap, score), titles, strict=True):
        draw_table(ax, values, size=8, labels=ax is axes[0])
        ax.set_title(title, fontsize=11)
    return figure


def step_figure(steps: Sequence[AlgorithmStep]) -> Figure:
    """Draws a row per line of the algorithm: the line, and what it leaves of the table. The last row frames the matches."""
    num_objects = len(steps[0].table)
    figure, axes = subplots(2, len(steps), width=WIDTH, height=0.62 + 0.34 * num_objects, width_ratios=(1.0, 1.5))
    for number, step in enumerate(steps):
        left, right = axes[2 * number : 2 * number + 2]
        left.set_axis_off()
        left.text(0, 0.66, f"{number + 1}   {step.line}", family="monospace", fontsize=10, va="center", color=DARK)
        left.text(0.08, 0.3, f"{step.words}: {int(step.alive.sum())} pairs", fontsize=9, va="center", color=DARK)
        last = number == len(steps) - 1
        draw_table(right, step.table, step.alive, step.alive if last else None, size=8, queries=last)
    return figure


def rule_figure(table: np.ndarray, rules: Mapping[str, np.ndarray], columns: int = 3) -> Figure:
    """Draws the same scores under several rules. Framed: matched. The first rule is what the others are compared with: a plus
    marks a pair that it does not match, a minus one that only it matches."""
    rows = -(-len(rules) // columns)
    reference = next(iter(rules.values()))
    figure, axes = subplots(columns, rows, width=11.0, height=0.95 + 0.42 * len(table))
    for ax in axes[len(rules) :]:
        ax.set_axis_off()
    for number, (ax, (name, matched)) in enumerate(zip(axes, rules.items(), strict=False)):
        draw_table(ax, table, matched, matched, size=8, labels=number % columns == 0)
        for (row, column), mine in np.ndenumerate(matched):
            if mine != reference[row, column]:
                ax.plot(column + 0.36, row - 0.29, "+" if mine else "_", ms=6, mew=1.8, color=FRAME)
        ax.set_title(name, fontsize=11)
    handles = [
        Line2D([], [], marker="s", ls="", mfc="none", mec=FRAME, mew=2, ms=10, label="matched"),
        Line2D([], [], marker="+", ls="", color=FRAME, ms=7, mew=1.8, label="matched, but not by the first rule"),
        Line2D([], [], marker="_", ls="", color=FRAME, ms=7, mew=1.8, label="matched by the first rule only"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def sweep_figure(sweeps: Mapping[str, Sequence[Sweep]]) -> Figure:
    """Draws a column per setting, a line per rule: matched queries per object, and the share of the objects without any.

    sweeps: name of a rule -> its sweeps, the same settings for every rule.
    """
    settings = [one.name for one in next(iter(sweeps.values()))]
    figure, axes = subplots(len(settings), 2, width=11.0, height=2.6, sharey="row")
    for number, (rule, ones) in enumerate(sweeps.items()):
        style = {"color": PALETTE[number], "marker": MARKERS[number], "ms": 5 + 3 * (number == 0), "lw": 1.6,
                 "ls": ("-", "--", ":", "-.")[number % 4], "mfc": "none" if number == 0 else None}  # fmt: skip
        for column, one in enumerate(ones):
            axes[column].plot(one.values, one.positives, label=rule, **style)
            axes[len(settings) + column].plot(one.values, 100 * one.without, label=rule, **style)
    for column, name in enumerate(settings):
        first = column == 0
        finish(axes[column], f"{SETTINGS[name].split(',')[0]}", "", "queries per object" if first else "", legend=first)
        finish(
            axes[len(settings) + column], "", SETTINGS[name], "objects without any (%)" if first else "", legend=False
        )
    return figure


def draw_table(
    ax: Axes, table: np.ndarray, alive: np.ndarray | None = None, matched: np.ndarray | None = None, size: float = 10,
    labels: bool = True, queries: bool = True,
) -> None:  # fmt: skip
    """Draws a heat-map of numbers in [0, 1] with the numbers in it. labels, queries: whether rows and columns are named."""
    table = np.asarray(table, dtype=np.float64)
    alive = np.ones(table.shape, dtype=bool) if alive is None else np.asarray(alive)
    ax.set_facecolor(PALE)
    ax.imshow(np.ma.masked_array(0.85 * table, ~alive), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        shown = alive[row, column]
        color = ("white" if value > 0.65 else DARK) if shown else "#a0a0a0"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=color)
        if matched is not None and matched[row, column]:
            ax.add_patch(Rectangle((column - 0.46, row - 0.45), 0.92, 0.9, fill=False, ec=FRAME, lw=2))
    ax.set_xticks(range(table.shape[1]), [str(i) for i in range(table.shape[1])] if queries else [], fontsize=9)
    ax.set_yticks(range(len(table)), [f"object {j}" for j in range(len(table))] if labels else [], fontsize=9)
    if queries:
        ax.set_xlabel("query", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _box(ax: Axes, box: Sequence[float], **style) -> None:
    cx, cy, w, h = box
    ax.add_patch(Rectangle((cx - w / 2, cy - h / 2), w, h, **style))
