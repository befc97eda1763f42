"""Random scenes for the budget of lost AP, and oracles that know nothing of how it is computed."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO

from msdetr.analysis.budget import Scene
from msdetr.engine.metric import DETECTION, PYCOCOTOOLS

CLASSES = 3
NAMES = ("circle", "square", "star")


def random_scene(rng, image_id, layers=3, queries=7, most=4, plain=False):
    """A few objects, crowds among them, of sizes on both sides of COCO's limits, and queries near them: good and bad boxes, ties of
    scores and boxes, several queries and classes on one object."""
    number = int(rng.integers(0, most + 1))
    sizes = rng.choice([10, 25, 40, 110], (number, 2)) * rng.uniform(0.8, 1.2, (number, 2))
    boxes = np.concatenate([rng.uniform(0, 120, (number, 2)), sizes], axis=1)
    labels, crowd = rng.integers(0, CLASSES, number), rng.random(number) < 0.15
    areas = None if rng.random() < 0.5 else sizes.prod(axis=1) * rng.uniform(0.5, 1, number)
    if number:
        near = boxes[rng.integers(0, number, (layers, queries))]
        spread = rng.choice([0.0, 0.03, 0.08, 0.2], (layers, queries, 1))
        found = near + rng.normal(size=near.shape) * spread * np.tile(near[..., 2:], 2)
        found[..., 2:] = abs(found[..., 2:])
    else:
        found = rng.uniform(1, 120, (layers, queries, 4))
    scores = rng.choice(np.linspace(0.05, 0.95, 10), (layers, queries, CLASSES))
    told = {"box_format": "xywh", "crowd": crowd, "areas": areas}
    if plain:
        best = scores[-1].max(axis=1), scores[-1].argmax(axis=1)
        return Scene.of_detections(image_id, boxes, labels, found[-1], *best, **told)
    kept = int(rng.integers(3, 15))
    return Scene.of_predictions(image_id, boxes, labels, found, scores, max_detections=kept, **told)


def random_data(seed, images=5, **settings):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, i, **settings) for i in range(int(rng.integers(1, images + 1)))]


def coco_of(scenes):
    """The objects of scenes as pycocotools' ground truth."""
    rows = [
        {"image_id": one.image_id, "bbox": box, "category_id": label, "area": area, "iscrowd": int(crowd)}
        for one in scenes
        for box, label, area, crowd in zip(
            one.objects.boxes.tolist(), one.objects.labels.tolist(), one.objects.areas.tolist(), one.objects.crowd
        )
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": one.image_id, "width": 300, "height": 300} for one in scenes],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [{"id": i, **row} for i, row in enumerate(rows, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def rows_of(scenes):
    """The detections of scenes as the metric takes them."""
    rows = np.zeros(sum(len(one.found) for one in scenes), DETECTION)
    if len(rows):
        rows["image_id"] = np.concatenate([[one.image_id] * len(one.found) for one in scenes])
        rows["box"] = np.concatenate([one.found.boxes for one in scenes])
        rows["score"] = np.concatenate([one.found.scores for one in scenes])
        rows["category_id"] = np.concatenate([one.found.labels for one in scenes])
    return rows


def ap_by_pycocotools(coco, rows, max_detections=10_000):
    """AP [I] at each IoU threshold, all areas; NaN where undefined."""
    table = np.column_stack([rows["image_id"], rows["box"], rows["score"], rows["category_id"]]).astype(float)
    with contextlib.redirect_stdout(io.StringIO()):
        run = PYCOCOTOOLS.make(coco, table)
        run.params.imgIds, run.params.catIds = sorted(coco.imgs), sorted(coco.cats)
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 0]
    with np.errstate(invalid="ignore"), contextlib.suppress(RuntimeWarning):
        return np.array([one[one > -1].mean() if (one > -1).any() else np.nan for one in precision])


def plain_iou(a, b):
    """Of two boxes (x, y, w, h)."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = a[2] * a[3] + b[2] * b[3] - both
    return both / union if union > 0 else 0.0
