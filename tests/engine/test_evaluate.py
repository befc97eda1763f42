import importlib
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from msdetr.boxes import xyxy_to_cxcywh
from msdetr.data import CocoDetection, build_dataset
from msdetr.engine import EvaluationError, coco_metrics, evaluate
from msdetr.engine.metric import DETECTION, HOTCOCO, PYCOCOTOOLS, coco_rows
from msdetr.errors import InputError
from msdetr.structures import Detections, DetectorOutput, Predictions

# the package exports the function of the same name
module = importlib.import_module("msdetr.engine.evaluate")
metric = importlib.import_module("msdetr.engine.metric")

ORDER = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "ARmax", "ARs", "ARm", "ARl"]


def ground_truth(boxes, crowd=0, categories=2, images=1):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "width": 400, "height": 400} for i in range(images)],
        "categories": [{"id": 10 * (c + 1), "name": f"class {c}"} for c in range(categories)],
        "annotations": [
            {"id": i + 1, "image_id": 1 + i % images, "category_id": 10 * (1 + i % categories), "bbox": list(map(float, box)),
             "area": float(box[2] * box[3]), "iscrowd": crowd}
            for i, box in enumerate(boxes)
        ],
    }  # fmt: skip
    coco.createIndex()
    return coco


def rows_of(coco, scores=None):
    rows = [[a["image_id"], *a["bbox"], 0.9, a["category_id"]] for a in coco.dataset["annotations"]]
    return np.array(rows, dtype=float)


def random_case(seed, images=12):
    rng = np.random.default_rng(seed)
    boxes = np.column_stack([rng.uniform(0, 200, (60, 2)), rng.uniform(5, 180, (60, 2))])
    coco = ground_truth(boxes, categories=3, images=images)
    rows = np.repeat(rows_of(coco), 4, axis=0)
    rows[:, 1:5] += rng.normal(0, 6, (len(rows), 4))
    rows[:, 5] = rng.random(len(rows))
    rows[:, 6] = np.where(rng.random(len(rows)) < 0.8, rows[:, 6], 10)
    return coco, rows


class Oracle(nn.Module):
    """Predicts the annotations of a data set, one query per object; ``spoil`` changes the boxes."""

    def __init__(self, dataset, spoil=lambda boxes: boxes):
        super().__init__()
        self.samples = {tuple(sample.image.shape) + (float(sample.image.sum()),): sample for sample in dataset}
        self.classes, self.spoil = len(dataset.class_names), spoil
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        logits = torch.full((1, len(batch), 10, self.classes), -20.0)
        boxes = torch.full((1, len(batch), 10, 4), 0.5)
        for i, image in enumerate(batch.images):
            h, w = (~batch.mask[i]).any(1).sum(), (~batch.mask[i]).any(0).sum()
            sample = self.samples[(3, int(h), int(w), float(image[:, :h, :w].sum()))]
            count = len(sample.labels)
            logits[0, i, torch.arange(count), sample.labels] = 5.0
            boxes[0, i, :count] = sample.boxes
        return DetectorOutput(Predictions(logits, self.spoil(boxes)))


@pytest.fixture(scope="module")
def dataset(shapes):
    return build_dataset(tiny.config(shapes), "val")


def test_perfect_detections_score_one_and_the_mode_is_kept(dataset):
    detector = Oracle(dataset).train()
    result = evaluate(detector, dataset, max_detections=10, progress=False)
    assert result.metrics["AP"] == pytest.approx(1.0, abs=1e-9)
    assert result.num_images == 6 and result.num_detections == 60 and detector.training
    assert set(result.per_class) == set(dataset.class_names)
    assert "max_detections 10" in result.summary()


@pytest.mark.fault("F78")
def test_box_formats_mixed_up_lose(dataset):
    mixed = evaluate(Oracle(dataset, lambda b: xyxy_to_cxcywh(b).abs()), dataset, max_detections=10, progress=False)
    assert mixed.metrics["AP"] < 0.5


@pytest.mark.fault("F78")
def test_the_self_test_catches_a_metric_that_takes_corners(monkeypatch):
    real = metric.metric_backend()

    def corners(coco, detections):
        changed = detections.copy()
        changed[:, 3:5] -= changed[:, 1:3]
        return real.make(coco, changed)

    monkeypatch.setattr(metric, "metric_backend", lambda: metric.Evaluator("corners", corners))
    with pytest.raises(EvaluationError, match="fails its self-test"):
        coco_metrics(*random_case(0))
    monkeypatch.undo()
    coco_metrics(*random_case(0))


