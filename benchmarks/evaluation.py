"""The COCO metric: hotcoco against pycocotools on a data set of COCO val2017's size, in one run.

    python benchmarks/evaluation.py [--images 5000] [--detections 100]

Random objects and detections near them; both give the same twelve numbers, which is checked. Writes results/evaluation.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io

import machine
import numpy as np
import torch
from pycocotools.coco import COCO

from msdetr.engine.metric import HOTCOCO, PYCOCOTOOLS, coco_metrics


def data_set(images: int, detections: int, objects: int = 7, classes: int = 80) -> tuple[COCO, np.ndarray]:
    """A ground truth with ``objects`` an image, and detections [N, 7]: a few near each object, the rest anywhere."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(1, images + 1), objects)
    boxes = np.column_stack([rng.uniform(0, 400, (len(image), 2)), rng.uniform(8, 200, (len(image), 2))])
    category = rng.integers(1, classes + 1, len(image))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 640, "height": 640} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, classes + 1)],
        "annotations": [
            {"id": n, "image_id": int(i), "category_id": int(c), "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}
            for n, (i, c, box) in enumerate(zip(image, category, boxes), start=1)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    near = np.repeat(np.arange(len(image)).reshape(images, objects), detections // (2 * objects), axis=1).ravel()
    close = boxes[near] + rng.normal(0, 8, (len(near), 4))
    rest = images * detections - len(near)
    far = np.column_stack([rng.uniform(0, 400, (rest, 2)), rng.uniform(8, 200, (rest, 2))])
    where = np.concatenate([image[near], np.resize(np.arange(1, images + 1), rest)])
    what = np.concatenate([category[near], rng.integers(1, classes + 1, rest)])
    return coco, np.column_stack([where, np.concatenate([close, far]).clip(1), rng.random(len(where)), what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    options = parser.parse_args()
    coco, detections = data_set(options.images, options.detections)
    found = {}

    def run(evaluator):
        found[evaluator.name] = coco_metrics(coco, detections, evaluator=evaluator).metrics

    contenders = {e.name: functools.partial(run, e) for e in (HOTCOCO, PYCOCOTOOLS)}
    seconds = machine.side_by_side(contenders, 1, torch.device("cpu"))
    difference = max(abs(found["hotcoco"][n] - found["pycocotools"][n]) for n in found["hotcoco"])
    result = {
        "seconds": seconds,
        "pycocotools / hotcoco": seconds["pycocotools"] / seconds["hotcoco"],
        "largest difference of the twelve numbers": difference,
    }
    for name, value in seconds.items():
        print(f"{name:12} {value:8.2f} s   {seconds['pycocotools'] / value:6.1f} x")
    print(f"the twelve numbers differ by {difference:.1e} at most")
    machine.save("evaluation", __doc__, "cpu", options, result)


if __name__ == "__main__":
    main()
