"""The paper's two candidate-quality figures, per layer, and the duplicate gap: tables in, Figures out.

Every function takes ``groups``: a mapping from a name to one CandidateTable, or to several of them (seeds of the same
configuration), which are then drawn as a mean with a band; the legend says how many runs and what the band is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from msdetr.analysis.candidates import CandidateTable
from msdetr.errors import InputError
from msdetr.viz.style import colors, finish, run_label, safe, spread, subplots

Groups = Mapping[str, CandidateTable | Sequence[CandidateTable]]


def candidate_figure(groups: Groups, layer: int = -1, how: str = "std") -> Figure:
    """Draws Figures 1 and 2 of the paper side by side, for one decoder layer (the last)."""
    groups = _listed(groups)
    tables = [table for group in groups.values() for table in group]
    figure, (left, right) = subplots(2, height=4.0)
    shown = np.isfinite(np.stack([table.mean_iou[layer] for table in tables])).all(0)
    for name, (color, marker) in colors(groups).items():
        group = groups[name]
        label = run_label(name, len(group), how)
        curve = [table.mean_iou[layer][shown] for table in group]
        _band(left, group[0].k[shown], curve, how, label, color, marker)
        _band(right, group[0].thresholds, [table.above[layer] for table in group], how, label, color, marker)
    finish(left, "Top-k candidates of an object (Figure 1)", "k, candidates ranked by IoU", "mean IoU", legend=False)
    finish(right, "Candidates above an IoU threshold (Figure 2)", "IoU threshold t", "candidates per object", False)
    left.set_ylim(0, 1)
    right.set_ylim(0)
    left.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    seen = sorted({table.objects for table in tables})
    figure.suptitle(f"Candidate quality over {' / '.join(f'{n:,}' for n in seen)} objects{_named(layer)}", fontsize=12)
    return figure


def layer_figure(groups: Groups, k: int = 5, threshold: float = 0.75, how: str = "std") -> Figure:
    """Draws how candidates become better from decoder layer to layer: mean IoU of the top k, and candidates above a
    threshold."""
    figure, (left, right) = subplots(2, height=4.0)
    _per_layer(left, groups, lambda t: [t.top(k, i) for i in range(t.num_layers)], how)
    _per_layer(right, groups, lambda t: [t.over(threshold, i) for i in range(t.num_layers)], how)
    finish(left, f"Mean IoU of the top {k} candidates", "decoder layer", "mean IoU", legend=False)
    finish(right, f"Candidates above IoU {threshold:g}", "decoder layer", "candidates per object", legend=False)
    left.set_ylim(0, 1)
    right.set_ylim(0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def gap_figure(groups: Groups, how: str = "std") -> Figure:
    """Draws the duplicate gap per layer, and of what it is made in the last: scores of an object's best and second candidate
    and how many objects have a rival at all."""
    groups = _listed(groups)
    figure, (left, middle, right) = subplots(3, width=11.0, height=4.0)
    _per_layer(left, groups, lambda t: t.gap, how)
    names, palette = list(groups), colors(groups)
    place, width = np.arange(len(names)), 0.36
    for shift, field, hatch in ((-0.5, "best_score", None), (0.5, "second_score", "///")):
        for i, name in zip(place, names, strict=True):
            mean, low, high = spread([getattr(table, field)[-1] for table in groups[name]], how)
            shade = palette[name][0]
            bar = middle.bar(i + shift * width, mean, width, color=shade, hatch=hatch, edgecolor="white", linewidth=0)
            if len(groups[name]) > 1:
                middle.errorbar(
                    i + shift * width, mean, [[mean - low], [high - mean]], fmt="none", ecolor="k", capsize=3
                )
            middle.bar_label(bar, [f"{field.split('_')[0]}\n{mean:.2f}"], padding=3, fontsize=8)
    bottom = np.zeros(len(names))
    for field, label, hatch in (("several", "two or more", ""), ("single", "one", "//"), ("none", "none", "xx")):
        share = np.array([np.mean([getattr(t, field)[-1] / max(t.objects, 1) for t in groups[n]]) for n in names])
        shades = [palette[name][0] for name in names]
        right.bar(place, share, 0.6, bottom, color=shades, alpha=0.75, hatch=hatch, edgecolor="white")
        for i, (low, part) in enumerate(zip(bottom, share, strict=True)):
            if part > 0.05:
                right.text(i, low + part / 2, f"{label}\n{part:.0%}", ha="center", va="center", fontsize=8,
                           bbox={"boxstyle": "round", "fc": "white", "ec": "none", "alpha": 0.85})  # fmt: skip
        bottom += share
    at = next(iter(groups.values()))[0].duplicate_iou
    finish(left, "Duplicate gap: best minus second score", "decoder layer", "difference of probabilities", legend=False)
    finish(middle, "Last layer: the two best scores", "", "class probability", legend=False)
    finish(right, f"Last layer: candidates at IoU ≥ {at:g}", "", "share of objects", legend=False)
    left.set_ylim(0)
    middle.set_ylim(0, 1.08)
    right.set_ylim(0, 1)
    for ax in (middle, right):
        ax.set_xticks(place, [textwrap.fill(safe(name), 18) for name in names], fontsize=8)
    handles = left.get_legend_handles_labels()[0]
    handles += [
        Patch(facecolor="#999999", edgecolor="white", hatch=hatch, label=f"{label} at IoU ≥ {at:g}")
        for hatch, label in (("//", "one candidate"), ("xx", "no candidate"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _per_layer(ax: Axes, groups: Groups, value: Callable[[CandidateTable], Sequence[float]], how: str) -> None:
    groups = _listed(groups)
    for name, (color, marker) in colors(groups).items():
        rows = [np.asarray(value(table)) for table in groups[name]]
        label = run_label(name, len(rows), how)
        _band(ax, np.arange(1, len(rows[0]) + 1), rows, how, label, color, marker)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _band(ax: Axes, x: np.ndarray, rows: Sequence[np.ndarray], how: str, label: str, color: str, marker: str) -> None:
    mean, low, high = spread(rows, how)
    ax.plot(x, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=label)
    if len(rows) > 1:
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _listed(groups: Groups) -> dict[str, list[CandidateTable]]:
    listed = {name: [group] if isinstance(group, CandidateTable) else list(group) for name, group in groups.items()}
    if not listed or not all(listed.values()):
        raise InputError("nothing to draw: give at least one run, and at least one table for each name")
    for name, group in listed.items():
        shapes = {(t.mean_iou.shape, t.above.shape) for t in group}
        if len(shapes) > 1:
            raise InputError(f"{name}: its runs have different numbers of layers, k or thresholds: {sorted(shapes)}")
    first = next(iter(listed.values()))[0]
    for name, group in listed.items():
        if not (np.array_equal(group[0].k, first.k) and np.array_equal(group[0].thresholds, first.thresholds)):
            raise InputError(f"{name}: measured with other k or IoU thresholds than the first run")
    return listed


def _named(layer: int) -> str:
    return ", last decoder layer" if layer == -1 else f", decoder layer {layer + 1}" if layer >= 0 else ""
