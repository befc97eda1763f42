"""The model card of a run: data, classes, settings and numbers as results.json has them, with a header that hubs read."""

import json
import re

import pytest
import small
import yaml

from msdetr.engine.card import card, known_candidates

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
