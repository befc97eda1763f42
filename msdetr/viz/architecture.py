"""Diagrams of decoder layers, drawn from what ran: traces, parameters and times in, Figures out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from msdetr.analysis.architecture import Call, Cost, LayerTrace
from msdetr.viz.style import DARK, PALETTE, finish, safe, subplots

WORDS = {"self_attention": "self-attn", "cross_attention": "cross-attn", "ffn": "FFN"}
SHADES = {"self_attention": PALETTE[9], "cross_attention": PALETTE[1], "ffn": PALETTE[2], "head": "#d9d9d9"}
ONE, MANY = DARK, PALETTE[3]  # lines of one-to-one and one-to-many


def variant_figure(traces: Mapping[str, LayerTrace]) -> Figure:
    """Draws decoder layers side by side, as they ran, from the queries at the top to the predictors at the bottom."""
    figure, axes = subplots(len(traces), width=max(6.4, 2.3 * len(traces)), height=4.9)
    for ax, (name, trace) in zip(axes, traces.items(), strict=True):
        draw_layer(ax, trace)
        ax.set_title(safe(name), fontsize=11)
    handles = [
        Line2D([], [], color=ONE, lw=1.6, label="one-to-one"),
        Line2D([], [], color=MANY, lw=1.6, ls="--", label="one-to-many, training only"),
        Patch(fc=SHADES["head"], ec=ONE, label="predictor of one-to-one"),
        Patch(fc=SHADES["head"], ec=MANY, ls="--", label="the same one, for one-to-many"),
        Patch(fc="white", ec=MANY, ls="--", label="one-to-many has its own"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def draw_layer(ax: Axes, trace: LayerTrace) -> None:
    """Draws one decoder layer: its sub-layers in the left lane, the one-to-many branch in the right one."""
    ax.set(xlim=(-1.5, 2.15), ylim=(6.3, -0.55), xticks=[], yticks=[])
    ax.set_axis_off()
    ax.text(0, -0.15, "queries", ha="center", va="center", fontsize=9, color=DARK)
    place = {}
    for number, step in enumerate(trace.steps):
        y = 0.95 + 1.25 * number
        place[step.module] = (0.0, y)
        _arrow(ax, (0, y - (0.95 if number == 0 else 0.9)), (0, y - 0.35), ONE)
        _block(ax, 0, y, WORDS.get(step.module, step.module), SHADES.get(step.module, "white"), ONE)
        if step.sees_image:
            ax.text(-1.5, y - 0.2, "image", fontsize=8, ha="left", va="center", color=DARK)
            _arrow(ax, (-1.5, y), (-0.62, y), ONE)
    bottom = 5.55
    _arrow(ax, (0, place[trace.output][1] + 0.35), (0, bottom - 0.35), ONE)
    single = _readers(trace, trace.output)[:2]
    _heads(ax, 0, bottom, single, ONE)
    if trace.candidates is None:
        return
    y = place[trace.candidates][1] + 0.52
    ax.plot([0, 1.45], [y, y], color=MANY, ls="--", lw=1.6)
    ax.plot([0], [y], "o", color=MANY, ms=6)
    ffn = next((call for call in trace.predictors if "ffns" in call.module), None)
    if ffn is not None:
        middle = max(y + 0.75, 3.45)
        _arrow(ax, (1.45, y), (1.45, middle - 0.35), MANY, "--")
        _block(ax, 1.45, middle, "FFN ′", "white", MANY, "--")
        y = middle + 0.35
    _arrow(ax, (1.45, y), (1.45, bottom - 0.35), MANY, "--")
    source = trace.candidates if ffn is None else ffn.module
    several = _readers(trace, source)[2 if source == trace.output else 0 :]
    _heads(ax, 1.45, bottom, several, MANY, {call.module for call in single}, trace.boxes_reused)


def cost_figure(parameters: Mapping[str, Mapping[str, int]], costs: Mapping[str, Cost]) -> Figure:
    """Draws parameters by part, and processor time of training and inference, a bar per variant."""
    names = list(parameters)
    figure, (left, right) = subplots(2, width=11.0, height=3.7, width_ratios=(1.35, 1))
    start = np.zeros(len(names))
    parts = list(next(iter(parameters.values())))
    for number, part in enumerate(parts):
        values = np.array([parameters[name][part] for name in names]) / 1e6
        only = number == len(parts) - 1
        left.barh(names, values, left=start, color=PALETTE[3] if only else PALETTE[(0, 9, 2, 1, 7)[number % 5]],
                  hatch="//" if only else None, ec="white", label=part, height=0.65)  # fmt: skip
        start += values
    for row, total in enumerate(start):
        left.annotate(f"{total:.3f}", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    y = np.arange(len(names))
    for offset, kind, color in ((-0.2, "training", PALETTE[0]), (0.2, "inference", PALETTE[1])):
        bars = right.barh(y + offset, [getattr(costs[n], kind) for n in names], height=0.36, color=color, label=kind)
        right.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
    right.set_yticks(y, names)
    for ax in (left, right):
        ax.invert_yaxis()
        ax.margins(x=0.14)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "frameon": False}
    finish(left, "Parameters (at the end: their sum)", "millions", "", ncols=3, **below)
    finish(right, "Processor time per batch", "milliseconds", "", ncols=2, **below)
    return figure


def _readers(trace: LayerTrace, source: str) -> list[Call]:
    """The class and box predictors that read a step, those of the one-to-one branch first, as they ran."""
    return [call for call in trace.predictors if call.reads == source and "ffns" not in call.module]


def _own(call: Call) -> bool:
    return call.module.startswith("one_to_many.")


def _heads(
    ax: Axes, x: float, y: float, calls: list[Call], color: str, shared: set[str] = frozenset(), reused: bool = False
) -> None:
    """Class and box predictor of a branch, with a word on whose they are."""
    style = "-" if color == ONE else "--"
    for kind, left in (("class", x - 0.34), ("box", x + 0.34)):
        call = next((c for c in calls if f"{kind}_heads" in c.module), None)
        own = call is not None and _own(call)
        mark = ""
        if color == MANY and call is not None:
            mark = "shared" if call.module in shared else "own"
        elif color == MANY and reused:
            mark = "reused"
        _block(ax, left, y, kind, "white" if own else SHADES["head"], color, style, width=0.6, size=8)
        ax.text(left, y + 0.5, mark, fontsize=7.5, ha="center", va="center", color=color)


def _block(
    ax: Axes, x: float, y: float, text: str, fill: str, edge: str, style: str = "-", width: float = 1.2, size: float = 9
) -> None:
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, boxstyle="round,pad=0,rounding_size=0.08", fc=fill,
                                ec=edge, ls=style, lw=1.4, zorder=2))  # fmt: skip
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=DARK, zorder=3)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, style: str = "-") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "ls": style, "lw": 1.4,
                                            "shrinkA": 0, "shrinkB": 0})  # fmt: skip
