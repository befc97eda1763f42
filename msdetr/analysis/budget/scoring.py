"""COCO's matching of detections with objects, image by image: who finds what, and what does not count.

The rules are those of COCO's evaluation (pycocotools' ``COCOeval.evaluateImg``): by descending score, each detection takes the
object of its class with the highest IoU of at least the threshold that is not taken yet, one that counts before one that does
not; crowds can be taken any number of times; a detection that takes an object that does not count, or takes none and is
outside of the range of areas, does not count.

Shape legend: I IoU thresholds, T objects, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from msdetr.analysis.budget.scene import Found, Objects

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # to the last bit those of pycocotools
EVERY_AREA = (0.0, 1e10)  # in pixels, as COCO has it; both ends included
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class Matched:
    """counts [T]: objects that count. kept [N]: detections among the first ``max_detections`` of their class.
    by [I, T]: the detection that takes an object, -1 for none (for a crowd: one of them). takes [I, N]: the object that
    a detection takes, -1 for none. false [I, N]: detections that count and take none.
    overlap [N, T]: IoU; for a crowd, the share of the detection that lies in it."""

    counts: np.ndarray
    kept: np.ndarray
    by: np.ndarray
    takes: np.ndarray
    false: np.ndarray
    overlap: np.ndarray


def overlaps(boxes: np.ndarray, objects: Objects, crowd: bool = True) -> np.ndarray:
    """IoU of boxes [N, 4] with objects [T] -> [N, T]. crowd: with a crowd, the share of the box that lies in it."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    crowds = objects.crowd.astype(np.uint8) if crowd else np.zeros(len(objects), np.uint8)
    return np.asarray(mask.iou(np.ascontiguousarray(boxes), np.ascontiguousarray(objects.boxes), crowds))


def match(
    objects: Objects,
    found: Found,
    thresholds: np.ndarray,
    max_detections: int,
    area: tuple[float, float] = EVERY_AREA,
    overlap: np.ndarray | None = None,
) -> Matched:
    """Matches the detections of one image with its objects at every IoU threshold, counting objects of a range of areas."""
    overlap = overlaps(found.boxes, objects) if overlap is None else overlap
    counts = ~objects.crowd & (objects.areas >= area[0]) & (objects.areas <= area[1])
    kept = _first_of_each_class(found.labels, max_detections)
    at_least = np.minimum(thresholds, 1 - 1e-10)[:, None]  # [I, 1]
    by = np.full((len(thresholds), len(objects)), -1)
    takes = np.full((len(thresholds), len(found)), -1)
    same_class = found.labels[:, None] == objects.labels
    reaches = same_class & (overlap >= at_least.min())
    rows = np.arange(len(thresholds))
    for detection in np.flatnonzero(kept & reaches.any(axis=1)):
        # objects that count come first; among equals, the later one is taken
        columns = np.flatnonzero(reaches[detection])
        columns = columns[np.argsort(~counts[columns], kind="stable")]
        ious = overlap[detection, columns]
        free = ((by[:, columns] < 0) | objects.crowd[columns]) & (ious >= at_least)
        preferred = free & counts[columns]
        free = np.where(preferred.any(axis=1, keepdims=True), preferred, free)
        best = len(columns) - 1 - np.where(free, ious, -1.0)[:, ::-1].argmax(axis=1)
        hit = free.any(axis=1)
        takes[hit, detection] = columns[best[hit]]
        by[rows[hit], columns[best[hit]]] = detection
    sizes = found.boxes[:, 2] * found.boxes[:, 3]
    inside = (sizes >= area[0]) & (sizes <= area[1])
    return Matched(counts, kept, by, takes, kept & inside & (takes < 0), overlap)


def _first_of_each_class(labels: np.ndarray, most: int) -> np.ndarray:
    """[N] whether a detection, in their order, is among the first so many of its class."""
    kept = np.ones(len(labels), bool)
    for label in np.unique(labels):
        kept[np.flatnonzero(labels == label)[most:]] = False
    return kept
