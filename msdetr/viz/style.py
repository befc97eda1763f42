"""How figures look: a color-blind-safe palette, sizes for a notebook's width, and names made safe to draw."""

from __future__ import annotations

import functools
import html
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from ..errors import InputError

# The ten colors of seaborn's "colorblind" palette, in its order; figures also differ in marker or line style.
PALETTE = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DARK = "#2b2b2b"
WIDTH = 9.0  # inches; at 100 dots per inch the width of a notebook's output


def subplots(columns: int = 1, rows: int = 1, width: float = WIDTH, height: float = 3.6, **options):
    """Makes a Figure outside pyplot's list of open ones (nothing to close, no leak in loops) and its axes, flat."""
    figure = Figure(figsize=(width, height * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def finish(ax: Axes, title: str, x: str, y: str, legend: bool = True, **legend_options) -> None:
    """Adds title, axis labels, a light grid, and the legend if there is something to name."""
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if legend and ax.get_legend_handles_labels()[1]:
        ax.legend(**{"fontsize": 9, "framealpha": 0.9, **legend_options})


def safe(name: object, longest: int = 40) -> str:
    """Makes a name from outside plain text that draws as itself: no mathematics from dollar signs, no hidden legend entry
    from a leading underscore, control characters and glyphs the font lacks spelled out, long names shortened (F83)."""
    text = "".join(_spelled(character) for character in str(name))
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text or "(no name)"


def safe_html(name: object, longest: int = 60) -> str:
    """Escapes and shortens a name from outside for HTML."""
    text = "".join(" " if unicodedata.category(c).startswith("C") else c for c in str(name))
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…")


def show_pixels(ax: Axes, pixels: np.ndarray) -> None:
    """Draws an image [H, W, 3] so that x and y are places in it, (0, 0) its upper left corner, as boxes have them."""
    ax.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0))


def safe_text(name: object, longest: int = 40) -> str:
    """Makes a name from outside fit for a terminal: no control sequences, shortened."""
    text = "".join(_escaped(c) if unicodedata.category(c).startswith("C") else c for c in str(name))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _spelled(character: str) -> str:
    if unicodedata.category(character).startswith(("C", "Z")):
        return " " if character.isspace() else _escaped(character)
    return character if ord(character) in _glyphs() else _escaped(character)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points of the font that matplotlib comes with."""
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def spread(rows: Sequence[np.ndarray], how: str = "std") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, lower and upper edge over runs (first axis), each where every run is defined.

    how: "std" for mean ± sample standard deviation, "range" for the smallest and largest value. One run has no spread.
    """
    values = np.asarray(rows, dtype=np.float64)
    mean = values.mean(0)
    if len(values) == 1:
        return mean, mean, mean
    if how == "std":
        deviation = values.std(0, ddof=1)
        return mean, mean - deviation, mean + deviation
    if how == "range":
        return mean, values.min(0), values.max(0)
    raise InputError(f"spread: {how!r} is neither 'std' nor 'range'")


def run_label(name: str, number: int, how: str = "std") -> str:
    """'MS-DETR (c) (3 runs, mean ± std)': a legend entry that says what the band is."""
    if number == 1:
        return f"{safe(name)} (1 run)"
    return f"{safe(name)} ({number} runs, {'mean ± std' if how == 'std' else 'mean, min to max'})"


def colors(names: Sequence[str] | Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Gives each name a color and a marker, in order."""
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
