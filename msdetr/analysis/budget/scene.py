"""What a budget is made from: an image with its objects and a detector's answer, as arrays, whoever made them.

Shape legend: T objects, N detections, K layers, Q queries, C classes. Boxes are COCO's (x, y, width, height) in pixels,
float64, so that every IoU is the one that COCO's evaluation computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from msdetr.checks import count
from msdetr.errors import InputError

FORMATS = ("xyxy", "xywh", "cxcywh")


def corners(boxes: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) of boxes [..., 4] (x, y, width, height)."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


@dataclass(frozen=True)
class Objects:
    """What is annotated: boxes [T, 4], labels [T] class indices, areas [T] in pixels, by which COCO tells small from large,
    crowd [T] bool: regions that detections may lie in without being wrong."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Found:
    """What a detector answers, best first: boxes [N, 4], scores [N], labels [N] class indices, query [N] the query that
    each is made from, -1 where that is not known."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    query: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Layers:
    """What all queries of all decoder layers predict: boxes [K, Q, 4], scores [K, Q, C]. The last layer is the answer.

    answers: of a detector with post-processing of its own, what each layer would have answered, had it been the last; None where
    the answer are the best pairs of query and class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    answers: tuple[Found, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Scene:
    """One image. layers: None where only detections are known. name: for people, as the file's.

    Make it with ``of_detections`` or ``of_predictions``, which check what they are given.
    """

    image_id: int
    objects: Objects
    found: Found
    layers: Layers | None = None
    name: str = ""

    @classmethod
    def of_detections(
        cls,
        image_id: int,
        object_boxes: Any,
        object_labels: Any,
        boxes: Any,
        scores: Any,
        labels: Any,
        *,
        box_format: str = "xyxy",
        crowd: Any = None,
        areas: Any = None,
        name: str = "",
    ) -> Scene:
        """From final detections of any detector: boxes [N, 4], scores [N] and labels [N], in any order.

        box_format: of all boxes, "xyxy", "xywh" (COCO) or "cxcywh", in pixels. crowd [T]: none by default. areas [T]: as
        annotated; by default those of the boxes. The N detections are counted from 0, best first, ties as given.

        Raises InputError for shapes that do not fit, NaN or infinite values, or boxes with a negative size (F150).
        """
        where = f"image {image_id}"
        objects = _objects(where, object_boxes, object_labels, crowd, areas, box_format)
        box, label = _boxes(f"{where}: boxes", boxes, box_format), _labels(f"{where}: labels", labels)
        score = _floats(f"{where}: scores", scores).reshape(-1)
        if not len(box) == len(score) == len(label):
            raise InputError(f"{where}: {len(box)} boxes, {len(score)} scores and {len(label)} labels of detections")
        best = np.argsort(-score, kind="stable")
        found = Found(box[best], score[best], label[best], np.full(len(label), -1))
        return cls(int(image_id), objects, found, None, name)

    @classmethod
    def of_predictions(
        cls,
        image_id: int,
        object_boxes: Any,
        object_labels: Any,
        boxes: Any,
        scores: Any,
        *,
        box_format: str = "xyxy",
        max_detections: int = 100,
        crowd: Any = None,
        areas: Any = None,
        name: str = "",
    ) -> Scene:
        """From what the queries of any detector predict: boxes [Q, 4] and scores [Q, C], or [K, Q, 4] and [K, Q, C] for all
        of its layers. Its answer are the ``max_detections`` best pairs of query and class of the last layer.

        Other arguments and errors as for ``of_detections``; InputError also for an object of a class that has no score.
        """
        where = f"image {image_id}"
        objects = _objects(where, object_boxes, object_labels, crowd, areas, box_format)
        score = _floats(f"{where}: scores", scores)
        given = np.asarray(boxes)
        if score.ndim not in (2, 3) or (score.ndim == 3 and not len(score)) or given.shape != (*score.shape[:-1], 4):
            raise InputError(
                f"{where}: boxes {list(given.shape)} and scores {list(score.shape)}; expected [Q, 4] and [Q, C], or [K, Q, 4] "
                "and [K, Q, C]"
            )
        score = score if score.ndim == 3 else score[None]
        beyond = objects.labels >= score.shape[-1]
        if beyond.any():
            at = int(beyond.argmax())
            raise InputError(
                f"{where}: object {at} is of class {objects.labels[at]}, but scores are of {score.shape[-1]} classes; class "
                "indices count from 0"
            )
        box = _boxes(f"{where}: boxes", given, box_format).reshape(*score.shape[:-1], 4)
        found = best_pairs(box[-1], score[-1], count(max_detections, "max_detections"))
        return cls(int(image_id), objects, found, Layers(box, score), name)


def best_pairs(boxes: np.ndarray, scores: np.ndarray, most: int) -> Found:
    """The pairs of query and class with the highest scores [Q, C], with the boxes [Q, 4] of their queries; ties: as they stand."""
    pairs = np.argsort(-scores, axis=None, kind="stable")[:most]
    query, label = np.unravel_index(pairs, scores.shape)
    return Found(boxes[query], scores[query, label], label, query)


def _objects(where: str, boxes: Any, labels: Any, crowd: Any, areas: Any, box_format: str) -> Objects:
    box, label = _boxes(f"{where}: object boxes", boxes, box_format), _labels(f"{where}: object labels", labels)
    crowds = np.zeros(len(label), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
    sizes = box[:, 2] * box[:, 3] if areas is None else _floats(f"{where}: areas", areas).reshape(-1)
    if not len(box) == len(label) == len(crowds) == len(sizes):
        raise InputError(
            f"{where}: {len(box)} boxes, {len(label)} labels, {len(sizes)} areas and {len(crowds)} marks of crowds of objects"
        )
    return Objects(box, label, sizes, crowds)


def _boxes(what: str, boxes: Any, box_format: str) -> np.ndarray:
    """[n, 4] (x, y, width, height) from a format."""
    if box_format not in FORMATS:
        raise InputError(f"box_format: {box_format!r} is none of {', '.join(FORMATS)}")
    box = _floats(what, boxes)
    if box.size == 0:
        return np.zeros((0, 4))
    if box.ndim == 0 or box.shape[-1] != 4:
        raise InputError(f"{what}: the last dimension must be 4, got {list(box.shape)}")
    box = box.reshape(-1, 4).copy()
    if box_format == "xyxy":
        box[:, 2:] -= box[:, :2]
    elif box_format == "cxcywh":
        box[:, :2] -= box[:, 2:] / 2
    bad = (box[:, 2:] < 0).any(axis=1)
    if bad.any():
        at = int(bad.argmax())
        raise InputError(
            f"{what}: number {at} has a negative width or height ({box[at].tolist()} as x, y, width, height); is "
            f"{box_format!r} their format?"
        )
    return box


def _labels(what: str, labels: Any) -> np.ndarray:
    label = np.asarray(labels)
    if label.size and label.dtype.kind not in "iu":
        raise InputError(f"{what}: class indices must be whole numbers, got {label.dtype}")
    label = label.reshape(-1).astype(np.int64)
    if len(label) and label.min() < 0:
        raise InputError(f"{what}: class indices count from 0, got {label.min()}")
    return label


def _floats(what: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: not an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{what}: has a NaN or infinite value")
    return array
