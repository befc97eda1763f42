"""The COCO metric: the twelve numbers, per-class AP, and what they were computed under."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ..checks import count
from ..errors import EvaluationError
from ..structures import Detections
from .postprocess import require_finite

AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}  # suffix of AP and AR -> pycocotools' area label
# One detection. Ids are whole numbers of 64 bits; a float would round those beyond 2**53.
DETECTION = np.dtype([("image_id", "i8"), ("box", "f8", 4), ("score", "f8"), ("category_id", "i8")])
_EXACT = 2**53  # floats hold every whole number up to here


@dataclass(frozen=True)
class Evaluator:
    """An implementation of the COCO metric. make: (ground truth, detections) -> an object like pycocotools' COCOeval.

    It is given small ids counted from 1; detections: [N, 7] rows of image id, x, y, w, h in pixels, score, category id.
    """

    name: str
    make: Callable[[Any, np.ndarray], Any]


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found. A number is None where it is undefined (no object it could be computed on).

    metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, ARmax, ARs, ARm, ARl in [0, 1].
    per_class: class name -> AP.   protocol: what the numbers were computed under.
    truncated: detections beyond ``max_detections`` of their image and class, which did not count.
    detections: [N] of ``DETECTION``, under the ids of the annotations.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    protocol: dict[str, Any]
    num_images: int
    num_detections: int
    truncated: int = 0
    seconds: float = 0.0
    detections: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the detections."""
        return {name: value for name, value in asdict(self).items() if name != "detections"}

    def summary(self) -> str:
        """The numbers and their protocol, for people."""
        numbers = "  ".join(f"{name} {_show(value)}" for name, value in self.metrics.items())
        protocol = ", ".join(f"{name} {value}" for name, value in self.protocol.items())
        lines = [numbers, f"{self.num_images} images, {self.num_detections} detections; protocol: {protocol}"]
        if self.truncated:
            lines.append(
                f"{self.truncated} detections were beyond {self.protocol['max_detections']} per image and class and did not count"
            )
        return "\n".join(lines)


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def coco_rows(image_id: int, detections: Detections, category_ids: Sequence[int | None]) -> np.ndarray:
    """Detections of one image as [N] of ``DETECTION``: image id, box (x, y, w, h in pixels), score, category id.

    category_ids: class index -> category id, None for a class that raw category ids leave unused. Detections of such a
    class have no category to be scored under and are left out; they did take places among the best of their image, as in
    the released code.

    Raises EvaluationError where a score or box is NaN or infinite: pycocotools would score it, even as perfect.
    """
    require_finite(detections, f"image id {image_id}")
    boxes, scores = detections.boxes.double().numpy(), detections.scores.double().numpy()
    labels = detections.labels.numpy()
    if len(labels) and labels.max() >= len(category_ids):
        raise EvaluationError(
            f"image id {image_id}: class {labels.max()} is predicted, but the data set has {len(category_ids)} classes; "
            "model.num_classes must be the data set's"
        )
    used = np.array([category_id is not None for category_id in category_ids], dtype=bool)
    ids = np.array([0 if category_id is None else category_id for category_id in category_ids], dtype=np.int64)
    rows = np.zeros(len(scores), DETECTION)
    rows["image_id"], rows["score"], rows["category_id"] = image_id, scores, ids[labels]
    rows["box"] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return rows[used[labels]]


def coco_metrics(
    coco,
    detections: np.ndarray,
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
    evaluator: Evaluator | None = None,
) -> EvalResult:
    """The twelve COCO numbers of detections against a ``pycocotools.coco.COCO`` ground truth.

    detections: [N] of ``DETECTION``; or pycocotools' [N, 7] rows of image id, x, y, w, h in pixels, score, category id,
    where no id is beyond 2**53. Ids of images, categories and annotations may be any whole numbers of 64 bits, 0 and
    negative ones too: the metric is computed under ids of its own.
    image_ids: the images that count, all of ``coco`` by default.
    max_detections: detections kept per image and class, and in all by ``postprocess``: 100 in the COCO protocol, 300
    in the released 900-query results.
    evaluator: what computes them, the fastest installed by default (``metric_backend``).

    Raises EvaluationError for NaN values, unknown images or categories, and duplicate image ids; InputError for a
    ``max_detections`` below 1.
    """
    max_detections = count(max_detections, "max_detections")
    evaluator = evaluator or metric_backend()
    check_metric(evaluator)
    return _score(coco, detections, image_ids, max_detections, evaluator)


