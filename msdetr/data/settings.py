"""Whether a configuration fits a data set, and which settings would: everything that is wrong at once, with the line to type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import AnnotationError, ConfigError
from .coco import Categories
from .validate import Annotations, read_annotations


@dataclass(frozen=True)
class Problem:
    """A setting that does not fit the data. text: says what and why. settings: dotted path -> value that would fit."""

    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def annotation_file(root: str | Path, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{split}.json"


def available_splits(root: str | Path) -> list[str]:
    """Splits of a folder in COCO's layout, by name."""
    return sorted(file.stem.removeprefix("instances_") for file in Path(root).glob("annotations/instances_*.json"))


def fitting_settings(root: str | Path) -> dict[str, Any]:
    """The settings that a folder in COCO's layout needs: splits, number of classes, and contiguous classes where raw category
    ids would make another number of them. Empty where the folder has no annotation file; without the number of classes
    where the file cannot be read."""
    splits = available_splits(root)
    if not splits:
        return {}
    train = _first_like(splits, ("train",)) or splits[0]
    others = [split for split in splits if split != train]
    val = _first_like(others, ("val", "test")) or (others[0] if others else train)
    settings: dict[str, Any] = {"data.train_split": train, "data.val_split": val}
    table = _read(annotation_file(root, train))
    if table is not None:
        settings["model.num_classes"] = len(table.category_ids)
        if _num_raw(table) != len(table.category_ids):
            settings["data.raw_category_ids"] = False
    return settings


def settings_line(settings: Mapping[str, Any]) -> str:
    """The settings as options of the command line: ``--set data.train_split=train model.num_classes=3``."""
    shown = (json.dumps(value) if isinstance(value, bool) else str(value) for value in settings.values())
    return "--set " + " ".join(shlex.quote(f"{path}={value}") for path, value in zip(settings, shown))


def refuse(config: RunConfig, problems: Sequence[Problem]) -> None:
    """Raises ConfigError with all problems and the one line that mends them, where there are any."""
    if not problems:
        return
    mended = fitting_settings(config.data.root) if config.data.generate == "none" or _is_foreign(config) else {}
    for problem in problems:
        mended |= problem.settings
    text = "\n  ".join(problem.text for problem in problems)
    if len(problems) > 1:
        text = f"{len(problems)} settings do not fit {config.data.root}:\n  {text}"
    raise ConfigError(text + (f"\nThis would work: {settings_line(mended)}" if mended else ""))


def check_folders(config: RunConfig, given_classes: bool = True) -> None:
    """Raises ConfigError where the folder that a configuration names is not there, or not in COCO's layout with its splits;
    then also for what else would not fit, as far as the annotations can be read.

    given_classes: whether ``model.num_classes`` was asked for, rather than left to follow the data.
    """
    data = config.data
    problems = []
    if data.generate == "shapes":
        if not _is_foreign(config):
            return  # the generator makes or checks the folder
        text = f"data.generate: is shapes, but {data.root} holds another data set; set data.generate=none"
        problems.append(Problem(text, {"data.generate": "none", "data.num_train": 0, "data.num_val": 0}))
    problems += [problem for split in ("train", "val") if (problem := missing_split(config, split))]
    problems = list({problem.text: problem for problem in problems}.values())
    if problems and (train := fitting_settings(data.root).get("data.train_split")):
        chosen = data.train_split if annotation_file(data.root, data.train_split).is_file() else train
        table = _read(annotation_file(data.root, chosen))
        if table is not None:
            raw = data.raw_category_ids and _num_raw(table) is not None
            categories = Categories.raw(table) if raw else Categories.contiguous(table)
            problems += unfit_classes(config.override({"data.train_split": chosen}), categories, given_classes)
            problems += unfit_batch(config, min(data.num_train or len(table), len(table)))
    refuse(config, problems)


def missing_split(config: RunConfig, split: str) -> Problem | None:
    """What is wrong with the place of a split, "train" or "val"."""
    data = config.data
    root, setting = Path(data.root), f"data.{split}_split"
    name = data.train_split if split == "train" else data.val_split
    file = annotation_file(root, name)
    if file.is_file():
        return None
    if not root.is_dir():
        return Problem(f"data.root: there is no folder {root}; name the folder of the data set (--data)")
    splits = available_splits(root)
    if not splits:
        return Problem(
            f"data.root: {root} has no annotations/instances_SPLIT.json; it must be in COCO's layout, with the images of a "
            "split in a folder of its name beside annotations/"
        )
    return Problem(f"{setting}: there is no {file}; {root} has the splits {', '.join(splits)}")


def unfit_classes(config: RunConfig, categories: Categories, given: bool) -> list[Problem]:
    """Whether the number of classes that was asked for is another than that of the data."""
    classes = len(categories)
    if not given or classes == config.model.num_classes:
        return []
    explained = raw_ids_explained(categories)
    return [
        Problem(
            f"model.num_classes: is {config.model.num_classes}, but {config.data.root} ({config.data.train_split}) has "
            f"{classes} classes{f' ({explained})' if explained else ''}; set model.num_classes={classes}",
            {} if explained else {"model.num_classes": classes},
        )
    ]


def raw_ids_explained(categories: Categories) -> str:
    """Why there are more classes than categories; empty where there are not."""
    used = [category_id for category_id in categories.category_ids if category_id is not None]
    unused = len(categories) - len(used)
    if not unused:
        return ""
    return (
        f"data.raw_category_ids=true takes the category ids, {min(used)} to {max(used)}, as class indices, so {len(used)} "
        f"categories make {len(categories)} classes, {unused} of them never used; with data.raw_category_ids=false there "
        f"are {len(used)}"
    )


def unfit_batch(config: RunConfig, num_images: int) -> list[Problem]:
    """Whether there are too few training images for one step."""
    if num_images >= config.train.batch_size:
        return []
    return [
        Problem(
            f"train.batch_size: {config.train.batch_size} images per step, but the training set has {num_images}; "
            "lower train.batch_size or give more data",
            {"train.batch_size": max(num_images, 1)},
        )
    ]


def _is_foreign(config: RunConfig) -> bool:
    """Whether the folder for the generated set holds a data set of someone's own."""
    root = Path(config.data.root)
    return bool(available_splits(root)) and not (root / "manifest.json").exists()


def _first_like(splits: Sequence[str], words: Sequence[str]) -> str | None:
    for word in words:
        exact = [split for split in splits if split.lower() == word]
        close = exact or [split for split in splits if word in split.lower()]
        if close:
            return close[0]
    return None


def _read(file: Path) -> Annotations | None:
    try:
        return read_annotations(file, on_bad="drop")[0]
    except (AnnotationError, OSError):
        return None


def _num_raw(table: Annotations) -> int | None:
    try:
        return len(Categories.raw(table))
    except AnnotationError:
        return None
