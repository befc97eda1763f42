"""Pictures of a data set: its images with their objects, and what a detector finds in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..analysis.budget.scene import Scene, corners
from ..boxes import cxcywh_to_xyxy
from .labels import draw_labels
from .style import DARK, PALETTE, safe, show_pixels, subplots

ANNOTATED = "white"  # objects; a line has a dark edge


def sample_figure(dataset, count: int = 6, start: int = 0) -> Figure:
    """Draws ``count`` images of a data set with their boxes and class names."""
    figure, axes = _grid(count)
    for ax, index in zip(axes, range(start, min(start + count, len(dataset)))):
        _image(ax, dataset, index)
        boxes, labels = _objects(dataset, index)
        colors = [PALETTE[label % len(PALETTE)] for label in labels]
        for box, color in zip(boxes, colors, strict=True):
            draw_box(ax, box, color)
        draw_labels(ax, boxes, [dataset.class_names[label] for label in labels], colors)
    figure.suptitle("Images with their annotated objects", fontsize=11)
    return figure


def detection_figure(predictor, dataset, count: int = 6, threshold: float = 0.5, start: int = 0) -> Figure:
    """Draws ``count`` images with the detections above ``threshold`` (colored, with class and score) and the annotated
    objects (dashed)."""
    figure, axes = _grid(count)
    for ax, index in zip(axes, range(start, min(start + count, len(dataset)))):
        _image(ax, dataset, index)
        for box, _ in zip(*_objects(dataset, index)):
            draw_box(ax, box, ANNOTATED, style="--", width=1.2)
        found = predictor.predict(dataset.pixels(index), min_score=threshold)
        order = found.scores.argsort(descending=True)  # the highest score has the first choice of a place for its name
        boxes, labels = found.boxes[order].tolist(), found.labels[order].tolist()
        colors = [PALETTE[label % len(PALETTE)] for label in labels]
        for box, color in reversed(list(zip(boxes, colors, strict=True))):
            draw_box(ax, box, color)
        names = [predictor.class_names[label] for label in labels]
        texts = [f"{name} {score:.2f}" for name, score in zip(names, found.scores[order].tolist(), strict=True)]
        draw_labels(ax, boxes, texts, colors)
    figure.suptitle(f"Detections with a score above {threshold:g}", fontsize=11)
    _legend(figure)
    return figure


def answer_figure(dataset, index: int, answers: Mapping[str, Scene], threshold: float = 0.3) -> Figure:
    """One image side by side as several detectors answered: their detections above a score, and the annotated objects.

    dataset: a ``CocoDetection``. answers: what a detector is called -> its scene of this image (``msdetr.analysis.budget``).
    """
    figure, axes = subplots(len(answers), height=3.6)
    for ax, (name, scene) in zip(axes, answers.items(), strict=True):
        _image(ax, dataset, index)
        ax.set_axis_off()
        for box in corners(scene.objects.boxes):
            draw_box(ax, box, ANNOTATED, style="--", width=1.2)
        shown = scene.found.scores > threshold
        found = corners(scene.found.boxes[shown]), scene.found.labels[shown], scene.found.scores[shown]
        for box, label, score in zip(*found):
            draw_box(ax, box, PALETTE[label % len(PALETTE)], f"{dataset.class_names[label]} {score:.2f}", width=1.2)
        ax.set_title(f"{safe(name)}: {shown.sum()} detections above {threshold:g}", fontsize=10)
    _legend(figure)
    return figure


def outlined(width: float) -> list[patheffects.AbstractPathEffect]:
    """A dark edge around a line of this width, which stands out from any background."""
    return [patheffects.withStroke(linewidth=width + 1.6, foreground=DARK, alpha=0.6)]


def draw_box(ax: Axes, box: Sequence[float], color: str, text: str = "", style: str = "-", width: float = 1.6) -> None:
    """Draws an xyxy box in pixels with a name that stays readable on any background."""
    x0, y0, x1, y1 = box
    ax.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=color,
            linestyle=style,
            linewidth=width,
            path_effects=outlined(width),
        )
    )
    if text:
        below = y0 < 0.08 * ax.get_ylim()[0]
        ax.text(
            x0,
            y1 if below else y0,
            safe(text),
            fontsize=7.5,
            color="white",
            va="top" if below else "bottom",
            clip_on=True,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=PALETTE[0], linewidth=1.6, label="detection (one color per class)"),
        Line2D(
            [], [], color=ANNOTATED, linewidth=1.2, linestyle="--", label="annotated object", path_effects=outlined(1.2)
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = subplots(columns, rows, height=3.1)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def _image(ax: Axes, dataset, index: int) -> None:
    pixels = dataset.pixels(index).permute(1, 2, 0).numpy()
    show_pixels(ax, pixels)
    ax.set_title(f"image {dataset.image_ids[index]}", fontsize=9)


def _objects(dataset, index: int) -> tuple[np.ndarray, list[int]]:
    """Boxes [t, 4] xyxy in pixels of the picture that ``_image`` draws, and classes."""
    sample = dataset[index]
    height, width = dataset.pixels(index).shape[-2:]
    boxes = cxcywh_to_xyxy(sample.boxes).numpy() * np.array([width, height, width, height])
    return boxes, sample.labels.tolist()
