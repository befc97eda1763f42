"""Whether a configuration fits a data set, and which settings would: everything that is wrong at once, with the line to type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import DataConfig, RunConfig
from ..errors import AnnotationError, ConfigError, DataError
from .annotations import Annotations
from .coco import Categories
from .layouts import Layout, find_layout, unknown_layout
from .parts import AUTO, Part, Role, choose, usual_split


@dataclass(frozen=True)
class Problem:
    """A setting that does not fit the data. text: says what and why. settings: dotted path -> value that would fit."""

    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def part(data: DataConfig, role: Role) -> Part:
    """What a configuration trains on ("train") or validates on ("val"). Raises ConfigError where it is not there, DataError
    where the folder has a fault."""
    found = _part(data, role)
    if isinstance(found, Problem):
        raise ConfigError(found.text)
    return found


def _part(data: DataConfig, role: Role) -> Part | Problem:
    root = Path(data.root)
    if not root.is_dir():
        return Problem(f"data.root: there is no folder {root}; name the folder of the data set (--data)")
    layout = find_layout(root)
    if layout is None:
        return Problem(f"data.root: {root} {unknown_layout(root)}")
    names: dict[Role, str] = {"train": data.train_split, "val": data.val_split}
    if (found := choose(layout, names, role)) is not None:
        return found
    splits = ", ".join(layout.splits)
    if names[role] != AUTO:
        return Problem(
            f"data.{role}_split: there is no {names[role]!r} in {layout}, which has the splits {splits}; name one of them, or auto"
        )
    return Problem(
        f"data.train_split: none of the splits {splits} of {layout} says that it is for training; name it, e.g. "
        f"data.train_split={layout.splits[0]}"
    )


def splits_without_validation(data: DataConfig) -> list[str]:
    """The splits of a folder where the validation images are to be found by themselves and no split is called so; else none.
    Raises DataError where the folder has a fault."""
    layout = find_layout(data.root) if data.val_split == AUTO else None
    if layout is None:
        return []
    found = choose(layout, {"train": data.train_split, "val": AUTO}, "val")
    return layout.splits if found is None or found.held_out else []


def available_splits(root: str | Path) -> list[str]:
    """Splits of a folder in a layout that is known."""
    layout = find_layout(root)
    return layout.splits if layout else []


def fitting_settings(root: str | Path) -> dict[str, Any]:
    """The settings that a folder needs: splits, number of classes, and contiguous classes where raw category ids would make
    another number of them. Empty where the folder has no layout that is known; without the number of classes where the
    labels cannot be read."""
    layout = find_layout(root)
    if layout is None:
        return {}
    splits = layout.splits
    train, val = (usual_split(splits, role) for role in ("train", "val"))
    settings: dict[str, Any] = {
        "data.train_split": train or splits[0],
        "data.val_split": val if val and val != train else AUTO,
    }
    table = _read(layout, settings["data.train_split"])
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
    """Raises ConfigError where the folder that a configuration names is not there, or in no known layout with its splits;
    then also for what else would not fit, as far as the labels can be read. Raises DataError for a folder with a fault.

    given_classes: whether ``model.num_classes`` was asked for, rather than left to follow the data.
    """
    data = config.data
    problems = []
    if data.generate == "shapes":
        if not _is_foreign(config):
            return  # the generator makes or checks the folder
        text = f"data.generate: is shapes, but {data.root} holds another data set; set data.generate=none"
        problems.append(Problem(text, {"data.generate": "none", "data.num_train": 0, "data.num_val": 0}))
    found = {role: _part(data, role) for role in ("train", "val")}
    problems += [problem for problem in found.values() if isinstance(problem, Problem)]
    problems = list({problem.text: problem for problem in problems}.values())
    if problems and (settings := fitting_settings(data.root)):
        chosen = found["train"].split if isinstance(found["train"], Part) else settings["data.train_split"]
        layout = find_layout(data.root)
        table = None if layout is None else _read(layout, chosen)
        if table is not None:
            raw = data.raw_category_ids and _num_raw(table) is not None
            categories = Categories.raw(table) if raw else Categories.contiguous(table)
            problems += unfit_classes(config.override({"data.train_split": chosen}), categories, given_classes)
            problems += unfit_batch(config, min(data.num_train or len(table), len(table)))
    refuse(config, problems)


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


def _read(layout: Layout, split: str) -> Annotations | None:
    try:
        return layout.read(split, on_bad="drop")[0]
    except (DataError, OSError):
        return None


def _num_raw(table: Annotations) -> int | None:
    try:
        return len(Categories.raw(table))
    except AnnotationError:
        return None
