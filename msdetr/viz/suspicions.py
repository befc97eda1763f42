"""Pictures of the annotations that ``msdetr check-data`` finds suspicious."""

from __future__ import annotations

from itertools import chain, zip_longest
from textwrap import fill

from matplotlib.figure import Figure

from ..data import SplitReport, Suspicion, read_annotations, read_image
from ..errors import ImageError, InputError
from .data import draw_box
from .style import PALETTE, safe, show_pixels, subplots


def suspicion_figure(report: SplitReport, count: int = 9) -> Figure:
    """Draws the worst suspicious annotations of a split, some of every kind, each with its surroundings and the reason.

    Raises InputError where there are none.
    """
    chosen = _some_of_every_kind(report.suspicions)[:count]
    if not chosen:
        raise InputError(f"{report.file}: nothing is suspicious, there is nothing to draw")
    table = report.table if report.table is not None else read_annotations(report.file, on_bad="drop")[0]
    image_of = {image_id: i for i, image_id in enumerate(table.image_ids.tolist())}
    row_of = {annotation_id: i for i, annotation_id in enumerate(table.ids.tolist())}
    columns = min(3, len(chosen))
    figure, axes = subplots(columns, -(-len(chosen) // columns), height=3.4)
    for ax in axes:
        ax.set_axis_off()
    for ax, found in zip(axes, chosen, strict=False):
        place = found.place if found.annotation_id is not None else f"{found.place}, whole image"
        ax.set_title(f"{fill(safe(place, 90), 40)}\n{fill(safe(found.reason, 90), 40)}", fontsize=8)
        try:
            pixels, _ = read_image(report.images_dir / table.file_names[image_of[found.image_id]])
        except ImageError as error:
            ax.text(0.5, 0.5, fill(safe(error, 120), 30), ha="center", va="center", fontsize=7, transform=ax.transAxes)
            continue
        show_pixels(ax, pixels.permute(1, 2, 0).numpy())
        if found.annotation_id is not None:
            row = row_of[found.annotation_id]
            x, y, w, h = table.boxes[row].tolist()
            _look_at(ax, x, y, w, h)
            draw_box(ax, (x, y, x + w, y + h), PALETTE[1], table.category_names[table.category[row]])
    figure.suptitle(f"Worth a look in {safe(report.file.name)}", fontsize=11)
    return figure


def _some_of_every_kind(suspicions: list[Suspicion]) -> list[Suspicion]:
    """Round-robin over the kinds of reason, the worst of each first."""
    kinds: dict[str, list[Suspicion]] = {}
    for suspicion in suspicions:
        kind = "".join(character for character in suspicion.reason.split(":")[0] if not character.isdigit())
        kinds.setdefault(kind, []).append(suspicion)
    return [suspicion for suspicion in chain(*zip_longest(*kinds.values())) if suspicion is not None]


def _look_at(ax, x: float, y: float, w: float, h: float) -> None:
    """Shows a box with as much again around it, 32 pixels at least, within the image."""
    width, height = ax.get_xlim()[1], ax.get_ylim()[0]
    side = max(2 * max(w, h), 64)
    left, top = (
        min(max(c - side / 2, 0), max(limit - side, 0)) for c, limit in ((x + w / 2, width), (y + h / 2, height))
    )
    ax.set_xlim(left, min(left + side, width))
    ax.set_ylim(min(top + side, height), top)
