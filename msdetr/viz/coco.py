"""Pictures for work with COCO: thumbnails with their licences, the gaps in its category ids, the first steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torchvision.transforms.v2 import functional as F

from .. import files
from ..analysis.runs import Run
from ..boxes import cxcywh_to_xyxy
from ..data import Categories
from ..errors import InputError
from .data import draw_box
from .style import PALETTE, colors, finish, safe, show_pixels, subplots

# what the "license" of an image means in COCO's annotation files: name, and whether a small copy may be shown freely
LICENCES = {
    1: ("CC BY-NC-SA 2.0", False),
    2: ("CC BY-NC 2.0", False),
    3: ("CC BY-NC-ND 2.0", False),
    4: ("CC BY 2.0", True),
    5: ("CC BY-SA 2.0", True),
    6: ("CC BY-ND 2.0", False),
    7: ("no known copyright restrictions", True),
    8: ("United States government work", True),
}


@dataclass(frozen=True)
class Credit:
    """Where an image comes from and what it may be used for. free: a small copy with boxes drawn on it may be shown."""

    licence: str
    source: str
    free: bool


def photo_credits(annotation_file: str | Path) -> dict[int, Credit]:
    """Returns image id -> Credit, as COCO's annotation file says; images without an entry are the data set's own."""
    images = files.parse_json(files.read_bytes(annotation_file), annotation_file)["images"]
    found = {}
    for image in images:
        number = image.get("license")
        name, free = LICENCES.get(number, (f"licence {number}", False)) if number is not None else ("", True)
        found[image["id"]] = Credit(name, image.get("flickr_url", ""), free)
    return found


def thumbnail_figure(
    dataset, indices: Sequence[int], notes: Mapping[int, str] | None = None, side: int = 160
) -> Figure:
    """Draws images reduced to ``side`` pixels at most, with their boxes, one color per class; ``notes`` (image id -> text, for
    instance the licence) go below the image ids. Raises InputError without any image."""
    if not indices:
        raise InputError("there is no image to draw")
    figure, axes = subplots(len(indices), height=2.2)
    for ax, index in zip(axes, indices, strict=True):
        sample, pixels = dataset[index], dataset.pixels(index)
        height, width = pixels.shape[-2:]
        scale = min(1.0, side / max(height, width))
        h, w = max(1, round(scale * height)), max(1, round(scale * width))
        show_pixels(ax, F.resize(pixels, [h, w], antialias=True).permute(1, 2, 0).numpy())
        ax.set_axis_off()
        for box, label in zip(cxcywh_to_xyxy(sample.boxes).numpy() * [w, h, w, h], sample.labels.tolist(), strict=True):
            draw_box(ax, box, PALETTE[label % len(PALETTE)], width=1.0)
        image_id = dataset.image_ids[index]
        note = (notes or {}).get(image_id)
        ax.set_title(f"image {image_id}\n{safe(note)}" if note else f"image {image_id}", fontsize=8)
    return figure


def category_figure(contiguous: Categories, raw: Categories) -> Figure:
    """Draws the class index over the category id, for classes numbered without gaps and for ids used as they are."""
    figure, (ax,) = subplots(height=3.2)
    ids = np.array(contiguous.category_ids)
    ax.plot(ids, [raw.to_class(i) for i in ids.tolist()], color=PALETTE[1], linewidth=1.4, linestyle="--",
            label=f"raw: class = id, {len(raw)} classes, {len(raw) - len(ids)} of them never used")  # fmt: skip
    ax.plot(ids, np.arange(len(ids)), color=PALETTE[0], marker="o", markersize=3, linewidth=0.8,
            label=f"contiguous: {len(contiguous)} classes")  # fmt: skip
    for gap in sorted(set(range(int(ids.min()), int(ids.max()))) - set(ids.tolist())):
        ax.axvline(gap, color="#999999", linewidth=0.6, alpha=0.7)
    finish(
        ax, "From category ids to classes (grey: ids that no category has)", "category id in the file", "class index"
    )
    return figure


def first_steps_figure(runs: Mapping[str, Run]) -> Figure:
    """Draws what tells early whether a run is healthy, over its logged steps: the class term (0.01-prior: about 1.1 per
    object at the start), the L1 distance of the boxes (both one-to-one, last layer), and one-to-many positives."""
    figure, axes = subplots(3, height=3.3)
    panels = (
        ("Class term", "focal loss per object", lambda line: line["terms"].get("one_to_one/class", [None])[-1]),
        ("Boxes", "L1 distance per object", lambda line: line["terms"].get("one_to_one/l1", [None])[-1]),
        ("One-to-many positives", "queries per object", lambda line: line["positives_per_object"].get("one_to_many")),
    )
    for ax, (title, label, value) in zip(axes, panels, strict=True):
        for name, (color, marker) in colors(runs).items():
            points = [(line["step"], value(line)) for line in runs[name].steps]
            points = [(x, y) for x, y in points if y is not None]
            if points:
                every = max(1, len(points) // 8)
                ax.plot(*zip(*points, strict=True), color=color, marker=marker, markevery=every, markersize=4,
                        linewidth=1.2, label=safe(name))  # fmt: skip
        finish(ax, title, "step", label)
        ax.set_ylim(0)
    return figure
