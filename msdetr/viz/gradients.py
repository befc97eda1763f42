"""Pictures of gradients: what each term of the loss pulls at, and which parts of a detector each branch reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from msdetr.analysis.branches import branch_title
from msdetr.analysis.gradients import BranchGradients
from msdetr.boxes import cxcywh_to_xyxy
from msdetr.losses import focal_loss
from msdetr.structures import Matches, Predictions, Targets
from msdetr.viz.matching import canvas, object_color
from msdetr.viz.style import DARK, MARKERS, PALETTE, finish, safe, subplots


def reach_figure(
    gradients: Mapping[str, BranchGradients], branches: Sequence[str] = ("one_to_one", "one_to_many")
) -> Figure:
    """Draws a panel per detector, a row per part, a column per branch: shaded by the logarithm of the gradient's length, crossed
    out where a branch does not reach, grey where a detector has no such part or branch."""
    parts = sorted({p for g in gradients.values() for p in g.parts}, key=_place(list(gradients.values())))
    figure, axes = subplots(
        len(gradients), width=3.0 + 1.6 * len(gradients), height=1.4 + 0.25 * len(parts), sharey=True
    )
    values = {name: _aligned(g, parts, branches) for name, g in gradients.items()}
    reached = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in values.values()])
    low, high = np.log10(reached.min()), np.log10(reached.max())
    for ax, (name, table) in zip(axes, values.items(), strict=True):
        ax.set_facecolor("#dddddd")
        shown = np.log10(np.where(table > 0, table, np.nan))
        image = ax.imshow(shown, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
        for row, column in np.argwhere(table == 0):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc="white", ec="none"))
            ax.text(column, row, "×", ha="center", va="center", fontsize=11, color=PALETTE[3])
        ax.set_xticks(range(len(branches)), [branch_title(b).replace("to-", "to-\n") for b in branches], fontsize=9)
        ax.set_yticks(range(len(parts)), [safe(p) for p in parts], fontsize=9)
        ax.set_xticks(np.arange(len(branches) - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(len(parts) - 1) + 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(safe(name), fontsize=11)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.set_label("log10 of the gradient's length; × no gradient", fontsize=9)
    return figure


def cosine_figure(
    cosines: Mapping[str, Sequence[np.ndarray]], parts: Sequence[str], title: str = "Do the branches pull alike?"
) -> Figure:
    """Draws the cosine between the gradients of two branches in every part: a dot per batch, a line through the means.

    cosines: name of a detector -> one array [P] per batch. Parts that nowhere have a cosine are left out.
    """
    defined = np.isfinite([row for rows in cosines.values() for row in rows]).any(axis=0)
    parts = [part for part, some in zip(parts, defined, strict=True) if some]
    figure, (ax,) = subplots(width=9.0, height=3.8)
    x = np.arange(len(parts))
    for number, (name, rows) in enumerate(cosines.items()):
        rows, shift = np.asarray(rows)[:, defined], 0.12 * (number - (len(cosines) - 1) / 2)
        style = {"color": PALETTE[number], "marker": MARKERS[number]}
        ax.plot(np.broadcast_to(x + shift, rows.shape), rows, ls="", ms=3.5, alpha=0.5, **style)
        ax.plot(x + shift, rows.mean(0), lw=1.6, ms=7, label=f"{safe(name)}, mean", **style)
    ax.axhline(0, color=DARK, lw=0.8)
    ax.set_ylim(-1.05, 1.05)
    ax.set_xticks(
        x, [safe(p).replace("layer", "\nlayer").replace(" selection", "\nselection") for p in parts], fontsize=9
    )
    finish(ax, title, "", "cosine of the two gradients", loc="lower left")
    return figure


def focal_figure(gammas: Sequence[float] = (0.0, 1.0, 2.0), alpha: float = 0.25) -> Figure:
    """Draws the focal loss of one logit over its probability, as a positive and as a negative."""
    logit = torch.linspace(-6, 6, 241, dtype=torch.float64)
    predictions = Predictions(logit[:, None, None, None], torch.full((241, 1, 1, 4), 0.5, dtype=torch.float64))
    targets = Targets.from_list([torch.tensor([0])], [torch.full((1, 4), 0.5)])
    each, zero = torch.arange(241), torch.zeros(241, dtype=torch.long)
    matches = {"positive": Matches(each, zero, zero, zero), "negative": Matches(*[zero[:0]] * 4)}
    figure, axes = subplots(2, width=9.0, height=3.2, sharey=True)
    for ax, (kind, pairs) in zip(axes, matches.items(), strict=True):
        for number, gamma in enumerate(gammas):
            loss = focal_loss(predictions, targets, pairs, alpha, gamma)
            ax.plot(logit.sigmoid(), loss, color=PALETTE[number], ls=("-", "--", "-.", ":")[number % 4], lw=1.8,
                    label=f"γ = {gamma:g}")  # fmt: skip
        weight = alpha if kind == "positive" else 1 - alpha
        finish(ax, f"a {kind}, weight {weight:g}", "predicted probability p", "loss" if kind == "positive" else "")
        ax.set_ylim(0, 2)
    return figure


def pull_figure(
    predictions: Predictions, targets: Targets, branches: Mapping[str, tuple[Matches, Mapping[str, Predictions]]]
) -> Figure:
    """Draws what the terms of each branch pull at, in one image of one layer: a row per branch; the L1 and the GIoU term move
    the edges of matched boxes along the arrows, the class term moves logits up or down."""
    figure, axes = subplots(3, len(branches), width=11.0, height=3.5, width_ratios=(1, 1, 0.95))
    largest = max(float(terms["class"].logits.abs().max()) for _, terms in branches.values())
    for row, (name, (matches, terms)) in enumerate(branches.items()):
        words = branch_title(name)
        for ax, term, title in zip(axes[3 * row :], ("l1", "giou"), ("L1", "GIoU"), strict=False):
            draw_pulls(ax, predictions, targets, matches, terms[term])
            ax.set_title(f"{words}: {title} on boxes", fontsize=11)
        ax = axes[3 * row + 2]
        pull = terms["class"].logits[0, 0].detach().cpu().numpy()
        image = ax.imshow(pull, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
        for (query, label), value in np.ndenumerate(pull):
            ax.text(label, query, f"{value:+.2f}" if abs(value) >= 0.005 else "0", ha="center", va="center", fontsize=8,
                    color="white" if abs(value) > 0.6 * largest else DARK)  # fmt: skip
        for query, target in zip(matches.query.tolist(), matches.target.tolist(), strict=True):
            label = int(targets.labels[target])
            ax.add_patch(
                Rectangle((label - 0.47, query - 0.45), 0.94, 0.9, fill=False, ec=object_color(target), lw=2.2)
            )
        ax.set_xticks(range(pull.shape[1]), [f"class {c}" for c in range(pull.shape[1])], fontsize=9)
        ax.set_yticks(range(pull.shape[0]), [f"query {q}" for q in range(pull.shape[0])], fontsize=9)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{words}: class on logits", fontsize=11)
        figure.colorbar(image, ax=ax, pad=0.02).set_label("pull on the logit, + is up", fontsize=9)
    return figure


def draw_pulls(ax: Axes, predictions: Predictions, targets: Targets, matches: Matches, pull: Predictions) -> None:
    """Draws objects filled, matched boxes dashed in their object's color, with an arrow at every edge that is pulled."""
    canvas(ax, None)
    for number, (cx, cy, w, h) in enumerate(targets.boxes.tolist()):
        ax.add_patch(Rectangle((cx - w / 2, cy - h / 2), w, h, fc=object_color(number), alpha=0.22, lw=0))
    boxes = predictions.boxes[0, 0].tolist()
    moves = cxcywh_to_xyxy(pull.boxes[0, 0].detach())  # the conversion is linear, so it also says how edges move
    longest = max(float(moves.abs().max()), 1e-12)
    for number, (query, target) in enumerate(zip(matches.query.tolist(), matches.target.tolist(), strict=True)):
        cx, cy, w, h = boxes[query]
        color = object_color(target)
        ax.add_patch(Rectangle((cx - w / 2, cy - h / 2), w, h, fill=False, ec=color, ls="--", lw=1.3))
        ax.text(cx - w / 2 + 0.01, cy - h / 2 - 0.01, str(query), fontsize=8, color=DARK, va="bottom",
                bbox={"fc": "white", "ec": color, "lw": 0.8, "pad": 1})  # fmt: skip
        left, top, right, bottom = (0.12 * moves[query] / longest).tolist()
        shift = 0.7 * ((number + 0.5) / len(matches) - 0.5)  # arrows of different boxes keep apart
        x, y = cx + shift * w, cy + shift * h
        _pull(ax, (cx - w / 2, y), (left, 0), color)
        _pull(ax, (cx + w / 2, y), (right, 0), color)
        _pull(ax, (x, cy - h / 2), (0, top), color)
        _pull(ax, (x, cy + h / 2), (0, bottom), color)


