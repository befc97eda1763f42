"""Names beside boxes where they can be read: not on each other, inside the picture, dark on light colors."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from .style import DARK, safe

Rect = tuple[float, float, float, float]  # x0, y0, x1, y1, y downwards as in images


def readable_on(color: str) -> str:
    """White, or dark on light colors (relative luminance of the sRGB color)."""
    red, green, blue = to_rgb(color)
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.62 else "white"


def place_labels(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[float, float]], bounds: Rect) -> list[Rect]:
    """Where the names of boxes go: for each the place beside its box that covers least of the names before it.

    boxes: xyxy. sizes: width and height of each name, in the same units. bounds: of the picture; a name that fits into it
    stays inside. Tried in this order: above the box at its left and right end, below it, inside it at its corners.
    """
    placed: list[Rect] = []
    for (x0, y0, x1, y1), (width, height) in zip(boxes, sizes, strict=True):
        corners = [(x0, y0 - height), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1)]
        corners += [(x0, y0), (x1 - width, y0), (x0, y1 - height), (x1 - width, y1 - height)]
        spots = [_inside((x, y, x + width, y + height), bounds) for x, y in corners]
        placed.append(min(spots, key=lambda spot: sum(_shared(spot, other) for other in placed)))
    return placed


def draw_labels(
    ax: Axes, boxes: Sequence[Sequence[float]], texts: Sequence[str], colors: Sequence[str], size: float = 7.5
) -> None:
    """Writes a name at each box [N, 4] (xyxy, data units of ``ax``, y downwards), on its color."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    inches = ax.get_position().width * ax.figure.get_figwidth()  # before the layout is final, so about
    unit = (right - left) / max(inches, 0.1) / 72  # data units in a point
    words = [safe(text) for text in texts]
    sizes = [((0.62 * len(word) + 0.5) * size * unit, 1.45 * size * unit) for word in words]
    places = place_labels(boxes, sizes, (left, top, right, bottom))
    for (x0, y0, _, y1), word, color in zip(places, words, colors, strict=True):
        ax.text(x0 + 0.25 * size * unit, (y0 + y1) / 2, word, fontsize=size, color=readable_on(color), va="center",
                clip_on=True, bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.9})  # fmt: skip


def _inside(spot: Rect, bounds: Rect) -> Rect:
    x0, y0, x1, y1 = spot
    x = max(min(x0, bounds[2] - (x1 - x0)), bounds[0])
    y = max(min(y0, bounds[3] - (y1 - y0)), bounds[1])
    return x, y, x + x1 - x0, y + y1 - y0


def _shared(a: Rect, b: Rect) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
