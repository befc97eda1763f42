"""Detections in the forms that other programs read: COCO's JSON, rows of a table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .data import to_pixels
from .engine.metric import EvalResult
from .errors import AnnotationError
from .files import read_json, stream_json
from .predictor import NamedDetections, Predictor


def category_ids(predictor: Predictor, annotations: str | Path | None = None) -> list[int]:
    """The id of each class: those of the annotations it was trained on, else by name those of a COCO annotation file, else 1, 2, … in
    the order of the classes.

    Where only some classes have an id, the others get the smallest ones that are free. Raises AnnotationError for a file whose
    categories have no ids and names.
    """
    known: Sequence[int | None] = predictor.category_ids or (None,) * len(predictor.class_names)
    if predictor.category_ids is None and annotations is not None:
        by_name = _categories(annotations)
        known = [by_name.get(name) for name in predictor.class_names]
    taken, free = {i for i in known if i is not None}, iter(range(1, 2 * len(known) + 1))
    return [next(i for i in free if i not in taken) if own is None else own for own in known]


def image_ids(annotations: str | Path, files: Iterable[str | Path]) -> list[int]:
    """The ids that image files have in a COCO annotation file, in the order of the files.

    A name in the annotations is a file's whose path ends with it; of several such names the longest is. Raises
    AnnotationError for another kind of annotation file, a name in it that two images have, a file that is not among its
    images, and two files that are the same one of them.
    """
    ids, found = _ids_by_name(annotations), {}
    for file in files:
        parts = Path(file).absolute().parts
        name = next((name for i in range(len(parts)) if (name := "/".join(parts[i:])) in ids), None)
        if name is None:
            raise AnnotationError(
                f"{file}: is not among the images of the annotations; predict on the images they list"
            )
        if name in found:
            raise AnnotationError(
                f"{found[name]} and {file}: are both the image {name!r} (id {ids[name]}) of {annotations}; predict on "
                "one of them"
            )
        found[name] = file
    return [ids[name] for name in found]


def _ids_by_name(annotations: str | Path) -> dict[str, int]:
    named = {"images": _name_and_id, "annotations": lambda _: None}
    try:
        content = stream_json(annotations, named)
        if content is None:  # no JSON, or not in this form: the reader of small files says why
            content = read_json(annotations, AnnotationError)
            content = {"images": map(_name_and_id, content["images"])}
        pairs = list(content["images"])
    except (TypeError, KeyError, ValueError) as error:
        raise AnnotationError(
            f"{annotations}: is no COCO annotation file: its images need a file_name and an id, a whole number"
        ) from error
    ids: dict[str, int] = {}
    for name, number in pairs:
        if ids.setdefault(name, number) != number:
            raise AnnotationError(
                f"{annotations}: the images with the ids {ids[name]} and {number} have one file_name, {name!r}; give "
                "each its own"
            )
    return ids


def _categories(annotations: str | Path) -> dict[str, int]:
    """Ids by name; of a name that several categories have, none."""
    content = stream_json(annotations, {"images": lambda _: None, "annotations": lambda _: None})
    if content is None:
        content = read_json(annotations, AnnotationError)
    try:
        pairs = [(str(category["name"]), int(category["id"])) for category in content["categories"]]
    except (TypeError, KeyError, ValueError) as error:
        raise AnnotationError(f"{annotations}: its categories need a name and an id, a whole number") from error
    names = [name for name, _ in pairs]
    return {name: number for name, number in pairs if names.count(name) == 1}


def _name_and_id(image: Any) -> tuple[str, int]:
    if type(image["id"]) is not int:
        raise TypeError("an id is a whole number")
    return str(image["file_name"]), image["id"]


def coco_results(
    found: Iterable[NamedDetections], ids: Iterable[int], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO's results format, for its evaluation: one entry per detection, bbox (left, top, width, height) in pixels.

    ids: of the images, in the order of the detections (see ``image_ids``).
    """
    return [entry for one, image in zip(found, ids, strict=True) for entry in _entries(one, image, categories)]


def coco_dataset(found: Iterable[NamedDetections], categories: Sequence[int]) -> dict[str, Any]:
    """A whole COCO file with the detections as scored annotations, for viewers such as FiftyOne and labeling tools.

    Images are numbered from 1, and read once more for their sizes. Their file names are relative to the folder that all of them
    are in, which ``info`` names: it is the folder to give to the viewer.
    """
    found = list(found)
    folder = common_folder([detections.path for detections in found if detections.path is not None])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, detections in enumerate(found, start=1):
        height, width = to_pixels(detections.path).shape[-2:]
        name = Path(os.path.relpath(detections.path, folder)).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for entry in _entries(detections, number, categories):
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **entry, "area": area, "iscrowd": 0})
    names: Sequence[str] = found[-1].class_names if found else ()
    listed = [{"id": i, "name": name, "supercategory": ""} for i, name in zip(categories, names)]
    info = {"description": "detections", "contributor": f"msdetr {__version__}", "folder": str(folder)}
    return {"info": info, "licenses": [], "images": images, "categories": listed, "annotations": annotations}


def common_folder(paths: Sequence[str | Path]) -> Path:
    """The deepest folder that all files are in, absolute; the working directory where there are none."""
    return Path(os.path.commonpath([os.path.abspath(Path(path).parent) for path in paths])) if paths else Path.cwd()


def evaluated_detections(result: EvalResult) -> list[dict[str, Any]]:
    """The detections of an evaluation in COCO's results format, under the ids of the annotations."""
    return [
        {"image_id": int(row["image_id"]), "category_id": int(row["category_id"]), "bbox": row["box"].tolist(),
         "score": float(row["score"])}
        for row in result.detections
    ]  # fmt: skip


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
