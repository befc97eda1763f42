"""Notebook 09, COCO: a box in the file's format, and which detections count as right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...boxes import cxcywh_to_xyxy
from .exercise import Case, Exercise


def _to_coco(box: Tensor, width: int, height: int) -> list[float]:
    x0, y0, x1, y1 = cxcywh_to_xyxy(box).tolist()
    return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]


def _normalized_boxes(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("the whole image", (torch.tensor([0.5, 0.5, 1.0, 1.0]), 640, 480))
    yield Case("a square image", (torch.tensor([0.25, 0.5, 0.2, 0.4]), 100, 100))
    for _ in range(6):
        box = torch.from_numpy(np.concatenate([draw.uniform(0.3, 0.7, 2), draw.uniform(0.05, 0.6, 2)]))
        yield Case("a random box", (box, int(draw.integers(100, 900)), int(draw.integers(100, 900))))


def judged(overlaps: list[list[float]], crowd: list[bool], threshold: float) -> list[str]:
    """COCO's rule for the detections of one image and class, best first: "hit", "miss" or "ignored". overlaps: of each with
    each annotation."""
    taken: set[int] = set()
    verdicts = []
    for row in overlaps:
        free = [j for j, overlap in enumerate(row) if overlap >= threshold and not crowd[j] and j not in taken]
        if free:
            taken.add(max(free, key=lambda j: row[j]))
            verdicts.append("hit")
        else:
            verdicts.append("ignored" if any(o >= threshold and c for o, c in zip(row, crowd)) else "miss")
    return verdicts


def _ranked_detections(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("a detection that lies well", ([[0.8]], [False], 0.5))
    yield Case("an IoU of just the threshold", ([[0.5]], [False], 0.5))
    yield Case("a detection that lies badly", ([[0.3]], [False], 0.5))
    yield Case("a duplicate", ([[0.8], [0.9]], [False], 0.5))
    yield Case("a detection whose best object is taken", ([[0.9, 0.6], [0.8, 0.7]], [False, False], 0.5))
    yield Case(
        "a detection whose best object is taken and its second too far", ([[0.9, 0.6], [0.8, 0.2]], [False, False], 0.5)
    )
    yield Case("two detections in a crowd", ([[0.8], [0.7]], [True], 0.5))
    yield Case("a detection that lies better in a crowd than on an object", ([[0.9, 0.6]], [True, False], 0.5))
    yield Case("an IoU of just the threshold with a crowd", ([[0.5]], [True], 0.5))
    yield Case("no annotations", ([[], []], [], 0.5))
    for _ in range(30):
        detections, objects = int(draw.integers(1, 6)), int(draw.integers(1, 5))
        overlaps = draw.uniform(0.2, 1, (detections, objects)).tolist()
        crowd = (draw.uniform(size=objects) < 0.3).tolist()
        yield Case("random overlaps", (overlaps, crowd, float(draw.choice([0.5, 0.75]))))


EXERCISES = (
    Exercise("9.1", "to_coco", _to_coco, _normalized_boxes),
    Exercise("9.2", "judged", judged, _ranked_detections),
)
