"""Own data under a recipe's settings: everything that does not fit at once, and a line that works."""

import json
import shlex

import pytest

import msdetr
from msdetr.config import parse_overrides
from msdetr.data import (
    AnnotationError,
    CocoDetection,
    build_datasets,
    build_eval_loader,
    check,
    read_annotations,
    shapes,
)
from msdetr.data.coco import Categories
from msdetr.data.settings import check_folders, fitting_settings, raw_ids_explained, settings_line
from msdetr.errors import ConfigError, InputError, ShapesError

OF_COCO = {"data.train_split": "train2017", "data.val_split": "val2017"}


@pytest.fixture
def own(tmp_path, folder, content):
    """A folder in COCO's layout with a function that adds a split; three categories with ids 1, 5 and 90."""
    root = tmp_path / "own data"

    def add(split):
        images_dir, _ = folder(content)
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        if not (root / split).exists():
            images_dir.rename(root / split)
        return root

    return add


def suggested(error):
    """The overrides of the line that an error ends with."""
    line = str(error.value).splitlines()[-1]
    assert line.startswith("This would work: --set ")
    return parse_overrides(shlex.split(line.removeprefix("This would work: --set ")))


@pytest.mark.parametrize("recipe", ["photos/ms-detr-c", "coco/ms-detr-300", "shapes/ms-detr-c"])
def test_all_that_is_wrong_is_told_at_once_with_a_line_that_works(own, recipe):
    own("training")
    root = own("valid")
    config = msdetr.resolve(recipe, OF_COCO | {"data.root": str(root), "model.num_classes": 7, "train.batch_size": 16})
    with pytest.raises(ConfigError) as error:
        check_folders(config)
    text = str(error.value)
    for words in (
        "data.train_split",
        "data.val_split",
        "splits training, valid",
        "model.num_classes",
        "train.batch_size",
    ):
        assert words in text
    assert ("data.generate" in text) == (recipe.startswith("shapes"))
    mended = config.override(suggested(error))
    check_folders(mended)
    train_set, val_set = build_datasets(mended)
    assert len(train_set.class_names) == mended.model.num_classes == 3 and len(val_set) == 3
    assert len(train_set) >= mended.train.batch_size


def test_what_a_recipe_for_coco_needs_for_other_data(own):
    own("train")
    root = own("val")
    line = settings_line(fitting_settings(root))
    assert "data.train_split=train data.val_split=val model.num_classes=3" in line
    config = msdetr.resolve("photos/ms-detr-c", OF_COCO | {"data.root": str(root), "train.batch_size": 2})
    with pytest.raises(ConfigError) as error:
        check_folders(config, given_classes=False)
    assert str(error.value).endswith(line) and "num_classes: is" not in str(error.value)


def test_check_data_prints_a_line_that_works(own):
    root = own("train")
    text = str(check(root))
    assert text.endswith(f"msdetr train photos/ms-detr-c --data {shlex.quote(str(root))}")
    own("second")
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_first.json")
    (root / "train").rename(root / "first")
    assert str(check(root)).endswith("--set data.train_split=first")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "val", "test"], ("train", "val")),
        (["test", "train2017", "val2017"], ("train2017", "val2017")),
        (["Training", "testing"], ("Training", "auto")),
        (["a", "b"], ("a", "auto")),
        (["all"], ("all", "auto")),
    ],
)
def test_the_splits_that_are_suggested(own, splits, expected):
    for split in splits:
        root = own(split)
    settings = fitting_settings(root)
    assert (settings["data.train_split"], settings["data.val_split"]) == expected


def test_places_without_a_data_set(tmp_path):
    config = msdetr.resolve("photos/ms-detr-c", {"data.root": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="data.root: there is no folder .*nowhere") as error:
        build_datasets(config)
    assert str(error.value).count("nowhere") == 1
    with pytest.raises(ConfigError, match="holds no data set in a layout that is known"):
        build_datasets(config.override({"data.root": str(tmp_path)}))


def test_a_file_that_cannot_be_read_does_not_hide_the_rest(own):
    root = own("train")
    (root / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(ConfigError, match="data.train_split.*\n.*data.val_split") as error:
        check_folders(msdetr.resolve("photos/ms-detr-c", OF_COCO | {"data.root": str(root)}))
    assert suggested(error) == {"data.train_split": "train", "data.val_split": "auto"}


def test_raw_ids_are_explained_where_they_change_the_count(folder):
    table, _ = read_annotations(folder()[1])
    assert raw_ids_explained(Categories.contiguous(table)) == ""
    text = raw_ids_explained(Categories.raw(table))
    assert "category ids, 1 to 90" in text and "3 categories make 91 classes, 88 of them never used" in text
    assert "data.raw_category_ids=false there are 3" in text


@pytest.mark.fault("F108")
def test_a_cache_beyond_the_memory_is_refused_before_it_is_made(folder, content, monkeypatch):
    folder()
    for image in content["images"]:
        image |= {"width": 9000, "height": 9000}
    monkeypatch.setattr("msdetr.data.coco.machine_memory", lambda: 2**29)
    monkeypatch.setattr("mmap.mmap", lambda *arguments: pytest.fail("allocated") if arguments[1] > 2**20 else bytes(8))
    with pytest.raises(ConfigError, match="data.cache: 3 decoded images take 1 GiB.*set data.cache=false"):
        CocoDetection(*folder(content, images=False), cache=True)


@pytest.mark.fault("F108")
def test_an_image_that_no_machine_has_is_refused_at_load(folder, content):
    content["images"][1] |= {"width": 2**31 - 1, "height": 2**31 - 1}
    with pytest.raises(AnnotationError, match="image 3: 2147483647 × 2147483647 pixels, the limit is"):
        CocoDetection(*folder(content, images=False))


@pytest.mark.fault("F108")
def test_a_generated_set_beyond_the_disk_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(ShapesError, match="1,000,000,000,000 .* images take about .* are free; ask for fewer"):
        shapes.generate(tmp_path / "shapes", 10**12, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("F98")
def test_counts_that_are_none(folder, tmp_path):
    with pytest.raises(InputError, match="limit: must be"):
        CocoDetection(*folder(), limit=-1)
    with pytest.raises(InputError, match="num_train: must be"):
        shapes.generate(tmp_path / "shapes", -1, 1)
    with pytest.raises(InputError, match="batch_size: must be"):
        build_eval_loader(CocoDetection(*folder()), 0)
