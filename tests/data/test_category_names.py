"""Whatever the categories of a data set are: what is trained, saved, predicted and written carries the right names."""

import json
import random
from pathlib import Path

import numpy as np
import own
import pytest
import torch
from small import SMALL, config

import msdetr
from msdetr import files
from msdetr.data import Categories
from msdetr.data.layouts import YoloLayout
from msdetr.data.layouts.base import Collected
from msdetr.engine.metric import coco_rows
from msdetr.errors import AnnotationError
from msdetr.methods import build_detector
from msdetr.predictor import Predictor
from msdetr.results import category_ids, coco_dataset
from msdetr.structures import Detections

ALPHABET = "abcXYZ 019-_.,:;#'\"&<>%{}[]\\/äöüßéñçøł漢字カナ한글العربيةעברית🐟🦈 \u200b\t"


def some_names(rng: random.Random) -> list[str]:
    """One to twenty different names: numbers, words that YAML knows, markup, any script."""
    count = 1 if rng.random() < 0.2 else rng.randint(2, 20)
    names: dict[str, None] = {}
    while len(names) < count:
        word = "".join(rng.choices(ALPHABET, k=rng.randint(1, 12))).strip()
        names[rng.choice([word, word, "no", "007", "1e3", "null", "~", "Person", "person"]) or "x"] = None
    return list(names)


def some_ids(rng: random.Random, count: int) -> list[int]:
    """Different ids in any order: from 0 or 1, with gaps, negative, or beyond 32 bits."""
    kind = rng.randrange(5)
    if kind < 2:
        ids = list(range(kind, count + kind))
    else:
        low, high = [(0, 90), (-50, 1000), (2**40, 2**40 + 10**6)][kind - 2]
        ids = rng.sample(range(low, high), count)
    rng.shuffle(ids)
    return ids


def names_everywhere(names: list[str], ids: list[int]) -> dict[int, set[str]]:
    """Category id -> all names that data set, checkpoint, predictions and results file have for it."""
    content = Collected(Path("any"), {})
    image = content.add_image("a.png", (30, 40))
    for category_id in ids:
        content.add_object(image, category_id, (1, 2, 3, 4), "somewhere")
    table, report = content.checked(dict(zip(ids, names)), "error")
    assert not report
    categories = Categories.contiguous(table)
    manifest = files.parse_json(
        files.json_text({"class_names": list(categories.names), "category_ids": list(categories.category_ids)}),
        "manifest",
    )
    truth = {category["id"]: category["name"] for category in table.to_coco()["categories"]}
    classes = torch.arange(len(ids))
    boxes = torch.tensor([[1.0, 2, 3, 4]]).expand(len(ids), -1)
    detections = Detections(torch.ones(len(ids)), classes, boxes, classes)
    rows = coco_rows(1, detections, manifest["category_ids"])
    found: dict[int, set[str]] = {}
    for row, annotated_id in enumerate(ids):
        of_class = categories.to_class(annotated_id)
        trained = table.category_names[table.category[row]]
        written = int(rows["category_id"][of_class])
        found[written] = {trained, categories.names[of_class], manifest["class_names"][of_class], truth[annotated_id]}
        assert written == annotated_id
    return found


