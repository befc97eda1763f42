"""Matching stability in pictures: flip rates over training, and one image's candidates as an animation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy.ndimage import median_filter

from msdetr.analysis.branches import branch_title
from msdetr.analysis.specimen import recorded
from msdetr.analysis.stability import KEPT, FlipRates, MatchHistory
from msdetr.viz.matching import canvas, draw_assignments
from msdetr.viz.style import DARK, MARKERS, PALETTE, finish, subplots

LAYER_COLORS = ("#fde0a8", "#f6b48f", "#e8766b", "#c03a76", "#7d2482", "#3b0f70")  # light (first) to dark (last layer)


def flip_figure(rates: FlipRates) -> Figure:
    """Draws the flip rate per decoder layer and epoch, the branches side by side; thin lines: every record."""
    width = max(6.0, 4.5 * len(rates.rates))
    figure, axes = subplots(len(rates.rates), width=width, height=4.0, sharey=True)
    for ax, (name, values) in zip(axes, rates.rates.items(), strict=True):
        epochs, means = rates.per_epoch(name)
        layers = values.shape[1]
        for layer in range(layers):
            color = LAYER_COLORS[round((layer + 1) * (len(LAYER_COLORS) - 1) / max(layers, 1))]
            ax.plot(rates.epochs, values[:, layer], color=color, linewidth=0.7, alpha=0.5)
            ax.plot(
                epochs, means[:, layer], MARKERS[layer % len(MARKERS)], linestyle="-", color=color, markersize=4,
                label=f"layer {layer + 1}",
            )  # fmt: skip
        several = name in rates.several
        what = "queries of an object that changed" if several else "objects whose query changed"
        finish(ax, f"{branch_title(name, several)}: {what}", "epoch", "flip rate between records", legend=False)
        ax.set_ylim(0, 1.02)
        ax.title.set_fontsize(10)
    handles = [
        *axes[0].get_legend_handles_labels()[0],
        Line2D([], [], color=DARK, linewidth=0.7, alpha=0.5, label="thin: every record; with marks: mean of an epoch"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def filmstrip_figure(history: MatchHistory, image: int = 0, layer: int = -1, most: int = 5) -> Figure:
    """Draws some frames of ``animate`` beside each other, one-to-one above one-to-many: what is left of it on paper."""
    records = _chosen(history, most)
    figure, axes = subplots(len(records), 2, width=max(6.0, 2.0 * len(records)), height=2.3)
    for column, record in enumerate(records):
        found = recorded(history, record, image).explain()
        for row, name in enumerate(KEPT):
            ax, branch = axes[row * len(records) + column], found.branch(name)
            canvas(ax, history.pictures[image])
            draw_assignments(ax, branch, layer, history.pictures[image])
            ax.set_title(f"step {history.steps[record]}: {int(branch.matched[layer].sum())} pairs", fontsize=9)
            if column == 0:
                ax.set_ylabel(branch.title + (" (as it would be)" if branch.hypothetical else ""), fontsize=9)
    return figure


def animate(
    history: MatchHistory,
    path: str | Path,
    image: int = 0,
    layer: int = -1,
    fps: int = 2,
    most: int = 60,
    dpi: int = 72,
) -> Path:
    """Animates one image's matched candidates over training, one-to-one beside one-to-many, as a GIF; returns the path.

    At most ``most`` records, evenly spread, are shown.
    """
    path = Path(path)
    records = _chosen(history, most)
    figure = Figure(figsize=(6.4, 3.6))  # a fixed layout, so that frames do not jump
    axes = figure.subplots(1, 2, gridspec_kw={"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.86, "wspace": 0.05})

    grey = median_filter(history.pictures[image].mean(-1), size=3)  # few, even shades keep the file small
    picture = np.repeat((grey / 256 * 10).round()[..., None].astype(np.uint8) * 25, 3, axis=-1)

    def draw(record: int) -> None:
        found = recorded(history, record, image).explain()
        for ax, name in zip(axes, KEPT, strict=True):
            ax.clear()
            canvas(ax, picture)
            draw_assignments(ax, found.branch(name), layer, picture)
            would = " (as it would be)" if found.branch(name).hypothetical else ""
            ax.set_title(
                f"{found.branch(name).title}{would}: {int(found.branch(name).matched[layer].sum())} pairs", fontsize=9
            )
        figure.suptitle(f"step {history.steps[record]}, epoch {history.epochs[record]:.1f}", fontsize=11)

    frames, shades = [], _palette()
    for record in records:
        draw(record)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        frames.append(Image.open(buffer).convert("RGB").quantize(palette=shades, dither=Image.Dither.NONE))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return path


def _chosen(history: MatchHistory, most: int) -> list[int]:
    """At most so many records, evenly spread, the first and the last among them."""
    return np.unique(
        np.linspace(0, len(history.states) - 1, min(most, len(history.states))).round().astype(int)
    ).tolist()


def _palette() -> Image.Image:
    """The colors of all frames: greys, and those of the objects in three strengths. With the same ones in every frame only
    what changes takes space."""
    greys = [(shade, shade, shade) for shade in range(0, 256, 15)]
    strengths = [tuple(round(255 * (1 - w * (1 - part))) for part in to_rgb(c)) for c in PALETTE for w in (1, 0.7, 0.4)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.array(greys + strengths, np.uint8).tobytes())
    return palette