def _pull(ax: Axes, start: tuple[float, float], move: tuple[float, float], color: str) -> None:
    """An arrow from a dot on an edge, the dot in the object's color; nothing where nothing moves."""
    if abs(move[0]) + abs(move[1]) < 0.004:
        return
    end = (start[0] + move[0], start[1] + move[1])
    ax.annotate("", end, start, zorder=4, arrowprops={"arrowstyle": "-|>", "mutation_scale": 9, "color": DARK, "lw": 1.5,
                "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    ax.plot(*start, "o", ms=5, mfc=color, mec=DARK, zorder=5)


def _aligned(gradients: BranchGradients, parts: Sequence[str], branches: Sequence[str]) -> np.ndarray:
    """[P, B] norms for these parts and branches, NaN for what the detector does not have."""
    table = np.full((len(parts), len(branches)), np.nan)
    for row, part in enumerate(parts):
        for column, branch in enumerate(branches):
            if part in gradients.parts and branch in gradients.branches:
                table[row, column] = gradients.norm(part, branch)
    return table


def _place(gradients: Sequence[BranchGradients]):
    """Sorts parts as the longest list has them; parts it lacks come after the one they follow elsewhere."""
    order = list(max((g.parts for g in gradients), key=len))
    for g in gradients:
        for before, part in zip(("", *g.parts), g.parts, strict=False):
            if part not in order:
                order.insert(order.index(before) + 1 if before in order else 0, part)
    return order.index