def _score(coco, detections, image_ids, max_detections, evaluator: Evaluator) -> EvalResult:
    start = time.perf_counter()
    image_ids = sorted(coco.imgs if image_ids is None else image_ids)
    detections = _as_detections(detections)
    _check_detections(coco, detections, image_ids)
    truth, rows = _renumbered(coco, detections)
    max_dets = sorted({kept for kept in (1, 10) if kept < max_detections} | {max_detections})
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
        truth.createIndex()
        run = evaluator.make(truth, rows)
        run.params.imgIds = (np.searchsorted(sorted(coco.imgs), image_ids) + 1).tolist()
        run.params.catIds = sorted(truth.cats)
        run.params.maxDets = max_dets
        run.evaluate()
        run.accumulate()

    precision = np.asarray(run.eval["precision"])  # [T, R, C, A, M]
    recall = np.asarray(run.eval["recall"])  # [T, C, A, M]
    thresholds, areas = list(np.round(run.params.iouThrs, 2)), list(run.params.areaRngLbl)
    metrics = {"AP": _mean(precision[..., 0, -1])}
    for percent in (50, 75):
        metrics[f"AP{percent}"] = _mean(precision[thresholds.index(percent / 100), ..., 0, -1])
    for suffix in "sml":
        metrics[f"AP{suffix}"] = _mean(precision[..., areas.index(AREAS[suffix]), -1])
    for label, kept in (("1", 1), ("10", 10), ("max", max_detections)):
        metrics[f"AR{label}"] = _mean(recall[..., 0, max_dets.index(min(kept, max_detections))])
    for suffix in "sml":
        metrics[f"AR{suffix}"] = _mean(recall[..., areas.index(AREAS[suffix]), -1])

    names = unique_names({category_id: coco.cats[category_id]["name"] for category_id in sorted(coco.cats)})
    counts = np.unique(rows[:, [0, 6]], axis=0, return_counts=True)[1]  # per image and class
    return EvalResult(
        metrics=metrics,
        per_class={name: _mean(precision[:, :, i, 0, -1]) for i, name in enumerate(names)},
        protocol={
            "metric": "COCO bbox",
            "max_detections": max_detections,
            "iou": "0.50:0.95",
            "computed by": evaluator.name,
        },
        num_images=len(image_ids),
        num_detections=len(detections),
        truncated=int(np.maximum(counts - max_detections, 0).sum()),
        seconds=time.perf_counter() - start,
        detections=detections,
    )


def unique_names(names: Mapping[int, str]) -> list[str]:
    """The name of each category, by its id, with the id where another category has the same name."""
    given = Counter(names.values())
    return [name if given[name] == 1 else f"{name} (id {category_id})" for category_id, name in names.items()]