@pytest.mark.parametrize("seed", range(3))
def test_the_twelve_numbers_are_those_of_pycocotools(seed):
    import contextlib
    import io

    from pycocotools.cocoeval import COCOeval

    coco, rows = random_case(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCOeval(coco, coco.loadRes(rows), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    result = coco_metrics(coco, rows)
    assert [result.metrics[name] for name in ORDER] == pytest.approx(oracle.stats.tolist(), abs=1e-12)


@pytest.mark.parametrize("crowd", [0, 1], ids=["objects", "crowds"])
@pytest.mark.parametrize("max_detections", [5, 100, 300])
def test_the_faster_metric_gives_the_same_numbers(max_detections, crowd):
    """Also with scores that are equal, crowds, images left out, and detections all over a size limit's border."""
    pytest.importorskip("hotcoco")
    for seed in range(8):
        coco, rows = random_case(seed)
        rows[:, 5] = rows[:, 5].round(1)
        rows[:20, 3:5] = 32
        for annotation in coco.dataset["annotations"][::5]:
            annotation["iscrowd"] = crowd
        some = [i for i in coco.imgs if i % 4]
        rows = rows[np.isin(rows[:, 0], some)]
        one, two = (coco_metrics(coco, rows, some, max_detections, evaluator) for evaluator in (HOTCOCO, PYCOCOTOOLS))
        assert one.metrics == pytest.approx(two.metrics, abs=1e-12)
        assert one.per_class == pytest.approx(two.per_class, abs=1e-12)


@pytest.mark.fault("F75")
def test_no_detections_score_zero():
    result = coco_metrics(ground_truth([(10, 10, 50, 60)]), np.zeros((0, 7)))
    assert result.metrics["AP"] == 0.0 and result.metrics["AR1"] == 0.0 and result.num_detections == 0


@pytest.mark.fault("F76")
@pytest.mark.parametrize("column", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_detections_are_refused(column, value):
    coco, rows = random_case(0)
    rows[7, column] = value
    with pytest.raises(EvaluationError, match=f"image id {rows[7, 0]:.0f}: .*NaN or infinite"):
        coco_metrics(coco, rows)


@pytest.mark.fault("F76")
def test_a_detector_that_predicts_nan_is_refused(dataset):
    broken = Oracle(dataset, lambda boxes: boxes * float("nan"))
    with pytest.raises(EvaluationError, match=f"image id {dataset.image_ids[0]}: the detector predicts a NaN"):
        evaluate(broken, dataset, max_detections=10, progress=False)


@pytest.mark.fault("F77")
def test_detections_of_an_unknown_category():
    coco, rows = random_case(0)
    rows[3, 6] = 99
    with pytest.raises(EvaluationError, match="category id 99, which the annotations do not have"):
        coco_metrics(coco, rows)


@pytest.mark.fault("F79")
def test_detections_beyond_the_maximum_are_reported():
    coco = ground_truth([(10, 10, 50, 60)])
    rows = np.repeat(rows_of(coco), 8, axis=0)
    result = coco_metrics(coco, rows, max_detections=5)
    assert result.truncated == 3
    assert "3 detections were beyond 5 per image and class" in result.summary()


@pytest.mark.fault("F80")
def test_only_crowds_are_undefined():
    coco = ground_truth([(10, 10, 50, 60)], crowd=1)
    result = coco_metrics(coco, rows_of(coco))
    assert set(result.metrics.values()) == {None} and set(result.per_class.values()) == {None}
    assert "AP undefined" in result.summary() and "-1" not in result.summary()


@pytest.mark.fault("F81")
def test_ranks_share_the_images_each_once(tmp_path, shapes):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    config = tiny.config(shapes, train__epochs=0, data__num_val=5)
    assert tiny.train_in_processes(alone, config) == [0]
    assert tiny.train_in_processes(shared, config, ranks=2) == [0, 0]
    one, two = tiny.lines(alone, "eval")[0], tiny.lines(shared, "eval")[0]
    drop = {"seconds"}
    assert {k: v for k, v in one.items() if k not in drop} == {k: v for k, v in two.items() if k not in drop}


@pytest.mark.fault("F81")
def test_an_image_that_was_not_evaluated_is_noticed(dataset, monkeypatch):
    monkeypatch.setattr(module, "_detect", lambda *arguments: (dataset.image_ids[:-1], np.zeros((0, 7))))
    with pytest.raises(EvaluationError, match="5 images of 6, not each exactly once"):
        evaluate(Oracle(dataset), dataset, progress=False)


def test_categories_of_one_name_keep_apart():
    coco = ground_truth([(10, 10, 50, 60), (20, 20, 50, 60)])
    for category in coco.dataset["categories"]:
        category["name"] = "same"
    result = coco_metrics(coco, rows_of(coco))
    assert list(result.per_class) == ["same (id 10)", "same (id 20)"]


LARGEST, SMALLEST = 2**63 - 1, -(2**63)


def folder_with_ids(root, image_ids, category_ids, annotation_ids):
    """Images of noise with one object of each category in turn."""
    rng = np.random.default_rng(0)
    (root / "val").mkdir(parents=True)
    images = []
    for i, image_id in enumerate(image_ids):
        Image.fromarray(rng.integers(0, 256, (32 + i, 40, 3), dtype=np.uint8)).save(root / "val" / f"{i}.png")
        images.append({"id": image_id, "file_name": f"{i}.png", "height": 32 + i, "width": 40})
    annotations = [
        {"id": annotation_id, "image_id": image_ids[i % len(image_ids)], "iscrowd": 0, "area": 100.0,
         "category_id": category_ids[i % len(category_ids)], "bbox": [3.0 + 4 * i, 5.0, 10.0, 10.0]}
        for i, annotation_id in enumerate(annotation_ids)
    ]  # fmt: skip
    categories = [{"id": category_id, "name": f"class {i}"} for i, category_id in enumerate(category_ids)]
    file = root / "instances_val.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoDetection(root / "val", file)


@pytest.mark.fault("F90")
@pytest.mark.filterwarnings("ignore::msdetr.data.DataWarning")
@pytest.mark.parametrize("evaluator", [HOTCOCO, PYCOCOTOOLS], ids=lambda evaluator: evaluator.name)
@pytest.mark.parametrize(
    ("images", "categories", "annotations"),
    [
        ([2**53, 2**53 + 1, 2**53 + 2], [1, 2], [1, 2, 3]),  # floats cannot tell the first two apart
        ([LARGEST, LARGEST - 1, LARGEST - 2], [LARGEST, LARGEST - 1], [LARGEST, LARGEST - 1, LARGEST - 2]),
        ([SMALLEST, SMALLEST + 1, -1], [SMALLEST, -7], [SMALLEST, SMALLEST + 1, 0]),
        ([-1, 0, 1], [0, -1], [-1, 0, 1]),
    ],
)
def test_any_64_bit_id_is_exact(tmp_path, monkeypatch, evaluator, images, categories, annotations):
    if evaluator is HOTCOCO:
        pytest.importorskip("hotcoco")
    monkeypatch.setattr(metric, "metric_backend", lambda: evaluator)
    dataset = folder_with_ids(tmp_path, images, categories, annotations)
    assert dataset.image_ids == sorted(images) and sorted(dataset.annotations.ids.tolist()) == sorted(annotations)
    result = evaluate(Oracle(dataset), dataset, max_detections=10, progress=False)
    assert result.metrics["AP"] == pytest.approx(1.0) and result.metrics["ARmax"] == pytest.approx(1.0)
    assert set(result.detections["image_id"].tolist()) == set(images)
    assert set(result.detections["category_id"].tolist()) == set(categories)
    best = result.detections[result.detections["score"] > 0.5]
    assert sorted(zip(best["image_id"].tolist(), best["category_id"].tolist())) == sorted(
        (images[i % 3], categories[i % 2]) for i in range(3)
    )


@pytest.mark.fault("F90")
def test_rows_of_floats_cannot_carry_large_ids():
    coco, rows = random_case(0)
    rows[0, 0] = 2.0**53
    with pytest.raises(EvaluationError, match="too large for a float"):
        coco_metrics(coco, rows)
    rows[0, 0] = 1.5
    with pytest.raises(EvaluationError, match="no whole number"):
        coco_metrics(coco, rows)


def test_a_class_without_a_category_is_left_out():
    labels = torch.tensor([0, 1, 2])
    detections = Detections(torch.tensor([0.9, 0.8, 0.7]), labels, torch.rand(3, 4), torch.arange(3))
    rows = coco_rows(7, detections, (None, 5, LARGEST))
    assert rows.dtype == DETECTION and rows["category_id"].tolist() == [5, LARGEST]
    assert rows["image_id"].tolist() == [7, 7] and rows["score"] == pytest.approx([0.8, 0.7])


@pytest.mark.fault("F98")
@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "5"])
def test_counts_below_one_are_refused(dataset, value):
    with pytest.raises(InputError, match="max_detections: must be a whole number, at least 1"):
        evaluate(Oracle(dataset), dataset, max_detections=value, progress=False)
    with pytest.raises(InputError, match="batch_size: must be"):
        evaluate(Oracle(dataset), dataset, batch_size=value, progress=False)
    with pytest.raises(InputError, match="max_detections: must be"):
        coco_metrics(*random_case(0), max_detections=value)
