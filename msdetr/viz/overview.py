"""What a newcomer should see first: DETR from image to boxes, and how its answers are counted. Pictures in, Figures out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from msdetr.viz.style import DARK, PALETTE, finish, safe, show_pixels, subplots

MANY = PALETTE[3]  # one-to-many supervision, as in the diagrams of decoder layers
OBJECTS = (PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[4])
STRIDES = (8, 16, 32)


def detr_figure(picture: np.ndarray, boxes: np.ndarray, names: Sequence[str], queries: int = 9) -> Figure:
    """Draws DETR's way from an image [H, W, 3] (uint8) to boxes [T, 4] (xyxy, pixels) with their class names, and below it
    what training adds: one query for every object, and with MS-DETR several.

    The levels are the picture itself, averaged; their numbers of tokens are those of a backbone with these strides.
    """
    figure = Figure(figsize=(9.6, 4.3), dpi=100)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, 9.6), ylim=(0, 4.3))
    page.set_axis_off()
    _picture(figure, (0.1, 1.75, 1.7, 1.7), picture, "image")
    height = 3.45
    for stride, size in zip(STRIDES, (0.85, 0.55, 0.34), strict=True):
        level = _pooled(picture, stride)
        _picture(figure, (2.2, height - size, size, size), level, "")
        page.text(2.2 + size + 0.07, height - size / 2, f"{level.shape[0]} × {level.shape[1]}", fontsize=8, va="center")
        height -= size + 0.12
    page.text(2.2, 3.52, "backbone: levels", fontsize=9)
    _block(page, 4.35, 2.6, "encoder", "tokens look\nat each other", PALETTE[9])
    _block(page, 6.15, 2.6, "decoder", "queries look at the\nimage and at each other", PALETTE[1])
    last = _picture(figure, (7.75, 1.75, 1.7, 1.7), picture, "boxes and classes")
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        _object(last, box, f"{number} {name}", OBJECTS[number % len(OBJECTS)])
    for start, end in ((1.85, 2.15), (3.1, 3.66), (5.02, 5.28), (7.0, 7.7)):
        _arrow(page, (start, 2.6), (end, 2.6))
    _queries(page, queries, len(boxes))
    page.plot([0.1, 9.5], [1.42, 1.42], color="#999999", lw=0.8, ls=":")
    page.text(0.1, 1.2, "in training only", fontsize=9, style="italic", va="center")
    one = "one-to-one: every object teaches one query, all others learn “background”"
    many = "one-to-many (MS-DETR): it also teaches several good ones, inside the decoder's layers"
    for y, color, style, words in ((0.85, DARK, "-", one), (0.4, MANY, "--", many)):
        page.plot([0.1, 0.55], [y, y], color=color, ls=style, lw=1.8)
        page.text(0.65, y, words, fontsize=9, va="center", color=DARK)
    _arrow(page, (8.9, 1.72), (6.45, 1.92), DARK, curve=-0.25)
    _arrow(page, (8.3, 1.72), (5.85, 1.92), MANY, "--", curve=-0.3)
    return figure


def precision_recall_figure(recall: Sequence[float], precision: Sequence[float], right: Sequence[bool]) -> Figure:
    """Draws precision over recall, detection by detection from the highest score down, and the area that is AP: under the
    highest precision at that recall or a higher one. recall, precision, right: [N], one entry per detection."""
    figure, (ax,) = subplots(width=6.0, height=3.4)
    recall, precision = np.asarray(recall, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    edges = np.concatenate([[0.0], recall])
    for left, edge, height in zip(edges, recall, best, strict=False):
        ax.add_patch(Rectangle((left, 0), edge - left, height, fc=PALETTE[9], alpha=0.35, lw=0))
    ax.plot(recall, precision, color="#777777", lw=1, zorder=1)
    for hit, marker, color, label in ((True, "o", PALETTE[2], "right"), (False, "X", PALETTE[3], "wrong")):
        chosen = np.asarray(right) == hit
        ax.plot(recall[chosen], precision[chosen], marker, color=color, ms=9, label=label, zorder=3)
    for place, (x, y) in enumerate(zip(recall, precision, strict=True), 1):
        ax.annotate(str(place), (x, y), (7, 5), textcoords="offset points", fontsize=9)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.1))
    finish(ax, "Detections from the highest score down; shaded: AP", "recall", "precision", loc="lower right")
    return figure


def _pooled(picture: np.ndarray, stride: int) -> np.ndarray:
    height, width = (side // stride for side in picture.shape[:2])
    cut = picture[: height * stride, : width * stride].astype(np.float64)
    return cut.reshape(height, stride, width, stride, 3).mean((1, 3)).astype(np.uint8)


def _picture(figure: Figure, place: tuple[float, float, float, float], picture: np.ndarray, title: str) -> Axes:
    """An image at (x, y, width, height) in inches of the page."""
    width, height = figure.get_size_inches()
    x, y, w, h = place
    ax = figure.add_axes((x / width, y / height, w / width, h / height))
    show_pixels(ax, picture)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9, pad=4)
    return ax


def _block(page: Axes, x: float, y: float, title: str, words: str, color: str) -> None:
    width = 1.34 if title == "encoder" else 1.7
    page.add_patch(FancyBboxPatch((x - width / 2, y - 0.6), width, 1.2, boxstyle="round,pad=0,rounding_size=0.1",
                                  fc=color, ec=DARK, lw=1.4))  # fmt: skip
    page.text(x, y + 0.28, title, ha="center", va="center", fontsize=11, weight="bold", color=DARK)
    page.text(x, y - 0.2, words, ha="center", va="center", fontsize=8, color=DARK)


def _queries(page: Axes, count: int, objects: int) -> None:
    """Queries enter from above; those that end as objects have their color."""
    for number, x in enumerate(np.linspace(5.45, 6.85, count)):
        color = OBJECTS[number % len(OBJECTS)] if number < objects else "#cccccc"
        page.add_patch(Rectangle((x - 0.06, 3.48), 0.12, 0.3, fc=color, ec=DARK, lw=0.8))
        _arrow(page, (x, 3.47), (x, 3.22), size=6)
    page.text(6.15, 3.92, "object queries (vectors)", ha="center", fontsize=9)
    page.text(7.02, 3.63, "gray: no object", fontsize=8, va="center")


def _object(ax: Axes, box: Sequence[float], text: str, color: str) -> None:
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=3.2))
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=color, lw=2))
    ax.text(x0, y0 - 2, safe(text), fontsize=7.5, color="white", va="bottom", clip_on=True,
            bbox={"fc": color, "ec": "none", "pad": 0.8})  # fmt: skip


def _arrow(page: Axes, start, end, color: str = DARK, style: str = "-", curve: float = 0.0, size: float = 11) -> None:
    page.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=size, color=color, ls=style, lw=1.4,
                                   connectionstyle=f"arc3,rad={curve}", shrinkA=0, shrinkB=0))  # fmt: skip
