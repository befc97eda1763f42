"""Pictures of the budget of lost AP: what causes cost, where, two runs compared, and failures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..analysis.budget import Budget, Cause, Comparison, Failure, Kind, Part
from ..analysis.budget.scene import corners
from ..errors import InputError
from .data import draw_box
from .style import DARK, PALETTE, finish, safe, show_pixels, subplots

_COLOR = dict(zip(Cause, PALETTE))
_HATCH = dict(zip(Cause, ("", "//", "", "..", "", "xx", "\\\\", "--", "++")))
_MOST = 20  # classes that have a bar
_OBJECT, _DETECTION, _PAIR = PALETTE[9], PALETTE[3], PALETTE[2]


def budget_figure(budget: Budget) -> Figure:
    """What each cause costs, alone and as its share, and the shares by class (of many those of the lowest AP) and size. Raises
    InputError without any AP."""
    if budget.ap is None:
        raise InputError("the budget has no object that counts, so there is nothing to draw")
    classes, sizes = ([part for part in parts if part.ap is not None] for parts in (budget.classes, budget.sizes))
    worst = set(sorted(range(len(classes)), key=lambda i: classes[i].ap)[:_MOST])
    parts = [budget.whole, *(part for i, part in enumerate(classes) if i in worst), *sizes]
    figure, (left, right) = subplots(2, height=max(4.4, 1.6 + 0.22 * len(parts)), width=10)
    shown = sorted((one for one in budget.whole.causes if one.errors), key=lambda one: one.share)
    rows = np.arange(len(shown))
    left.barh(rows, [one.share for one in shown], color=[_COLOR[one.cause] for one in shown], edgecolor=DARK, linewidth=0.5,
              hatch=[_HATCH[one.cause] for one in shown])  # fmt: skip
    left.plot(
        [one.gain for one in shown], rows, "D", color=DARK, markersize=5, label="gained were it alone mended (dAP)"
    )
    left.set_yticks(rows, [one.cause.title for one in shown])
    finish(left, f"AP {budget.ap:.1f}: where {budget.whole.lost:.1f} points went", "AP points", "", legend=False)
    handles = [Patch(facecolor="white", edgecolor=DARK, label="its share (all add up)"), *left.get_lines()]
    left.legend(handles=handles, loc="lower right", fontsize=9)
    _stacked(right, parts, [one.cause for one in reversed(shown)], len(classes) - len(worst))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    for ax in (left, right):
        ax.set_axisbelow(True)
    return figure


def _stacked(ax: Axes, parts: Sequence[Part], causes: Sequence[Cause], more: int) -> None:
    """A bar per part. more: how many classes have none."""
    rows, start = np.arange(len(parts))[::-1], np.array([part.ap for part in parts])
    ax.barh(rows, start, color="#e6e6e6", edgecolor=DARK, linewidth=0.5, label="AP")
    for cause in causes:
        width = np.array([part[cause].share for part in parts])
        ax.barh(
            rows,
            width,
            left=start,
            color=_COLOR[cause],
            edgecolor=DARK,
            linewidth=0.3,
            hatch=_HATCH[cause],
            label=cause.title,
        )
        start = start + width
    ax.set_yticks(rows, [f"{safe(part.name, 18)} ({part.objects:,})" for part in parts])
    ax.set_xlim(0, 100)
    left_out = f"\nand {more} more classes, with higher AP" if more else ""
    finish(ax, "AP and shares, by class and size (objects)", f"AP points{left_out}", "", legend=False)


def comparison_figure(compared: Comparison) -> Figure:
    """What the second run wins (to the right) and loses against the first, by cause. Raises InputError without any AP."""
    if compared.first is None or compared.second is None:
        raise InputError("one of the two has no object that counts, so there is nothing to compare")
    shown = [one for one in reversed(compared.causes) if one.first or one.second]
    figure, (ax,) = subplots(1, height=3.8)
    rows = np.arange(len(shown))
    won = [one.won for one in shown]
    ax.barh(rows, won, color=[PALETTE[2] if value >= 0 else PALETTE[3] for value in won], edgecolor=DARK, linewidth=0.5)
    for row, one in zip(rows, shown):
        ax.annotate(f"{one.won:+.1f}", (one.won, row), xytext=(4 if one.won >= 0 else -4, 0), textcoords="offset points",
                    va="center", ha="left" if one.won >= 0 else "right", fontsize=9)  # fmt: skip
    ax.set_yticks(rows, [one.cause.title for one in shown])
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.margins(x=0.15)
    ax.set_axisbelow(True)
    names = [safe(name, 40) for name in compared.names]
    change = compared.second - compared.first
    title = (
        f"{names[1]} ({compared.second:.1f}) against {names[0]} ({compared.first:.1f}): {change:+.1f} points, by cause"
    )
    finish(ax, title, "AP points won (right) and lost (left)", "", legend=False)
    return figure


def failure_figure(dataset, failures: Sequence[Failure], count: int = 6, budget: Budget | None = None) -> Figure:
    """Draws failures, each with its surroundings and its sentence: annotated objects dashed, the failed object or the false
    detection in the middle; with the budget also the detections that the failure speaks of.

    dataset: the images they are of. Raises InputError where there are no failures.
    """
    chosen = list(failures)[:count]
    if not chosen:
        raise InputError("no failures were given, there is nothing to draw")
    columns = min(3, len(chosen))
    figure, axes = subplots(columns, -(-len(chosen) // columns), height=3.7, width=10)
    for ax in axes:
        ax.set_axis_off()
    index = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    found = {} if budget is None else {one.scene.image_id: one.scene for one in budget.ledger.scenes}
    for ax, one in zip(axes, chosen, strict=False):
        pixels = dataset.pixels(index[one.image_id]).permute(1, 2, 0).numpy()
        show_pixels(ax, pixels)
        boxes = [one.box]
        if one.image_id in found:
            boxes += _draw_scene(ax, one, found[one.image_id])
        draw_box(
            ax,
            one.box,
            _DETECTION if one.kind is Kind.FALSE else _OBJECT,
            style="-" if one.kind is Kind.FALSE else "--",
        )
        _surroundings(ax, boxes, pixels.shape)
        ax.set_title(fill(safe(f"image {one.image_id}: {one.sentence}", 260), 42), fontsize=8.5)
    handles = [
        Line2D([], [], color=_OBJECT, linestyle="--", label="annotated object (thick: the one it is about)"),
        Line2D([], [], color=_DETECTION, label="detection it is about"),
        Line2D([], [], color=_PAIR, linestyle=":", label="detection that finds the object"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _draw_scene(ax: Axes, failure: Failure, scene) -> list[tuple[float, ...]]:
    """Draws objects and the detections that a failure speaks of; returns the boxes that must be seen."""
    objects = [tuple(box) for box in corners(scene.objects.boxes[~scene.objects.crowd]).tolist()]
    for box in objects:
        draw_box(ax, box, _OBJECT, style="--", width=0.8)
    seen = [] if failure.object is None else [objects[failure.object]]
    for detection, color, style in ((failure.pair, _PAIR, ":"), (failure.detection, _DETECTION, "-")):
        if detection is not None:
            seen.append(tuple(corners(scene.found.boxes[detection]).tolist()))
            draw_box(ax, seen[-1], color, style=style)
    return seen


def _surroundings(ax: Axes, boxes: Sequence[Sequence[float]], shape: tuple[int, ...]) -> None:
    """Shows boxes with two thirds as much again around them, 32 pixels at least, within the image."""
    x0, y0 = (min(box[i] for box in boxes) for i in (0, 1))
    x1, y1 = (max(box[i] for box in boxes) for i in (2, 3))
    around = max(32.0, 0.67 * max(x1 - x0, y1 - y0))
    ax.set_xlim(max(x0 - around, 0), min(x1 + around, shape[1]))
    ax.set_ylim(min(y1 + around, shape[0]), max(y0 - around, 0))
