"""Detections in the forms that other programs read: COCO's JSON, rows of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .data import to_pixels
from .errors import AnnotationError
from .files import read_json
from .predictor import NamedDetections, Predictor


def category_ids(predictor: Predictor) -> list[int]:
    """The id of each class: those of the annotations it was trained on, else 1, 2, … in the order of the classes.

    Where only some classes have an id, the others get the smallest ones that are free.
    """
    known = predictor.category_ids or (None,) * len(predictor.class_names)
    taken, free = {i for i in known if i is not None}, iter(range(1, 2 * len(known) + 1))
    return [next(i for i in free if i not in taken) if own is None else own for own in known]


def image_ids(annotations: str | Path) -> dict[str, int]:
    """The ids of the images in a COCO annotation file, by file name. Raises AnnotationError for any other file."""
    content = read_json(annotations, AnnotationError)
    try:
        return {str(image["file_name"]): int(image["id"]) for image in content["images"]}
    except (TypeError, KeyError, ValueError) as error:
        raise AnnotationError(
            f"{annotations}: is no COCO annotation file: its images need a file_name and an id"
        ) from error


def coco_results(
    found: Iterable[NamedDetections], ids: Mapping[str, int], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO's results format, for its evaluation: one entry per detection, bbox (left, top, width, height) in pixels.

    ids: image ids by file name (see ``image_ids``). Raises AnnotationError for an image that has none.
    """
    rows = []
    for detections in found:
        name = detections.path.name if detections.path else "an image without a file"
        if name not in ids:
            raise AnnotationError(
                f"{name}: is not among the images of the annotations; predict on the images they list"
            )
        rows += _entries(detections, ids[name], categories)
    return rows


def coco_dataset(found: Iterable[NamedDetections], categories: Sequence[int]) -> dict[str, Any]:
    """A whole COCO file with the detections as scored annotations, for viewers such as FiftyOne and labeling tools.

    Images are numbered from 1, and read once more for their sizes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: Sequence[str] = ()
    for number, detections in enumerate(found, start=1):
        height, width = to_pixels(detections.path).shape[-2:]
        names = detections.class_names
        images.append({"id": number, "file_name": str(detections.path), "width": width, "height": height})
        for entry in _entries(detections, number, categories):
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **entry, "area": area, "iscrowd": 0})
    listed = [{"id": i, "name": name} for i, name in zip(categories, names)]
    return {"info": {}, "images": images, "categories": listed, "annotations": annotations}


def table(found: Iterable[NamedDetections]) -> str:
    """CSV with a line per detection: image, class, score, left, top, right, bottom (pixels)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "score", "left", "top", "right", "bottom"])
    for detections in found:
        for name, score, box in zip(detections.names, detections.scores.tolist(), detections.boxes.tolist()):
            writer.writerow([detections.path, name, f"{score:.6f}", *(f"{x:.3f}" for x in box)])
    return text.getvalue()


def _entries(detections: NamedDetections, image: int, categories: Sequence[int]) -> list[dict[str, Any]]:
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
    return [
        {
            "image_id": image,
            "category_id": categories[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for label, score, (left, top, right, bottom) in rows
    ]
