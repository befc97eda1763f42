"""Reads a directory of conformance data: numbers computed once by the published reference implementation."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msdetr.config import RunConfig
from msdetr.structures import ImageBatch, Predictions, Targets


def read_json(path: Path) -> dict:
    """JSON, gzipped where the name ends in .gz."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return json.load(file)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def recipe_array(seed: str, name: str, spec: Mapping) -> np.ndarray:
    """Weights that are described, not stored: normal numbers of numpy's legacy generator, seeded by the name."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    generator = np.random.RandomState(np.frombuffer(digest[:16], dtype="<u4").astype(np.uint32))
    values = spec["mean"] + spec["std"] * generator.standard_normal(int(np.prod(spec["shape"])))
    if spec.get("lo") is not None or spec.get("hi") is not None:
        values = np.clip(values, spec.get("lo"), spec.get("hi"))
    values = values.astype(np.float16).reshape(spec["shape"])
    if spec.get("add_grid"):
        values = (values.astype(np.float64) + _directions(*spec["add_grid"])).astype(np.float16)
    found = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]
    if found != spec["sha12"]:
        raise ValueError(f"the recipe of {name} gives other numbers than recorded ({found}, expected {spec['sha12']})")
    return values


def _directions(heads: int, levels: int, points: int) -> np.ndarray:
    """The start of the sampling offsets: one direction per head, point p at distance p."""
    angle = np.arange(heads, dtype=np.float64) * (2.0 * np.pi / heads)
    ray = np.stack([np.cos(angle), np.sin(angle)], -1)
    ray = ray / np.abs(ray).max(-1, keepdims=True)
    return (ray[:, None, None] * np.arange(1, points + 1)[:, None] * np.ones((levels, 1, 1))).reshape(-1)


def released_state(folder: Path, variant: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The released state dict of a model, aliases included."""
    manifest = read_json(folder / "manifest.json")
    spec = read_json(folder / manifest["tensor_spec_file"])
    stored = {}
    if manifest.get("weights_file"):
        from safetensors.numpy import load_file

        stored = load_file(folder / manifest["weights_file"])
    state = {}
    for key, source in spec["state_dict"][variant].items():
        if source.startswith("="):
            continue
        name = source or key
        described = spec["tensors"][name]
        array = (
            stored[name] if described["from"] == "stored" else recipe_array(manifest["recipe_seed"], name, described)
        )
        state[key] = torch.from_numpy(array).to(dtype)
    for key, source in spec["state_dict"][variant].items():
        if source.startswith("="):
            state[key] = state[source[1:]]
    return state


def read_weights(folder: Path, manifest: Mapping, spec: Mapping) -> dict[str, Tensor]:
    """The weights of a case by the published names, of which several may be stored as one."""
    stored, stored_as = read_arrays(folder / "weights.npz"), spec.get("stored_as") or {}
    names = manifest["parameter_lists"][spec["parameters"]]
    return {name: torch.from_numpy(stored[stored_as.get(name, name)]) for name in names}


