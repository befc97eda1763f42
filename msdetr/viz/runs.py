"""Comparing runs in pictures: learning curves, losses, final numbers. Groups of runs in, Figures out.

``groups`` is what ``msdetr.analysis.runs.group_runs`` returns: a name to the runs (seeds) of one configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from msdetr.analysis.branches import branch_title
from msdetr.analysis.health import branch_losses
from msdetr.analysis.runs import METRICS, Row, Run, Statistic, compare, learning_curves
from msdetr.viz.style import DARK, MARKERS, colors, finish, run_label, safe, spread, subplots

Groups = Mapping[str, Sequence[Run]]


def learning_curve_figure(groups: Groups, metrics: Sequence[str] = ("AP", "AP50"), how: str = "std") -> Figure:
    """Draws evaluation results over epochs, in percent points: a line for the mean of a group's runs and a band for their
    spread."""
    figure, axes = subplots(len(metrics), height=4.0)
    for ax, metric in zip(axes, metrics, strict=True):
        for name, (color, marker) in colors(groups).items():
            x, values = learning_curves(groups[name], metric)
            if not len(x):
                continue
            mean, low, high = spread(100 * values, how)
            label = run_label(name, len(values), how)
            ax.plot(x, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=label)
            if len(values) > 1:
                ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        finish(ax, f"{metric} while training", "epoch", f"{metric} (%)", legend=False)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(0)
    _legend_below(figure, axes[0])
    return figure


def loss_figure(groups: Groups) -> Figure:
    """Draws training loss and gradient norm over steps, one thin line per run (losses of models with different branches are
    not comparable in height)."""
    figure, axes = subplots(2, height=3.8)
    for ax, metric, label in zip(axes, ("loss", "grad_norm"), ("loss", "gradient norm before clipping"), strict=True):
        for name, (color, _) in colors(groups).items():
            for i, run in enumerate(groups[name]):
                x = [line["step"] for line in run.steps]
                y = [line[metric] for line in run.steps]
                legend = f"{safe(name)} ({len(groups[name])} run{'s' * (len(groups[name]) > 1)})" if i == 0 else None
                ax.plot(x, y, color=color, linewidth=0.9, alpha=0.85, label=legend)
        finish(ax, label.capitalize(), "step", metric.replace("grad_norm", "gradient norm"), legend=False)
        ax.set_ylim(0)
    _legend_below(figure, axes[0])
    return figure


def branch_figure(run: Run) -> Figure:
    """Draws of what the loss of a run is made: what each branch adds to it, weighted and summed over layers, and the positives
    per object of the branches where their number is free."""
    figure, (left, right) = subplots(2, height=3.8)
    steps = [line["step"] for line in run.steps]
    for (name, values), (color, marker) in zip(branch_losses(run).items(), colors(MARKERS).values(), strict=False):
        style = {
            "color": color,
            "marker": marker,
            "markevery": max(1, len(steps) // 8),
            "markersize": 4,
            "linewidth": 1.3,
        }
        positives = [line["positives_per_object"].get(name, np.nan) for line in run.steps]
        left.plot(steps, values, label=branch_title(name, several=any(n > 1 for n in positives)), **style)
        right.plot(steps, positives, **style)
    finish(left, "Loss by branch (weighted, all layers)", "step", "loss", legend=False)
    finish(right, "Queries per object that learn from it", "step", "positives per object", legend=False)
    for ax in (left, right):
        ax.set_ylim(0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def comparison_figure(groups: Groups, metrics: Sequence[str] = METRICS) -> Figure:
    """Draws final numbers: one dot per run, a bar at the mean of each group, whiskers for ± one sample standard deviation."""
    rows = compare(groups, metrics)
    figure, (ax,) = subplots(height=4.2)
    palette = colors([row.name for row in rows])
    width = 0.8 / max(len(rows), 1)
    for i, row in enumerate(rows):
        color, marker = palette[row.name]
        place = np.arange(len(metrics)) + (i - (len(rows) - 1) / 2) * width
        ax.bar(
            place,
            [100 * (row.metrics[m].mean or 0) for m in metrics],
            0.9 * width,
            color=color,
            alpha=0.55,
            label=run_label(row.name, len(row.seeds)),
        )
        for x, metric in zip(place, metrics, strict=True):
            _dots(ax, x, row.metrics[metric], color, marker, width)
    ax.set_xticks(np.arange(len(metrics)), metrics)
    finish(ax, "Results at the end of training (COCO metrics)", "", "%", legend=False)
    ax.set_ylim(0)
    _legend_below(figure, ax)
    return figure


def cost_figure(groups: Groups) -> Figure:
    """Draws what each group costs: parameters and training time."""
    rows: list[Row] = compare(groups)
    figure, (left, right) = subplots(2, height=1.4 + 0.45 * len(rows))
    place = np.arange(len(rows))[::-1]
    shades = [color for color, _ in colors([row.name for row in rows]).values()]
    millions = [(row.parameters or 0) / 1e6 for row in rows]
    minutes = [(row.seconds.mean or 0) / 60 for row in rows]
    left.bar_label(left.barh(place, millions, color=shades, alpha=0.6), fmt="%.2f", padding=3, fontsize=9)
    right.barh(place, minutes, color=shades, alpha=0.6)
    for y, row in zip(place, rows, strict=True):
        seconds = np.array(row.seconds.values) / 60
        right.plot(seconds, np.full(len(seconds), y), "o", color="k", markersize=3)
    right.set_yticks(place, [])
    left.set_yticks(place, [safe(row.name) for row in rows])
    left.margins(x=0.18)
    finish(left, "Parameters, one-to-many branch included", "millions", "", legend=False)
    finish(right, "Training time (bar: mean, dots: runs)", "minutes", "", legend=False)
    return figure


def class_figure(groups: Groups) -> Figure:
    """Draws the AP of every class at the end of training: one dot per run."""
    classes = sorted({name for runs in groups.values() for run in runs for name in run.results.get("per_class", {})})
    figure, (ax,) = subplots(height=1.6 + 0.28 * len(classes))
    palette = colors(groups)
    for i, (name, runs) in enumerate(groups.items()):
        color, marker = palette[name]
        shift = ((len(groups) - 1) / 2 - i) * 0.7 / max(len(groups), 1)
        points = [
            (100 * ap, classes.index(label) + shift)
            for run in runs
            for label, ap in run.results.get("per_class", {}).items()
            if ap is not None
        ]
        x, y = zip(*points, strict=True) if points else ((), ())
        label = safe(name) if len(runs) == 1 else f"{safe(name)}, one mark per run"
        ax.plot(x, y, marker, color=color, markersize=5, alpha=0.8, label=label)
    ax.set_yticks(range(len(classes)), [safe(name) for name in classes])
    ax.invert_yaxis()
    finish(ax, "AP per class", "AP (%)", "", legend=False)
    ax.set_xlim(0)
    _legend_below(figure, ax)
    return figure


def _dots(ax, x: float, value: Statistic, color: str, marker: str, width: float) -> None:
    if value.mean is None:
        at_the_foot = {"transform": ax.get_xaxis_transform(), "va": "bottom"}  # whatever the scale of the others
        ax.text(x, 0.02, "undefined", rotation=90, ha="center", fontsize=8, **at_the_foot)
        return
    spots = x + width * 0.12 * (np.arange(len(value.values)) - (len(value.values) - 1) / 2)
    ax.plot(spots, 100 * np.array(value.values), marker, color=color, markersize=4.5, markeredgecolor=DARK, zorder=3)
    if value.std is not None:
        ax.errorbar(x, 100 * value.mean, 100 * value.std, fmt="none", ecolor=DARK, capsize=3, linewidth=1, zorder=2)
    top = max(100 * max(value.values), 100 * (value.mean + (value.std or 0)))
    ax.annotate(f"{100 * value.mean:.1f}", (x, top), (0, 6), textcoords="offset points", ha="center", fontsize=8)


def _legend_below(figure: Figure, ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)), fontsize=9)
