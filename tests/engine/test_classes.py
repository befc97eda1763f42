"""The number of classes follows the data unless a person set it."""

import json

import pytest
import tiny

import msdetr
from msdetr.config import RunConfig, load
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine import train
from msdetr.engine.classes import classes_were_given
from msdetr.errors import ConfigError


@pytest.fixture
def config(shapes):
    """The tiny run under a recipe's name, with a number of classes that is the recipe's but not the data's (8)."""
    return tiny.config(shapes, recipe="photos/ms-detr-c", model__num_classes=80, train__epochs=0.25)


def test_the_data_decides_where_nobody_did(config, tmp_path):
    train(config, tmp_path, device="cpu", progress=False)
    assert load(tmp_path / "config.yaml").model.num_classes == 8
    found = checkpoints.find(tmp_path)
    assert found.config.model.num_classes == 8 and len(found.class_names) == 8
    assert msdetr.load(tmp_path, device="cpu").predict([]) == []
    more = config.override({"train.epochs": 0.5})  # the same call goes on, whatever the recipe's number
    train(more, tmp_path, device="cpu", progress=False, allow_config_change=True)
    assert train(more, tmp_path, device="cpu", progress=False)["steps"] == 2
    assert train(load(tmp_path / "config.yaml"), tmp_path, device="cpu", progress=False)["steps"] == 2


def test_a_person_decides_where_one_did(config, tmp_path):
    for wrong in (
        config.override({"model.num_classes": 5}),
        config.override({"model.num_classes": 5, "recipe": "mine"}),
    ):
        with pytest.raises(ConfigError, match="is 5, but .* has 8 classes; set model.num_classes=8"):
            train(wrong, tmp_path / "a", device="cpu", progress=False)
    with pytest.raises(ConfigError, match="is 80, but .* has 8 classes"):
        train(config, tmp_path / "b", device="cpu", progress=False, given_classes=True)
    with pytest.raises(ConfigError, match="is 80, but .* has 8 classes"):  # although it is the recipe's number
        msdetr.train(config, tmp_path / "c", {"model.num_classes": 80}, device="cpu", progress=False)


def test_raw_ids_and_too_few_images_are_told_together(config, tmp_path):
    wrong = config.override({"data.raw_category_ids": True, "model.num_classes": 8, "train.batch_size": 100})
    with pytest.raises(ConfigError) as error:
        train(wrong, tmp_path, device="cpu", progress=False)
    text = str(error.value)
    assert "8 categories make 9 classes" in text and "train.batch_size: 100 images per step" in text


@pytest.mark.parametrize(
    ("recipe", "classes", "given"),
    [
        ("photos/ms-detr-c", 80, False),
        ("photos/ms-detr-c", 3, True),
        ("coco/ms-detr-300", 91, False),
        ("shapes/baseline", 8, False),
        ("custom", 91, False),
        ("custom", 8, True),
    ],
)
def test_whose_number_it_is(recipe, classes, given):
    assert classes_were_given(RunConfig().override({"recipe": recipe, "model.num_classes": classes})) == given


def test_results_and_config_agree(config, tmp_path):
    results = train(config, tmp_path, device="cpu", progress=False)
    assert len(results["class_names"]) == 8 == load(tmp_path / "config.yaml").model.num_classes
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
