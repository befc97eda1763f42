"""Named run configurations: ``get("shapes/ms-detr-c")`` is a complete ``RunConfig``; override what you like.

coco/...      the released training of MS-DETR and its baselines: ResNet-50, COCO 2017, 12 epochs, 16 images a step
small-gpu/... the same optimisation on one small GPU: one image at a time, gradients accumulated to 16, activations
              recomputed
shapes/...    the embedded data set: trained from scratch in minutes on a laptop's processor
photos/...    a small ResNet on a small folder of photographs, to try the whole path before COCO
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import RunConfig, nearest
from ..errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A name, one line that says what it is, and what it changes of the recipe it builds on."""

    name: str
    description: str
    values: dict[str, Any]

    def config(self) -> RunConfig:
        return RunConfig().override({"recipe": self.name, **self.values})


# ---------------------------------------------------------------- COCO 2017, as released

_DEFORMABLE = {
    "model.variant": "baseline",
    "model.mixed_selection": False,
    "model.look_forward_twice": False,
    "model.dropout": 0.1,
    "loss.class_weight": 2.0,
    "data.raw_category_ids": True,
}
_PLUS_PLUS = _DEFORMABLE | {"model.mixed_selection": True, "model.look_forward_twice": True, "model.dropout": 0.0}
_MS = {"loss.class_weight": 1.0, "matching.one_to_many": "released"}
_900 = {"model.num_queries": 900}

_COCO = {
    "deformable-detr-300": ("Deformable DETR, two-stage, refinement, 300 queries (the baseline)", _DEFORMABLE),
    "deformable-detr-pp-300": ("Deformable DETR++, 300 queries (the stronger baseline)", _PLUS_PLUS),
    "deformable-detr-pp-900": ("Deformable DETR++, 900 queries", _PLUS_PLUS | _900),
    "ms-detr-300": (
        "MS-DETR (c) on Deformable DETR, 300 queries; released: 47.6 AP",
        _DEFORMABLE | _MS | {"model.variant": "c"},
    ),
    "ms-detr-pp-300": (
        "MS-DETR (c) on Deformable DETR++, 300 queries; released: 48.8 AP",
        _PLUS_PLUS | _MS | {"model.variant": "c"},
    ),
    "ms-detr-pp-900": (
        "MS-DETR (c) on Deformable DETR++, 900 queries, 300 detections kept; released: 50.0 AP",
        _PLUS_PLUS | _MS | _900 | {"model.variant": "c", "train.max_detections": 300},
    ),
    "ms-detr-a-300": (
        "MS-DETR (a): both kinds of supervision on the layer output",
        _DEFORMABLE | _MS | {"model.variant": "a"},
    ),
}

_SMALL_GPU = {"train.micro_batch": 1, "train.gradient_checkpointing": True}

# ---------------------------------------------------------------- the embedded data set

_SHAPES = {
    "model.num_classes": 8,
    "model.backbone": "conv",
    "model.pretrained": "none",
    "model.hidden_dim": 96,
    "model.num_heads": 8,
    "model.encoder_layers": 2,
    "model.decoder_layers": 3,
    "model.ffn_dim": 384,
    "model.num_queries": 100,
    "model.num_levels": 3,
    "model.variant": "baseline",
    "loss.class_weight": 2.0,
    "data.root": "data/shapes",
    "data.generate": "shapes",
    "data.train_split": "train",
    "data.val_split": "val",
    "data.num_train": 2000,
    "data.num_val": 500,
    "data.augment": "flip",
    "data.test_size": 0,
    "data.workers": 0,
    "data.cache": True,
    "train.epochs": 6,
    "train.batch_size": 8,
    "train.micro_batch": 8,
    "train.lr": 1e-3,
    "train.lr_backbone": 1e-3,
    "train.lr_projection_factor": 1.0,
    "train.schedule": "one_cycle",
    "train.eval_every": 2,
    "train.checkpoint_every": 3,
    "matching.k": 4,
}

_RELEASED_WEIGHTS = {"loss.class_weight": 1.0}

# ---------------------------------------------------------------- photographs, to try the path

_PHOTOS = _PLUS_PLUS | {
    "model.num_classes": 80,
    "model.backbone": "resnet18",
    "model.pretrained": "none",
    "model.backbone_norm": "group",
    "model.trainable_layers": 5,
    "model.hidden_dim": 128,
    "model.encoder_layers": 2,
    "model.decoder_layers": 3,
    "model.ffn_dim": 512,
    "model.num_queries": 100,
    "data.raw_category_ids": False,
    "data.train_sizes": (224, 256, 288, 320),
    "data.test_size": 320,
    "data.max_size": 480,
    "data.workers": 0,
    "train.batch_size": 4,
    "train.micro_batch": 2,
}


def _all() -> dict[str, Recipe]:
    recipes = {}

    def add(name: str, description: str, values: dict[str, Any]) -> None:
        recipes[name] = Recipe(name, description, values)

    for name, (description, values) in _COCO.items():
        add(f"coco/{name}", description, values)
    for name, (description, values) in _COCO.items():
        add(
            f"small-gpu/{name}",
            f"{description.split(';')[0]}; one image at a time, accumulated to 16",
            values | _SMALL_GPU,
        )
    add("shapes/baseline", "Deformable DETR++ on the embedded data set", _SHAPES)
    for variant in "abcd":
        add(
            f"shapes/ms-detr-{variant}",
            f"MS-DETR ({variant}) on the embedded data set",
            _SHAPES | {"model.variant": variant},
        )
    add(
        "shapes/ms-detr-c-released",
        "MS-DETR (c) on the embedded data set with the released loss weights (one-to-one class weight 1)",
        _SHAPES | _RELEASED_WEIGHTS | {"model.variant": "c"},
    )
    add("photos/baseline", "a small Deformable DETR++ on a folder of photographs, from scratch", _PHOTOS)
    add(
        "photos/ms-detr-c",
        "a small MS-DETR (c) on a folder of photographs, from scratch",
        _PHOTOS | {"model.variant": "c"},
    )
    return recipes


_RECIPES = _all()


def names() -> list[str]:
    """All recipe names."""
    return list(_RECIPES)


def describe() -> dict[str, str]:
    """Recipe name -> one line that says what it is."""
    return {name: recipe.description for name, recipe in _RECIPES.items()}


def get(name: str) -> RunConfig:
    """The configuration of a recipe. Raises ConfigError for an unknown name, with the nearest known one (F71)."""
    if name not in _RECIPES:
        raise ConfigError(
            f"recipe: unknown recipe '{name}'; {nearest(name, names())} All of them: {', '.join(names())}"
        )
    return _RECIPES[name].config()
