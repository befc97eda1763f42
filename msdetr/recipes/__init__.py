"""Named run configurations: ``get("shapes/ms-detr-c")`` is a complete ``RunConfig``; override what you like.

coco/...      the released training of MS-DETR, its baselines and its relatives: ResNet-50, COCO 2017, most of them 12 epochs of
              16 images a step
small-gpu/... the same optimisation on one small GPU: one image at a time, gradients accumulated to as many, activations
              recomputed
shapes/...    the embedded data set: trained from scratch in minutes on a laptop's processor
photos/...    a folder of one's own photographs: from an ImageNet backbone on a processor, or from a released detector on a GPU
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import RunConfig, from_dict, load, nearest, parse_overrides
from ..errors import ConfigError
from .table import RECIPES, Recipe

__all__ = ["Recipe", "describe", "get", "names", "requested", "resolve", "run_name"]


def names() -> list[str]:
    """All recipe names."""
    return list(RECIPES)


def describe() -> dict[str, str]:
    """Recipe name -> one line that says what it is."""
    return {name: recipe.description for name, recipe in RECIPES.items()}


def get(name: str) -> RunConfig:
    """The configuration of a recipe. Raises ConfigError for an unknown name, with the nearest known one (F71)."""
    if name not in RECIPES:
        raise ConfigError(
            f"recipe: unknown recipe '{name}'; {nearest(name, names())} All of them: {', '.join(names())}"
        )
    return RECIPES[name].config()


def resolve(
    config: RunConfig | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """A configuration from a recipe's name, a YAML file, nested values, or itself, with dotted ``overrides`` applied.

    Raises ConfigError for an unknown recipe (listing what there is) or value.
    """
    if isinstance(config, RunConfig):
        resolved = config
    elif isinstance(config, Mapping):
        resolved = from_dict(config)
    elif str(config).endswith((".yaml", ".yml")):
        if not os.path.isfile(config):
            raise ConfigError(f"{config}: there is no such configuration file")
        resolved = load(config)
    else:
        resolved = get(str(config))
    return resolved.override(overrides) if overrides else resolved


def requested(
    recipe: RunConfig | Mapping[str, Any] | str | Path,
    data: str | Path | None = None,
    epochs: float | str | None = None,
    seed: int | str | None = None,
    overrides: Mapping[str, Any] | str | Iterable[str] | None = None,
) -> RunConfig:
    """The configuration that a command line or a notebook asks for: the recipe, the three usual changes by their short
    names, and any others. Empty text and None mean: as the recipe says.

    Raises ConfigError for an unknown recipe or value, and for a setting that is given two values.
    """
    changes = parse_overrides(overrides)
    for short, path, value in (("data", "data.root", data), ("epochs", "train.epochs", epochs), ("seed", "seed", seed)):
        if value is None or value == "":
            continue
        if path in changes and str(changes[path]) != str(value):
            raise ConfigError(f"{path}: given twice, as {changes[path]!r} and, by its short name {short}, as {value!r}")
        changes[path] = value
    return resolve(recipe, changes)


def run_name(recipe: str, config: RunConfig) -> str:
    """What a run's folder is called unless somebody says: recipe and seed."""
    stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe.replace("/", "-")
    return f"{stem}-seed{config.seed}"