def _mean(values: np.ndarray) -> float | None:
    """The mean of the defined values (pycocotools marks the others -1), None where there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _as_detections(detections: np.ndarray) -> np.ndarray:
    """[N] of ``DETECTION`` from itself or from rows [N, 7], which must hold ids as whole numbers that a float can hold."""
    detections = np.asarray(detections)
    if detections.dtype == DETECTION:
        return detections
    rows = detections.astype(np.float64).reshape(-1, 7)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        row = rows[bad][0]
        raise EvaluationError(f"image id {row[0]:.0f}: a detection has a NaN or infinite value: {row.tolist()}")
    ids = rows[:, [0, 6]]
    if (ids != np.rint(ids)).any() or (abs(ids) >= _EXACT).any():
        raise EvaluationError(
            "detections in rows [N, 7] have an id that is no whole number, or too large for a float to hold; give them as "
            "an array of msdetr.engine.metric.DETECTION"
        )
    found = np.zeros(len(rows), DETECTION)
    found["image_id"], found["box"], found["score"], found["category_id"] = (
        rows[:, 0],
        rows[:, 1:5],
        rows[:, 5],
        rows[:, 6],
    )
    return found


def _check_detections(coco: COCO, detections: np.ndarray, image_ids: list[int]) -> None:
    bad = ~(np.isfinite(detections["box"]).all(axis=1) & np.isfinite(detections["score"]))
    if bad.any():
        row = detections[bad][0]
        raise EvaluationError(f"image id {row['image_id']}: a detection has a NaN or infinite value: {row.tolist()}")
    unknown = set(detections["category_id"].tolist()) - set(coco.cats)
    if unknown:
        known = sorted(coco.cats)
        raise EvaluationError(
            f"detections of category id {', '.join(map(str, sorted(unknown)))}, which the annotations do not "
            f"have (they have {len(known)}: {known[0]} to {known[-1]}); was the model trained with another class map?"
        )
    if len(set(image_ids)) < len(image_ids):
        raise EvaluationError("an image id appears twice among the images to evaluate")
    strangers = set(image_ids) - set(coco.imgs)
    if strangers:
        raise EvaluationError(f"image id {min(strangers)} is to be evaluated, but the annotations do not have it")
    strangers = set(detections["image_id"].tolist()) - set(image_ids)
    if strangers:
        raise EvaluationError(f"detections of image id {min(strangers)}, which is not among the images to evaluate")


def _renumbered(coco: COCO, detections: np.ndarray) -> tuple[COCO, np.ndarray]:
    """Ground truth (not indexed yet) and detections [N, 7] with ids counted from 1 in the order of the given ones.

    Evaluators keep ids in floats, and take an annotation with id 0 for none.
    """
    images, categories = sorted(coco.imgs), sorted(coco.cats)
    new_image = {old: i + 1 for i, old in enumerate(images)}
    new_category = {old: i + 1 for i, old in enumerate(categories)}
    truth = type(coco)()
    truth.dataset = {
        "info": {},
        "images": [{**coco.imgs[old], "id": new} for old, new in new_image.items()],
        "categories": [{**coco.cats[old], "id": new} for old, new in new_category.items()],
        "annotations": [
            {
                **annotation,
                "id": i + 1,
                "image_id": new_image[annotation["image_id"]],
                "category_id": new_category[annotation["category_id"]],
            }
            for i, annotation in enumerate(coco.dataset.get("annotations", []))
        ],
    }
    image = np.searchsorted(np.array(images, dtype=np.int64), detections["image_id"]) + 1
    category = np.searchsorted(np.array(categories, dtype=np.int64), detections["category_id"]) + 1
    return truth, np.column_stack([image, detections["box"], detections["score"], category]).astype(np.float64)


def metric_backend() -> Evaluator:
    """hotcoco where it is installed (the same numbers, many times as fast), else pycocotools, the reference."""
    return HOTCOCO if importlib.util.find_spec("hotcoco") else PYCOCOTOOLS


def _hotcoco_evaluator(coco: COCO, detections: np.ndarray):
    """A ``hotcoco.COCOeval`` of a pycocotools ground truth."""
    import hotcoco

    truth = hotcoco.COCO(coco.dataset)
    return hotcoco.COCOeval(truth, truth.load_res(detections), "bbox")


def _pycocotools_evaluator(coco: COCO, detections: np.ndarray):
    """A ``pycocotools.cocoeval.COCOeval``. Without ``loadRes``, which cannot take an empty list of detections."""
    from pycocotools.cocoeval import COCOeval

    results = type(coco)()
    results.dataset = {
        "images": list(coco.imgs.values()),
        "categories": list(coco.cats.values()),
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(row[0]),
                "category_id": int(row[6]),
                "bbox": row[1:5].tolist(),
                "area": float(row[3] * row[4]),
                "score": float(row[5]),
                "iscrowd": 0,
            }
            for i, row in enumerate(detections)
        ],
    }
    results.createIndex()
    return COCOeval(coco, results, "bbox")


HOTCOCO = Evaluator("hotcoco", _hotcoco_evaluator)
PYCOCOTOOLS = Evaluator("pycocotools", _pycocotools_evaluator)


@functools.cache
def check_metric(evaluator: Evaluator) -> None:
    """Scores known answers once per process and evaluator, so that a mix-up of box formats or a broken installation is caught.

    Perfect detections must give AP 1, the same boxes as (x0, y0, x1, y1) must not.
    """
    boxes = np.array([[10.0, 20, 30, 40], [50, 60, 20, 10], [5, 5, 80, 90]])
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    corners = np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    for layout, perfect in ((boxes, True), (corners, False)):
        rows = np.column_stack([np.ones(3), layout, [0.9, 0.8, 0.7], np.ones(3)])
        if (_score(coco, rows, None, 100, evaluator).metrics["AP"] == 1.0) != perfect:
            raise EvaluationError(f"{evaluator.name} fails its self-test (perfect boxes must score 1); reinstall it")
