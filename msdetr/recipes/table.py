"""The table of recipes: what each changes of the one it builds on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import RunConfig


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
    "ms_detr": None,
    "two_stage.mixed_selection": False,
    "model.look_forward_twice": False,
    "model.dropout": 0.1,
    "loss.class_weight": 2.0,
    "data.raw_category_ids": True,
}
_PLUS_PLUS = _DEFORMABLE | {"two_stage.mixed_selection": True, "model.look_forward_twice": True, "model.dropout": 0.0}
_MS = {"loss.class_weight": 1.0, "ms_detr.rule": "released"}
_900 = {"model.num_queries": 900}
# Chen et al., 2024, Table 12 and the released code: no encoder but its backbone, three decoder layers, one set of references.
# What is not as released: see ``msdetr.methods.LWDETR``
_LW_DETR = {
    "ms_detr": None,
    "two_stage": None,
    "lw_detr.groups": 13,
    "model.encoder_layers": 0,
    "model.decoder_layers": 3,
    "model.cross_heads": 16,
    "model.num_levels": 3,
    "model.num_points": 2,
    "model.dropout": 0.0,
    "model.query_positions": "references",
    "model.output_norm": True,
    "model.box_refine": False,
    "model.look_forward_twice": False,
    "loss.class_weight": 1.0,
    "loss.floor": "product",
    "data.raw_category_ids": True,
    "train.batch_size": 32,
    "train.lr": 1e-4,
    "train.lr_backbone": 1.5e-4,
    "train.lr_projection_factor": 1.0,
    "train.epochs": 60,
    "train.schedule": "constant",
    "train.ema_decay": 0.9997,
    "train.max_detections": 300,
}
_DETA = {
    "two_stage.mixed_selection": False,
    "two_stage.class_weight": 1.0,
    "loss.class_weight": 1.0,
    "model.num_levels": 5,
    "train.drop_epoch": 10,
    "deta.rule": "released",
    "deta.token_contents": True,
}
_MR_DETR = _PLUS_PLUS | {
    "mr_detr.rule": "released",
    "mr_detr.proposals": "own",
    "mr_detr.mix_layers": True,
    "model.reference_eps": 1e-3,
    "loss.giou_eps": 1e-6,
    "two_stage.class_weight": 6.0,
    "two_stage.l1_weight": 15.0,
    "two_stage.giou_weight": 6.0,
    "model.num_classes": 80,
    "data.raw_category_ids": False,
    "train.lr": 1e-4,
    "train.lr_backbone": 1e-5,
    "train.lr_projection_factor": 1.0,
    "train.max_detections": 300,
}

_IDEA = {  # what DN-DETR and DINO have in common
    "ms_detr": None,
    "loss.class_weight": 1.0,
    "loss.giou_eps": 1e-6,
    "model.reference_eps": 1e-3,
    "data.raw_category_ids": True,
    "train.lr": 1e-4,
    "train.lr_backbone": 1e-5,
    "train.lr_projection_factor": 1.0,
}
_DN_DEFORMABLE = _IDEA | {
    "two_stage": None,
    "dab.indicator": True,
    "model.query_positions": "scaled_references",
    "model.look_forward_twice": False,
    "denoising.groups": 5,
    "denoising.contrastive": False,
    "denoising.style": "indicated",
    "denoising.noise": "centers",
    "denoising.label_noise": 0.2,
    "denoising.box_noise": 0.4,
    "train.epochs": 50,
    "train.drop_epoch": 40,
}
_DINO_4SCALE = _IDEA | {
    "model.num_queries": 900,
    "model.query_positions": "references",
    "model.output_norm": True,
    "model.shared_heads": True,
    "model.position_temperature": 20.0,
    "model.position_offset": 0.0,
    "two_stage.rank_by": "best_class",
    "two_stage.supervise": "queries",
    "two_stage.match_on": "boxes",
    "two_stage.class_weight": 1.0,
    "denoising.queries": 100,
    "denoising.contrastive": True,
    "denoising.label_noise": 0.25,
    "denoising.box_noise": 0.4,
    "train.max_detections": 300,
}

# on detrex's DINO, which has heads for every layer and Deformable DETR's positions of maps, and freezes the stem alone.
# Released: norms without weight decay.   Here: with
_STABLE_DINO = _DINO_4SCALE | {
    "model.shared_heads": False,
    "model.position_temperature": 10000.0,
    "model.position_offset": -0.5,
    "model.trainable_layers": 4,
    "model.num_classes": 80,
    "data.raw_category_ids": False,
    "stable.memory_fusion": True,
    "stable.cost": "released",
    "loss.class_weight": 6.0,
    "two_stage.class_weight": 6.0,
    "denoising.class_weight": 1.0,
    "denoising.box_noise": 1.0,
    "denoising.negative_step": 0.0,
    "denoising.noise": "clamped_corners",
}

_COCO: dict[str, tuple[str, dict[str, Any]]] = {
    "deformable-detr-300": ("Deformable DETR, two-stage, refinement, 300 queries (the baseline)", _DEFORMABLE),
    "deformable-detr-pp-300": ("Deformable DETR++, 300 queries (the stronger baseline)", _PLUS_PLUS),
    "deformable-detr-pp-900": ("Deformable DETR++, 900 queries", _PLUS_PLUS | _900),
    "ms-detr-300": (
        "MS-DETR (c) on Deformable DETR, 300 queries; released: 47.6 AP",
        _DEFORMABLE | _MS | {"ms_detr.variant": "c"},
    ),
    "ms-detr-pp-300": (
        "MS-DETR (c) on Deformable DETR++, 300 queries; released: 48.8 AP",
        _PLUS_PLUS | _MS | {"ms_detr.variant": "c"},
    ),
    "ms-detr-pp-900": (
        "MS-DETR (c) on Deformable DETR++, 900 queries, 300 detections kept; released: 50.0 AP",
        _PLUS_PLUS | _MS | _900 | {"ms_detr.variant": "c", "train.max_detections": 300},
    ),
    "ms-detr-a-300": (
        "MS-DETR (a): both kinds of supervision on the layer output",
        _DEFORMABLE | _MS | {"ms_detr.variant": "a"},
    ),
    "h-detr-300": (
        "H-DETR on Deformable DETR++, 300 + 1500 queries, every object 6 times; published: 48.7 AP",
        _PLUS_PLUS
        | {"hybrid.queries": 1500, "hybrid.k": 6, "hybrid.weight": 1.0}
        | {"two_stage.match_on": "boxes", "loss.floor": "product"},
    ),
    "lw-detr": (
        (
            "Group DETR as LW-DETR trains it, 13 groups of 300 queries, on ResNet-50; published with a ViT and Objects365: 42.6 to "
            "58.3 AP"
        ),
        _LW_DETR,
    ),
    "group-detr-300": (
        "Group DETR on Deformable DETR++, 11 groups of 300 queries",
        _PLUS_PLUS | {"group.groups": 11},
    ),
    # published: Li et al., CVPR 2022, and the table of IDEA-Research/DN-DETR (50 epochs; 48.4 AP after 24)
    "dn-deformable-detr": (
        "DN-DAB-Deformable-DETR, 300 queries, 50 epochs; published: 49.5 AP",
        _DN_DEFORMABLE,
    ),
    "dn-deformable-detr-ms-c": (
        "DN-DAB-Deformable-DETR and MS-DETR (c), 300 queries, 50 epochs",
        _DN_DEFORMABLE | _MS | {"ms_detr.variant": "c"},
    ),
    # published: Zhang et al., ICLR 2023, and the table of IDEA-Research/DINO (12 epochs; 50.4 AP after 24, 50.9 after 36)
    "dino-4scale-r50": (
        "DINO, 900 queries, 4 levels, 12 epochs, 300 detections kept; published: 49.0 AP",
        _DINO_4SCALE,
    ),
    "dino-4scale-r50-ms-c": (
        "DINO and MS-DETR (c), 900 queries, 4 levels, 12 epochs, 300 detections kept",
        _DINO_4SCALE | _MS | {"ms_detr.variant": "c"},
    ),
    # published: Ouyang-Zhang et al., 2022, and the table of jozhang97/DETA (12 epochs; 51.1 AP after 24)
    "deta-900": (
        "DETA, 900 queries, 5 levels; published: 50.1 AP (12 epochs)",
        _DEFORMABLE | _900 | _DETA | {"model.dropout": 0.0},
    ),
    # published: Liu et al., ICCV 2023, and the table of IDEA-Research/Stable-DINO (12 epochs; 51.5 AP after 24)
    "stable-dino-4scale-r50": (
        "Stable-DINO's losses, costs and memory fusion on DINO, 12 epochs; published: 50.4 AP",
        _STABLE_DINO,
    ),
    "stable-dino-4scale-r50-ms-c": (
        "Stable-DINO's losses, costs and memory fusion on DINO, and MS-DETR (c), 12 epochs",
        _STABLE_DINO | {"ms_detr.rule": "released", "ms_detr.variant": "c", "ms_detr.class_weight": 6.0},
    ),
    # published: Zhang et al., CVPR 2025, and the table of Visual-AI/Mr.DETR: of a mean of three checkpoints, see ``MrDETR``
    "mr-detr-300": ("Mr.DETR on Deformable DETR++, 300 queries; published: 49.5 AP", _MR_DETR),
    "mr-detr-900": ("Mr.DETR on Deformable DETR++, 900 queries; published: 50.7 AP", _MR_DETR | _900),
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
    "ms_detr": None,
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
}
_SHAPES_K = {"ms_detr.k": 4}
_HYBRID = {"hybrid.queries": 150, "hybrid.k": 4}
_GROUP = {"group.groups": 4}
_DN = {"denoising.contrastive": False, "denoising.label_noise": 0.2}
_STABLE = {"stable.loss_iou_power": 2.0, "loss.class_weight": 6.0, "two_stage.class_weight": 6.0}
_BESIDE = {"stable-dino": {"ms_detr.class_weight": 6.0}}  # what a method changes of MS-DETR beside it
_DINO = {"denoising.contrastive": True}
_MR = {"mr_detr.k": 4}

_FADING = {"ms_detr.fade": 1.0}

_RELEASED_WEIGHTS = {"loss.class_weight": 1.0}

# ---------------------------------------------------------------- one's own photographs

_OWN_DATA = {"data.raw_category_ids": False, "data.train_split": "auto", "data.val_split": "auto"}
_PHOTOS = _OWN_DATA | {
    "model.num_classes": 80,
    "model.backbone": "shufflenet_v2_x0_5",
    "model.pretrained": "imagenet",
    "model.trainable_layers": 5,
    "model.hidden_dim": 96,
    "model.num_heads": 8,
    "model.encoder_layers": 2,
    "model.decoder_layers": 3,
    "model.ffn_dim": 384,
    "model.num_queries": 100,
    "ms_detr": None,
    "loss.class_weight": 2.0,
    "data.train_sizes": (192, 208, 224, 240, 256),
    "data.test_size": 256,
    "data.max_size": 320,
    "data.workers": 0,
    "train.epochs": 36,
    "train.batch_size": 8,
    "train.micro_batch": 8,
    "train.lr": 1e-3,
    "train.lr_backbone": 1e-4,
    "train.lr_projection_factor": 1.0,
    "train.schedule": "one_cycle",
    "train.eval_every": 4,
    "train.checkpoint_every": 4,
}
_FINE_TUNE = (
    _PLUS_PLUS
    | _MS
    | _OWN_DATA
    | {
        "ms_detr.variant": "c",
        "train.batch_size": 8,
        "train.micro_batch": 1,
        "train.gradient_checkpointing": True,
        "train.lr": 1e-4,
        "train.lr_backbone": 1e-5,
    }
)
# one stage, no refinement; its variants with refinement or two stages are named by the error that says what to set
_HUGGING_FACE = {
    "ms_detr": None,
    "two_stage": None,
    "model.box_refine": False,
    "model.look_forward_twice": False,
    "model.ffn_dim": 1024,
    "model.dropout": 0.1,
    "loss.class_weight": 2.0,
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
            f"{description.split(';')[0]}; one image at a time, accumulated to {values.get('train.batch_size', 16)}",
            values | _SMALL_GPU,
        )
    add("shapes/baseline", "Deformable DETR++ on the embedded data set", _SHAPES)
    for variant in "abcd":
        add(
            f"shapes/ms-detr-{variant}",
            f"MS-DETR ({variant}) on the embedded data set",
            _SHAPES | {"ms_detr.variant": variant} | _SHAPES_K,
        )
    add(
        "shapes/ms-detr-c-released",
        "MS-DETR (c) on the embedded data set with the released loss weights (one-to-one class weight 1)",
        _SHAPES | _RELEASED_WEIGHTS | {"ms_detr.variant": "c"} | _SHAPES_K,
    )
    for name, title, values in (
        ("h-detr", "H-DETR's hybrid matching", _HYBRID),
        ("group-detr", "Group DETR's query groups", _GROUP),
        ("deta", "DETA's assignment by IoU and suppression", {"deta.k": 4}),
        ("stable-dino", "Stable-DINO's class loss and cost", _STABLE),
        ("dn-detr", "DN-DETR's denoising", _DN),
        ("dino", "DINO's contrastive denoising", _DINO),
        ("mr-detr", "Mr.DETR's routes", _MR),
    ):
        add(f"shapes/{name}", f"{title} on Deformable DETR++, on the embedded data set", _SHAPES | values)
        add(
            f"shapes/{name}-ms-c",
            f"{title} and MS-DETR (c) on the embedded data set",
            _SHAPES | values | {"ms_detr.variant": "c"} | _SHAPES_K | _BESIDE.get(name, {}),
        )
    for name, title, values in (
        ("ms-detr-c-fading", "MS-DETR (c)", {}),
        (
            "stable-dino-ms-c-fading",
            "Stable-DINO's class loss and cost and MS-DETR (c)",
            _STABLE | _BESIDE["stable-dino"],
        ),
    ):
        fading = values | {"ms_detr.variant": "c"} | _SHAPES_K | _FADING
        title = f"{title}, one-to-many weights fading to 0 over the training"
        add(f"shapes/{name}", f"{title}, on the embedded data set", _SHAPES | fading)
        add(f"photos/{name}", f"{title}, on a folder of photographs, about 320 pixels", _PHOTOS | fading)
    add("photos/baseline", "a small Deformable DETR++ on a folder of photographs, about 320 pixels", _PHOTOS)
    add(
        "photos/ms-detr-c",
        "a small MS-DETR (c) on a folder of photographs, about 320 pixels",
        _PHOTOS | {"ms_detr.variant": "c"} | _SHAPES_K,
    )
    add(
        "photos/ms-detr-pp-300",
        "the model of coco/ms-detr-pp-300 on a folder of photographs, to go on from released weights with init_from",
        _FINE_TUNE,
    )
    add(
        "photos/deformable-detr",
        "transformers' SenseTime/deformable-detr on a folder of photographs, to go on from its folder with init_from",
        _FINE_TUNE | _HUGGING_FACE,
    )
    return recipes


RECIPES = _all()