# The published command line, as far as it decides a number: name -> default.
PUBLISHED = {
    "two_stage": False,
    "with_box_refine": False,
    "mixed_selection": False,
    "look_forward_twice": False,
    "use_ms_detr": False,
    "use_aux_ffn": False,
    "use_indices_merge": False,
    "o2m_matcher_threshold": 0.4,
    "o2m_matcher_k": 6,
    "backbone": "resnet50",
    "num_feature_levels": 4,
    "hidden_dim": 256,
    "nheads": 8,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 1024,
    "dropout": 0.1,
    "num_queries": 300,
    "enc_n_points": 4,
    "dec_n_points": 4,
    "set_cost_class": 2.0,
    "set_cost_bbox": 5.0,
    "set_cost_giou": 2.0,
    "cls_loss_coef": 2.0,
    "bbox_loss_coef": 5.0,
    "giou_loss_coef": 2.0,
    "o2m_cls_loss_coef": 2.0,
    "o2m_bbox_loss_coef": 5.0,
    "o2m_giou_loss_coef": 2.0,
    "enc_cls_loss_coef": 2.0,
    "enc_bbox_loss_coef": 5.0,
    "enc_giou_loss_coef": 2.0,
    "focal_alpha": 0.25,
    "lr": 2e-4,
    "lr_backbone": 2e-5,
    "lr_linear_proj_mult": 0.1,
    "weight_decay": 1e-4,
    "clip_max_norm": 0.1,
}
# What has one value here, the default; a case with another one cannot be compared.
FIXED = {
    "dilation": (False, None),
    "masks": (False, None),
    "frozen_weights": (None,),
    "sgd": (False, None),
    "aux_loss": (True, None),
    "no_aux_loss": (False, None),
    "use_anchors_enc_match": (True, None),
    "position_embedding": ("sine",),
    "position_embedding_scale": (2 * np.pi,),
    "lr_backbone_names": (["backbone.0"],),
    "lr_linear_proj_names": (["reference_points", "sampling_offsets"], ["sampling_offsets", "reference_points"]),
}
# Data, files, schedule, and the choice of post-processing, which its own cases name: no number depends on these.
WITHOUT_EFFECT = frozenset(
    [
        "batch_size",
        "epochs",
        "lr_drop",
        "lr_drop_epochs",
        "mask_loss_coef",
        "dice_loss_coef",
        "dataset_file",
        "coco_path",
        "coco_panoptic_path",
        "remove_difficult",
        "output_dir",
        "device",
        "seed",
        "resume",
        "start_epoch",
        "eval",
        "num_workers",
        "cache_mode",
        "topk_eval",
        "nms_iou_threshold",
        "num_classes",
        "arch",
    ]
)
SIZES = {  # settings here that say the same
    "hidden_dim": "model.hidden_dim",
    "nheads": "model.num_heads",
    "enc_layers": "model.encoder_layers",
    "dec_layers": "model.decoder_layers",
    "dim_feedforward": "model.ffn_dim",
    "num_queries": "model.num_queries",
    "num_feature_levels": "model.num_levels",
}
ALSO_CALLED = {"o2m_threshold": "o2m_matcher_threshold", "o2m_k": "o2m_matcher_k"}


class CannotHonor(Exception):
    """A case carries a setting that there is nothing for here."""


def settings(manifest: Mapping, case: Mapping) -> dict:
    """Everything that a case was computed with, by the names of the published command line, with its defaults.

    Read from ``config`` and ``flags`` of the manifest, then of the case, then from the fields of the case itself; what
    comes later wins. Raises CannotHonor naming a setting that is unknown, or whose value does not exist here.
    """
    given: dict = {}
    for source in (manifest, case):
        for section in ("config", "flags"):
            given |= source.get(section) or {}
    known = PUBLISHED.keys() | FIXED.keys() | WITHOUT_EFFECT
    fields = {ALSO_CALLED.get(name, name): value for name, value in case.items()}
    given = {ALSO_CALLED.get(name, name): value for name, value in given.items()}
    given |= {name: value for name, value in fields.items() if name in known}
    given |= {f"set_{name}": value for name, value in (case.get("matcher") or {}).items()}
    if unknown := sorted(given.keys() - known):
        raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
    for name, values in FIXED.items():
        value = given.get(name, values[0])
        if name == "position_embedding":
            value = str(value).split(" ")[0]  # what follows describes it
        if value not in values and not (isinstance(value, float) and np.isclose(value, values[0])):
            raise CannotHonor(f"the case carries {name} = {value!r}; only {values[0]!r} exists here")
    if "num_classes" not in given:  # the published code derives it
        given["num_classes"] = {"coco": 91, "coco_panoptic": 250}.get(given.get("dataset_file", "coco"), 20)
    return PUBLISHED | {"arch": "c"} | given


