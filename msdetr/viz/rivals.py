"""Duplicates with and without self-attention between queries, in pictures (see ``msdetr.analysis.rivals``)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from msdetr.analysis.rivals import Rivals
from msdetr.viz.style import DARK, colors, finish, safe, subplots


def rivals_figure(measured: Mapping[str, tuple[Rivals, Rivals]]) -> Figure:
    """Name -> what was measured of a detector as it is and with self-attention cut. Left: duplicates per found object.
    Middle: AP, as it answers and with NMS. Right: the winner's attention to a rival and to other queries, per layer."""
    figure, (left, middle, right) = subplots(3, width=11.0, height=4.2)
    place, palette = np.arange(len(measured)), colors(measured)
    for x, (name, both) in zip(place, measured.items(), strict=True):
        color, marker = palette[name]
        for shift, rivals, hatch in zip((-0.2, 0.2), both, (None, "///"), strict=True):
            bar = left.bar(x + shift, rivals.duplicates, 0.38, color=color, hatch=hatch, edgecolor="white", linewidth=0)
            left.bar_label(bar, fmt="%.1f", padding=2, fontsize=9)
            middle.bar(x + shift, 100 * rivals.ap, 0.38, color=color, hatch=hatch, edgecolor="white", linewidth=0)
            middle.plot(x + shift, 100 * rivals.ap_nms, "_", color=DARK, markersize=22, markeredgewidth=2.5)
            top = 100 * max(rivals.ap, rivals.ap_nms)
            middle.annotate(f"{100 * rivals.ap:.0f} → {100 * rivals.ap_nms:.0f}", (x + shift, top), (0, 4),
                            textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        layers = np.arange(1, len(both[0].to_rivals) + 1)
        right.plot(layers, both[0].to_rivals, color=color, marker=marker, linewidth=1.8)
        right.plot(layers, both[0].to_others, color=color, marker=marker, linewidth=1.2, linestyle=":", markersize=4)
    right.axhline(1, color=DARK, linewidth=0.8)
    for ax in (left, middle):
        ax.set_xticks(place, [textwrap.fill(safe(name), 18) for name in measured], fontsize=9)
        ax.margins(y=0.15)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylim(0)
    finish(left, "Duplicates per found object", "", "rivals with half the winner's score", legend=False)
    finish(middle, "AP, and what NMS makes of it", "", "AP (%)", legend=False)
    finish(right, "Whom does the winner attend to?", "decoder layer", "attention (1: as much as to any)", legend=False)
    handles = [
        Patch(fc="#999999", label="as trained"),
        Patch(fc="#999999", ec="white", hatch="///", label="self-attention cut"),
        Line2D([], [], color=DARK, marker="_", markersize=14, markeredgewidth=2.5, linestyle="", label="with NMS"),
        Line2D([], [], color=DARK, linewidth=1.8, label="to a rival"),
        Line2D([], [], color=DARK, linewidth=1.2, linestyle=":", label="to any other query"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9)
    return figure
