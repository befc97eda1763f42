"""The one-to-many family in one picture: what each method duplicates, and where its supervision enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from .style import DARK, PALETTE, safe, subplots

ONE, MANY, KNOWN = DARK, PALETTE[3], PALETTE[2]
COLORS = {"one": ONE, "many": MANY, "known": KNOWN}
STAYS, TRAINING = PALETTE[9], "white"


@dataclass(frozen=True)
class Lane:
    """A group of queries on its way through the decoder. output, inside: the supervision ("one", "many", "known") of what
    leaves its layers and of what is read inside them. stays: whether it is there at inference."""

    name: str
    output: str = "one"
    inside: str | None = None
    stays: bool = True


@dataclass(frozen=True)
class Sketch:
    """A method. encoder: further supervision of the encoder's features, with the parts that give it. after: what is done to the
    answers at inference."""

    title: str
    lanes: Sequence[Lane]
    encoder: str | None = None
    after: str | None = None


QUERIES = Lane("queries")
FAMILY = (
    Sketch("Deformable DETR", [QUERIES]),
    Sketch("MS-DETR (c)", [Lane("queries", inside="many")]),
    Sketch("H-DETR", [QUERIES, Lane("further\nqueries", "many", stays=False)]),
    Sketch("Group DETR", [QUERIES, Lane("group\n2", stays=False), Lane("group\n3 …", stays=False)]),
    Sketch("DN-DETR", [QUERIES, Lane("noised\nobjects", "known", stays=False)]),
    Sketch("DETA", [Lane("queries", "many")], encoder="proposals,\nby IoU", after="NMS"),
    Sketch("Co-DETR", [QUERIES, Lane("positives\nof heads", "known", stays=False)], encoder="auxiliary\nheads"),
)


def family_figure(methods: Sequence[Sketch] = FAMILY, columns: int = 4) -> Figure:
    """Draws a panel per method: the encoder, the groups of queries that pass the decoder, and the supervision of each. What
    only training has is white and dashed."""
    rows = -(-len(methods) // columns)
    figure, axes = subplots(columns, rows, width=2.5 * columns, height=2.9)
    for ax in axes:
        ax.set_axis_off()
    for ax, method in zip(axes, methods, strict=False):
        _draw(ax, method)
    handles = [
        Line2D([], [], color=ONE, lw=1.8, label="one query per object"),
        Line2D([], [], color=MANY, lw=1.8, ls="--", label="several queries per object"),
        Line2D([], [], color=KNOWN, lw=1.8, ls=":", label="known pairs, nothing is matched"),
        Patch(fc=STAYS, ec=DARK, label="stays at inference"),
        Patch(fc=TRAINING, ec=DARK, ls="--", label="training only"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _draw(ax: Axes, method: Sketch) -> None:
    ax.set(xlim=(0, 5), ylim=(5.2, -0.3), xticks=[], yticks=[])
    ax.set_title(safe(method.title), fontsize=11, loc="left")
    _block(ax, 0.1, 2.0, 1.15, 1.2, "encoder", STAYS)
    if method.encoder is not None:
        _arrow(ax, (0.67, 4.1), (0.67, 3.3), "many")
        ax.text(0.05, 4.25, method.encoder, fontsize=8, va="top", color=MANY)
    _plain(ax, (1.3, 2.6), (1.7, 2.6))
    ax.add_patch(
        FancyBboxPatch((1.75, 1.0), 3.15, 2.9, boxstyle="round,pad=0,rounding_size=0.12", fc="#f1f1f1", ec="none")
    )
    ax.text(4.97, 2.45, "decoder", fontsize=8, rotation=90, va="center", color="#555555")
    width = 3.0 / max(len(method.lanes), 2)
    for number, lane in enumerate(method.lanes):
        x = 1.85 + number * width
        ax.text(x + 0.4, 0.85, lane.name, fontsize=8, ha="center", va="bottom", color=DARK)
        _block(ax, x, 1.15, 0.8, 2.35, "", STAYS if lane.stays else TRAINING, "-" if lane.stays else "--")
        _plain(ax, (x + 0.4, 0.88), (x + 0.4, 1.12))
        _arrow(ax, (x + 0.4, 4.65), (x + 0.4, 3.55), lane.output)
        if lane.inside is not None:
            _arrow(ax, (x + 1.75, 1.9), (x + 0.85, 1.9), lane.inside)
            ax.text(x + 0.95, 2.05, "before self-\nattention", fontsize=8, va="top", color=COLORS[lane.inside])
    if method.after is not None:
        ax.text(3.2, 4.5, f"then {method.after}", fontsize=9, color=DARK)


def _block(ax: Axes, x: float, y: float, width: float, height: float, text: str, fill: str, style: str = "-") -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", fc=fill, ec=DARK, ls=style,
                                lw=1.2))  # fmt: skip
    ax.text(x + width / 2, y + height / 2, text, fontsize=9, ha="center", va="center", color=DARK)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
    style = {"one": "-", "many": "--", "known": ":"}[kind]
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": COLORS[kind], "ls": style, "lw": 1.8,
                                            "shrinkA": 0, "shrinkB": 0})  # fmt: skip


def _plain(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": DARK, "lw": 0.9, "shrinkA": 0, "shrinkB": 0})