def model_config(given: Mapping) -> RunConfig:
    """The configuration of the model that settings stand for. Raises CannotHonor naming what it cannot be."""
    if given["enc_n_points"] != given["dec_n_points"]:
        raise CannotHonor(
            f"the case carries enc_n_points = {given['enc_n_points']} and dec_n_points = {given['dec_n_points']}; "
            "encoder and decoder have one number of points here"
        )
    if given["use_ms_detr"] and given["arch"] == "a" and given["use_aux_ffn"]:
        raise CannotHonor("the case carries use_aux_ffn, which the published variant (a) has not")
    changes = {
        "model.pretrained": "none",
        "model.box_refine": given["with_box_refine"],
        "model.look_forward_twice": given["look_forward_twice"] and given["with_box_refine"],
        "model.backbone": given["backbone"],
        "model.num_classes": given["num_classes"],
        **{path: given[name] for name, path in SIZES.items()},
        "model.num_points": given["dec_n_points"],
        "model.dropout": given["dropout"],
        "two_stage": given["two_stage"],
        "ms_detr": given["use_ms_detr"],
    }
    if given["two_stage"]:
        changes["two_stage.mixed_selection"] = given["mixed_selection"]
    if given["use_ms_detr"]:
        changes["ms_detr.variant"] = given["arch"]
        if given["arch"] == "c":
            changes["ms_detr.candidate_ffn"] = "with" if given["use_aux_ffn"] else "without"
    return RunConfig().override(changes)


def run_config(config: RunConfig, given: Mapping) -> RunConfig:
    """With the matching and loss settings of the published training."""
    changes = {"loss.focal_alpha": given["focal_alpha"]}
    changes |= {f"matching.cost_{ours}": given[f"set_cost_{name}"] for name, ours in COSTS.items()}
    prefixes = {"loss": "", "two_stage": "enc_", "ms_detr": "o2m_"}
    for section, prefix in prefixes.items():
        if section == "loss" or section in config.methods:
            changes |= {f"{section}.{ours}": given[f"{prefix}{name}_loss_coef"] for name, ours in WEIGHTS.items()}
    if "ms_detr" in config.methods:
        changes |= {
            "ms_detr.rule": "released",
            "ms_detr.threshold": given["o2m_matcher_threshold"],
            "ms_detr.k": given["o2m_matcher_k"],
            "ms_detr.merge": given["use_indices_merge"],
        }
    return config.override(changes)


COSTS = {"class": "class", "bbox": "l1", "giou": "giou"}
WEIGHTS = {"cls": "class_weight", "bbox": "l1_weight", "giou": "giou_weight"}


def read_targets(
    arrays: Mapping[str, np.ndarray], num_images: int, dtype: torch.dtype, prefix: str = "targets/{}"
) -> Targets:
    names = [prefix.format(image) for image in range(num_images)]
    return Targets.from_list(
        [torch.from_numpy(arrays[f"{name}/labels"]) for name in names],
        [torch.from_numpy(arrays[f"{name}/boxes"]).to(dtype) for name in names],
    )


def read_predictions(arrays: Mapping[str, np.ndarray], names: list[str], dtype: torch.dtype) -> Predictions:
    """Predictions of several layers, each stored as NAME/pred_logits and NAME/pred_boxes."""
    return Predictions(
        torch.stack([torch.from_numpy(arrays[f"{name}pred_logits"]).to(dtype) for name in names]),
        torch.stack([torch.from_numpy(arrays[f"{name}pred_boxes"]).to(dtype) for name in names]),
    )


def read_images(arrays: Mapping[str, np.ndarray], names: list[str], dtype: torch.dtype) -> ImageBatch:
    """uint8 images as the reference was fed: (value - 127.5) / 64, zero-padded to one size."""
    images = [(torch.from_numpy(arrays[name]).double() - 127.5) / 64 for name in names]
    return ImageBatch.from_images([image.to(dtype) for image in images])
