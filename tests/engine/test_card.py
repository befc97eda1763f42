"""The model card of a run: data, classes, settings and numbers as results.json has them, with a header that hubs read."""

import json
import re

import numpy as np
import pytest
import small
import yaml

from msdetr.data import CocoDetection
from msdetr.engine.card import card, described_data, known_candidates, write_card
from msdetr.engine.metric import DETECTION, coco_metrics
from msdetr.engine.run import RunDirectory

DATA = {
    "name": "cells", "layout": "COCO", "source": {"source": "https://a.example", "licence": "MIT", "attribution": "by A"},
    "train": {"split": "train", "images": 1200, "objects": {"red": 900, "a|b": 30}},
    "val": {"split": "the images held out of train", "images": 300, "objects": {"red": 90}},
}  # fmt: skip
BEST = {"step": 8, "epoch": 2.0, "AP": 0.5, "AP50": 0.71234, "AP75": 0.4, "APs": None, "APm": 0.3, "APl": 0.2}
RESULTS = {
    "data": DATA, "best": BEST, "metrics": BEST | {"AP": 0.45}, "per_class": {"red": 0.6, "a|b": None}, "class_names": ["red", "a|b"],
    "stopped_early": {"text": "stopped early after epoch 3.00"}, "parameters": {"total": 1_600_000}, "epochs": 3.0, "steps": 12,
    "seconds": 90.0, "device": "a processor",
}  # fmt: skip


def test_the_header_is_what_hubs_read():
    text = card("mine", small.config("c"), RESULTS)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "msdetr" and header["pipeline_tag"] == "object-detection"
    (model,) = header["model-index"]
    (result,) = model["results"]
    assert model["name"] == "mine" and result["task"]["type"] == "object-detection"
    assert result["dataset"] == {"name": "cells", "type": "cells", "split": "the images held out of train"}
    assert [(m["name"], m["value"]) for m in result["metrics"]] == [("AP", 0.5), ("AP50", 0.7123), ("AP75", 0.4)]


def test_the_card_says_what_people_ask():
    text = card("mine", small.config("c"), RESULTS, {"numbers": {"objects": 90, "mean IoU of the top 5": 0.61234}})
    for said in ("| red | 900 | 90 | 0.600 |", r"| a\|b | 30 | 0 | undefined |", "licence: MIT; by A", "1,200 images, 930 objects",
                 "epoch 2.00), which all commands use | 0.500 | 0.712", "| the last | 0.450", "stopped early after epoch 3.00",
                 "| mean IoU of the top 5 | 0.612 |", "figures/candidates.png", "| model.num_queries | 5 |"):  # fmt: skip
        assert said in text
    assert "figures/candidates.png" not in card("mine", small.config("c"), RESULTS)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # each row as long as its head
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


@pytest.mark.parametrize("content", ["{", "[]", {"step": 4, "numbers": {}}, {"step": 8}])
def test_candidates_of_another_checkpoint_are_not_shown(tmp_path, content):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "candidates.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert known_candidates(tmp_path, RESULTS) is None
    (tmp_path / "figures" / "candidates.json").write_text(json.dumps({"step": 8, "numbers": {}}))
    assert known_candidates(tmp_path, RESULTS) is not None


@pytest.mark.filterwarnings("ignore::msdetr.data.DataWarning")
def test_classes_of_one_name_are_told_apart_and_crowds_do_not_count(tmp_path):
    """As the AP of each class does it."""
    boxes = [(1, False), (1, False), (1, True), (2, False), (3, False)]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": c, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": int(crowd)}
        for i, (c, crowd) in enumerate(boxes)
    ]
    names = {1: "cat", 2: "cat", 3: "dog"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    images = [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}]
    (tmp_path / "a.png").touch()
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    dataset = CocoDetection(tmp_path, file, None)
    data = described_data(dataset, dataset, tmp_path)
    assert data["train"]["objects"] == {"cat (id 1)": 2, "cat (id 2)": 1, "dog": 1}
    scores = coco_metrics(dataset.coco_api(), np.zeros(0, DETECTION)).per_class
    assert scores.keys() == data["val"]["objects"].keys()
    said = card("mine", small.config("c"), RESULTS | {"data": data, "per_class": scores | {"cat (id 2)": 0.25}})
    assert "| cat (id 1) | 2 | 2 | 0.000 |" in said and "| cat (id 2) | 1 | 1 | 0.250 |" in said


def test_a_run_that_begins_anew_forgets_the_candidates_of_the_model_before(tmp_path):
    """One that goes on keeps those that were measured by then."""
    files = [tmp_path / "figures" / f"candidates.{kind}" for kind in ("json", "png")] + [tmp_path / "README.md"]

    def left(step):
        with RunDirectory(tmp_path) as run:
            files[0].write_text(json.dumps({"step": 8, "numbers": {}}))
            files[1].touch(), files[2].touch()
            run.begin(small.config("c"), step)
        return [file.name for file in files if file.exists()]

    assert left(8) == ["candidates.json", "candidates.png", "README.md"]
    assert left(4) == ["README.md"] and left(0) == []


def test_a_card_has_the_name_of_the_folder_where_one_stands_in_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert "# mine\n" in write_card(".", small.config("c"), RESULTS).read_text()