@pytest.mark.parametrize("layouts", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_layouts_of_categories(layouts):
    rng = random.Random(layouts)
    wrong = 0
    for _ in range(layouts):
        names = some_names(rng)
        ids = some_ids(rng, len(names))
        wrong += names_everywhere(names, ids) != {i: {name} for i, name in zip(ids, names)}
    assert wrong == 0


def yaml_of(names: dict[int, str], rng: random.Random, file: Path) -> dict:
    """data.yaml as a list or a mapping, in flow or block style."""
    listed = list(names) == list(range(len(names)))
    quoted = {i: json.dumps(name, ensure_ascii=rng.random() < 0.5) for i, name in names.items()}
    block = rng.random() < 0.5
    if listed and rng.random() < 0.5:
        text = "\n" + "".join(f"- {q}\n" for q in quoted.values()) if block else f"[{', '.join(quoted.values())}]\n"
    else:
        pairs = [f"{i}: {q}" for i, q in quoted.items()]
        rng.shuffle(pairs)
        text = "\n" + "".join(f"  {pair}\n" for pair in pairs) if block else f"{{{', '.join(pairs)}}}\n"
    return files.parse_yaml(f"train: images\nnames: {text}", file, AnnotationError, files._TextLoader)


def test_many_data_yaml_files(tmp_path):
    rng = random.Random(1)
    for _ in range(200):
        names = some_names(rng)
        ids = range(len(names)) if rng.random() < 0.5 else sorted(rng.sample(range(100), len(names)))
        wanted = dict(zip(ids, names))
        layout = YoloLayout._of(tmp_path, tmp_path / "data.yaml", yaml_of(wanted, rng, tmp_path / "data.yaml"))
        assert layout.names == wanted


HOSTILE = ["zebra", "漢字 & <b>", "007", "no", "äöü 'quoted'"]
TINY = SMALL | {
    "model.backbone": "conv",
    "model.pretrained": "none",
    "model.num_queries": 8,
    "model.decoder_layers": 1,
    "data.train_sizes": "32",
    "data.test_size": 32,
    "data.max_size": 64,
    "train.epochs": 1,
    "train.batch_size": 4,
}


def test_classes_without_ids_get_those_that_annotations_have_by_name(tmp_path):
    """As those of transformers' models of COCO, whose first class is called N/A."""
    settings = config("c", **{"model.num_classes": 4})
    names = ("N/A", "person", "bicycle", "N/A")
    predictor = Predictor(build_detector(settings), settings, names, device="cpu")
    assert category_ids(predictor) == [1, 2, 3, 4]
    file = tmp_path / "instances.json"
    categories = [{"id": 2, "name": "bicycle"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert category_ids(predictor, file) == [3, 1, 2, 4]
    known = Predictor(predictor.detector, settings, names, (9, 8, 7, 6), device="cpu")
    assert category_ids(known, file) == [9, 8, 7, 6], "those of the data that it was trained on"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 2}]}))
    with pytest.raises(AnnotationError, match="categories need a name and an id"):
        category_ids(predictor, file)


@pytest.mark.parametrize(
    ("layout", "names", "ids"),
    [
        ("coco", HOSTILE, [90, 0, 7, 3, 1000]),
        ("coco", ["only"], [0]),
        ("roboflow", HOSTILE, None),
        ("voc", HOSTILE, None),
    ],
)
def test_training_and_what_follows_keep_the_names(layout, names, ids, tmp_path):
    content = {"train": own.objects(10, len(names))}
    extra = {"ids": ids} if ids else {}
    root = own.WRITERS[layout](tmp_path / "own", names, content, **extra)
    run = tmp_path / "run"
    results = msdetr.train("photos/ms-detr-c", run, TINY, data=root, device="cpu", progress=False)
    wanted = {i: name for i, name in enumerate(names)} if layout != "voc" else dict(enumerate(sorted(names)))
    if ids:
        order = sorted(range(len(ids)), key=ids.__getitem__)
        wanted = {c: names[i] for c, i in enumerate(order)}
    assert results["class_names"] == list(wanted.values())
    predictor = msdetr.load(run, "cpu")
    assert list(predictor.class_names) == list(wanted.values())
    image = next(root.rglob("*.png"))
    found = predictor.predict(image, min_score=0.0)
    assert found.names == [wanted[c] for c in found.labels.tolist()]
    exported = coco_dataset([found], category_ids(predictor))
    name_of = {category["id"]: category["name"] for category in exported["categories"]}
    assert [name_of[row["category_id"]] for row in exported["annotations"]] == found.names
    result = msdetr.evaluate(run, progress=False, device="cpu")
    written = {int(i) for i in np.unique(result.detections["category_id"])}
    id_of = sorted(ids) if ids else [i + (layout == "voc") for i in range(len(names))]
    assert written <= set(id_of) and list(predictor.category_ids) == id_of
    assert name_of == dict(zip(id_of, wanted.values()))
    held = (run / "held_out.txt").read_text().splitlines()
    assert len(held) == 2 == result.num_images and all(name.endswith(".png") for name in held)
