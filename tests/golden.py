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


def model_config(arch: str, flags: Mapping, config: Mapping) -> RunConfig:
    """The configuration that the released command-line flags stand for."""
    one_to_many = flags.get("use_ms_detr", False)
    values = {
        "box_refine": flags.get("with_box_refine", False),
        "look_forward_twice": flags.get("look_forward_twice", False),
        "pretrained": "none",
        "backbone": config.get("backbone", "resnet50"),
        "num_classes": config.get("num_classes", 91),
        "hidden_dim": config.get("hidden_dim", 256),
        "num_heads": config.get("nheads", 8),
        "encoder_layers": flags.get("enc_layers", config.get("enc_layers", 6)),
        "decoder_layers": flags.get("dec_layers", config.get("dec_layers", 6)),
        "num_levels": flags.get("num_feature_levels", config.get("num_feature_levels", 4)),
        "num_points": config.get("dec_n_points", 4),
        "ffn_dim": flags.get("dim_feedforward", config.get("dim_feedforward", 1024)),
        "num_queries": flags.get("num_queries", config.get("num_queries", 300)),
        "dropout": flags.get("dropout", config.get("dropout", 0.1)),
    }
    changes = {f"model.{name}": value for name, value in values.items()}
    changes["two_stage"] = flags.get("two_stage", False)
    if flags.get("two_stage", False):
        changes["two_stage.mixed_selection"] = flags.get("mixed_selection", False)
    changes["ms_detr"] = one_to_many
    if one_to_many:
        changes["ms_detr.variant"] = arch
        if arch == "c":
            changes["ms_detr.candidate_ffn"] = "with" if flags.get("use_aux_ffn", False) else "without"
    return RunConfig().override(changes)


def run_config(config: RunConfig, flags: Mapping, case: Mapping) -> RunConfig:
    """The matching and loss settings of the released training."""
    changes = {"loss.class_weight": flags.get("cls_loss_coef", 2.0)}
    if "two_stage" in config.methods:
        changes |= {
            "two_stage.class_weight": flags.get("enc_cls_loss_coef", 2.0),
            "two_stage.l1_weight": flags.get("enc_bbox_loss_coef", 5.0),
            "two_stage.giou_weight": flags.get("enc_giou_loss_coef", 2.0),
        }
    if "ms_detr" in config.methods:
        changes |= {
            "ms_detr.class_weight": flags.get("o2m_cls_loss_coef", 2.0),
            "ms_detr.rule": "released",
            "ms_detr.threshold": case.get("o2m_threshold", 0.4),
            "ms_detr.k": case.get("o2m_k", 6),
            "ms_detr.merge": case.get("use_indices_merge", False),
        }
    return config.override(changes)


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
