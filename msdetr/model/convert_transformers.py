"""Names and settings of transformers' ``DeformableDetrForObjectDetection`` <-> this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import CheckpointError, ConfigError, InputError
from .rename import rename

CONFIG, MODEL_TYPE = "config.json", "deformable_detr"

# ---------------------------------------------------------------- names

# on disk -> here; {i} stands for a number, {*} for the rest of the name
RENAMES = [
    ("model.backbone.conv_encoder.model.{*}", "backbone.body.{*}"),
    ("model.input_proj.{*}", "projections.{*}"),
    ("model.level_embed", "level_embedding"),
    ("model.query_position_embeddings.weight", "query_selection.embedding.weight"),
    ("model.reference_points.{*}", "query_selection.reference_points.{*}"),
    ("model.enc_output.{*}", "query_selection.memory_projection.{*}"),
    ("model.enc_output_norm.{*}", "query_selection.memory_norm.{*}"),
    ("model.pos_trans.{*}", "query_selection.position_projection.{*}"),
    ("model.pos_trans_norm.{*}", "query_selection.position_norm.{*}"),
    ("model.encoder.layers.{i}.self_attn.{*}", "encoder.layers.{i}.attention.inner.{*}"),
    ("model.encoder.layers.{i}.self_attn_layer_norm.{*}", "encoder.layers.{i}.attention.norm.{*}"),
    ("model.encoder.layers.{i}.fc1.{*}", "encoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("model.encoder.layers.{i}.fc2.{*}", "encoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("model.encoder.layers.{i}.final_layer_norm.{*}", "encoder.layers.{i}.ffn.norm.{*}"),
    ("model.decoder.layers.{i}.self_attn.{*}", "decoder.layers.{i}.self_attention.inner.attention.{*}"),
    ("model.decoder.layers.{i}.self_attn_layer_norm.{*}", "decoder.layers.{i}.self_attention.norm.{*}"),
    ("model.decoder.layers.{i}.encoder_attn.{*}", "decoder.layers.{i}.cross_attention.inner.{*}"),
    ("model.decoder.layers.{i}.encoder_attn_layer_norm.{*}", "decoder.layers.{i}.cross_attention.norm.{*}"),
    ("model.decoder.layers.{i}.fc1.{*}", "decoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("model.decoder.layers.{i}.fc2.{*}", "decoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("model.decoder.layers.{i}.final_layer_norm.{*}", "decoder.layers.{i}.ffn.norm.{*}"),
]
IN_MEMORY = [  # what version 5 calls otherwise while it runs -> on disk
    (r"^model\.backbone\.model\.", "model.backbone.conv_encoder.model."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # of self-attention, which are one tensor here


def from_transformers(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The state dict of a detector from that of transformers' model, with its names on disk or those in memory.

    Where a folder holds one class head for all layers (they are tied), all get it. Raises CheckpointError for names that
    are unknown, and where one tensor is given twice with different values.
    """
    given: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        for pattern, on_disk in IN_MEMORY:
            name = re.sub(pattern, on_disk, name)
        name = re.sub(r"^model\.decoder\.((class|bbox)_embed\.)", r"\1", name)
        if name in given and not torch.equal(given[name], tensor):
            raise CheckpointError(
                f"{name}: is given twice, with different values; save the model anew with transformers"
            )
        given[name] = tensor
    found, unknown = {}, []
    for name, tensor in given.items():
        if match := re.fullmatch(r"(.*\.self_attn)\.q_proj\.(weight|bias)", name):
            packed = [given.get(f"{match[1]}.{part}.{match[2]}") for part in PROJECTIONS]
            if any(part is None for part in packed):
                raise CheckpointError(f"{match[1]}: needs q_proj, k_proj and v_proj, with {match[2]}")
            found[_here(f"{match[1]}.in_proj_{match[2]}", config)] = torch.cat(packed)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            new_name = _here(name, config)
            if new_name is None:
                unknown.append(name)
            elif new_name:
                found[new_name] = tensor
    if unknown:
        raise CheckpointError(
            f"not a Deformable DETR of transformers; unknown names: {', '.join(sorted(unknown)[:10])}"
        )
    for i in range(1, config.model.decoder_layers if config.model.box_refine else 1):
        for leaf in ("weight", "bias"):
            if f"decoder.class_heads.0.{leaf}" in found:
                found.setdefault(f"decoder.class_heads.{i}.{leaf}", found[f"decoder.class_heads.0.{leaf}"])
    return found


def to_transformers(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """What transformers writes to disk, from the state dict of a stripped detector. Raises InputError for a part that its
    model does not have."""
    found = {}
    for name, tensor in state.items():
        on_disk = _on_disk(name, config)
        if on_disk is None:
            raise InputError(
                f"transformers' Deformable DETR has no counterpart of {name}; only that model, one-stage or two-stage without "
                "mixed selection, can be saved"
            )
        if match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", on_disk):
            parts = (part.clone() for part in tensor.chunk(3))
            found |= {f"{match[1]}.{part}.{match[2]}": rows for part, rows in zip(PROJECTIONS, parts)}
        else:
            found[on_disk] = tensor
    return found


def _here(name: str, config: RunConfig) -> str | None:
    """The name here of one on disk; '' for a repetition, None for an unknown name."""
    if match := re.fullmatch(r"(class|bbox)_embed\.(\d+)\.(.*)", name):
        kind, number, rest = "class" if match[1] == "class" else "box", int(match[2]), match[3]
        if number and not config.model.box_refine:
            return ""
        if number == config.model.decoder_layers:
            return f"query_selection.{kind}_head.{rest}" if config.two_stage is not None else None
        return f"decoder.{kind}_heads.{number}.{rest}"
    return rename(name, RENAMES)


def _on_disk(name: str, config: RunConfig) -> str | None:
    match = re.fullmatch(r"(?:decoder\.(class|box)_heads\.(\d+)|query_selection\.(class|box)_head)\.(.*)", name)
    if match is None:
        return rename(name, [(here, there) for there, here in RENAMES])
    kind, number = match[1] or match[3], match[2] or str(config.model.decoder_layers)
    known_to_decoder = config.model.box_refine if kind == "box" else config.two_stage is not None
    prefix = "model.decoder." if known_to_decoder else ""
    return f"{prefix}{'bbox' if kind == 'box' else 'class'}_embed.{number}.{match[4]}"


# ---------------------------------------------------------------- configuration

SAME = {  # transformers' field -> here
    "num_queries": "model.num_queries",
    "encoder_layers": "model.encoder_layers",
    "decoder_layers": "model.decoder_layers",
    "d_model": "model.hidden_dim",
    "encoder_attention_heads": "model.num_heads",
    "encoder_ffn_dim": "model.ffn_dim",
    "encoder_n_points": "model.num_points",
    "num_feature_levels": "model.num_levels",
    "with_box_refine": "model.box_refine",
    "dropout": "model.dropout",
    "class_cost": "matching.cost_class",
    "bbox_cost": "matching.cost_l1",
    "giou_cost": "matching.cost_giou",
    "bbox_loss_coefficient": "loss.l1_weight",
    "giou_loss_coefficient": "loss.giou_weight",
    "focal_alpha": "loss.focal_alpha",
}
DEFAULTS: dict[str, Any] = {  # what transformers takes where a folder says nothing
    "num_queries": 300,
    "two_stage_num_proposals": 300,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "d_model": 256,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "encoder_n_points": 4,
    "decoder_n_points": 4,
    "num_feature_levels": 4,
    "with_box_refine": False,
    "two_stage": False,
    "dilation": False,
    "dropout": 0.1,
    "class_cost": 1,
    "bbox_cost": 5,
    "giou_cost": 2,
    "bbox_loss_coefficient": 5,
    "giou_loss_coefficient": 2,
    "focal_alpha": 0.25,
    "position_embedding_type": "sine",
    "activation_function": "relu",
}
WHOLE = ("class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient")
EQUAL = [  # one number here
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("encoder_n_points", "decoder_n_points"),
]


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # by the same names in timm


def config_from_transformers(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that a ``config.json`` stands for. Raises CheckpointError naming a field that cannot be honored."""
    if values.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{CONFIG}: model_type is {values.get('model_type')!r}; only {MODEL_TYPE!r}, transformers' Deformable DETR, can be read"
        )
    given = DEFAULTS | {name: values[name] for name in DEFAULTS if values.get(name) is not None}
    for one, other in EQUAL:
        if given[one] != given[other]:
            raise CheckpointError(
                f"{CONFIG}: {one} = {given[one]!r} and {other} = {given[other]!r}; here they are one number"
            )
    for name in ("position_embedding_type", "activation_function"):
        if given[name] != DEFAULTS[name]:
            raise CheckpointError(f"{CONFIG}: {name} = {given[name]!r}; only {DEFAULTS[name]!r} exists here")
    if given["two_stage"] and not given["with_box_refine"]:
        raise CheckpointError(f"{CONFIG}: two_stage without with_box_refine, which transformers does not have, either")
    changes = {here: given[name] for name, here in SAME.items()}
    changes |= {
        "ms_detr": None,
        "two_stage": True if given["two_stage"] else None,
        "model.pretrained": "none",
        "model.look_forward_twice": False,
        "model.num_classes": len(class_names(values)),
        "model.backbone": _backbone(values),
        "model.dilation": bool(given["dilation"]),
        "loss.class_weight": 1.0,
        "data.raw_category_ids": True,
    }
    if given["two_stage"]:
        changes |= {"two_stage.mixed_selection": False, "model.num_queries": given["two_stage_num_proposals"]}
        changes |= {f"two_stage.{term}_weight": 0.0 for term in ("class", "l1", "giou")}  # it has no loss there
    try:
        return RunConfig().override(changes)
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG}: is no model here: {error}") from error


def config_to_transformers(config: RunConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a ``config.json``. Raises InputError for a model that transformers' Deformable DETR cannot be."""
    model = config.model
    two_stage = config.two_stage is not None
    for refused, why in (
        (model.backbone not in RESNETS, f"the backbone {model.backbone}"),
        (model.backbone_norm != "frozen", f"model.backbone_norm={model.backbone_norm}"),
        (config.ms_detr is not None and config.ms_detr.variant in "bc", "cross-attention before self-attention"),
        ("deta" in config.methods, "DETA's choice of proposals"),
        (
            "mr_detr" in config.methods and config.mr_detr.mix_layers,
            "class scores mixed over layers (mr_detr.mix_layers)",
        ),
        (two_stage and not model.box_refine, "a two-stage model without refinement"),
        (two_stage and config.two_stage.mixed_selection, "two_stage.mixed_selection"),
        (
            two_stage and config.two_stage.rank_by != "first_class",
            f"two_stage.rank_by={config.two_stage and config.two_stage.rank_by}",
        ),
        (model.query_positions != "once" or "dab" in config.methods, "positions made in every layer"),
        (model.output_norm, "model.output_norm"),
        (model.finest_stride != 8, f"model.finest_stride={model.finest_stride}"),
        (model.cross_heads not in (0, model.num_heads), f"model.cross_heads={model.cross_heads}"),
        (model.shared_heads, "model.shared_heads"),
        (model.reference_eps != 1e-5, f"model.reference_eps={model.reference_eps}"),
        ((model.position_temperature, model.position_offset) != (10000.0, -0.5), "its positions of feature maps"),
    ):
        if refused:
            raise InputError(
                f"transformers' Deformable DETR does not have {why}, which this model has; it cannot be saved as one"
            )
    flat: dict[str, Any] = config.to_dict()
    fields = {name: flat[section][field] for name, (section, field) in ((n, p.split(".")) for n, p in SAME.items())}
    fields |= {other: fields[one] for one, other in EQUAL}
    for name in WHOLE:
        if fields[name] != int(fields[name]):
            raise InputError(f"transformers has whole numbers only for {name}; {SAME[name]} is {fields[name]}")
        fields[name] = int(fields[name])
    return (
        fields
        | {
            "architectures": ["DeformableDetrForObjectDetection"],
            "model_type": MODEL_TYPE,
            "two_stage": two_stage,
            "two_stage_num_proposals": model.num_queries,
            "dilation": model.dilation,
            "position_embedding_type": "sine",
            "activation_function": "relu",
            "tie_word_embeddings": True,  # heads that it knows by two names; those that differ in the file stay different
            "use_timm_backbone": True,
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": model.backbone,
                "num_channels": 3,
                "features_only": True,
                "use_pretrained_backbone": False,
                "out_indices": [2, 3, 4][-model.num_levels :],
                **({"output_stride": 16} if model.dilation else {}),
            },
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }
    )


def class_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names of a ``config.json``, index = class; numbered where it has none."""
    names = values.get("id2label")
    if names is None:
        number = values.get("num_labels", 2)
        if type(number) is not int or number < 1:
            raise CheckpointError(f"{CONFIG}: num_labels = {number!r} is no number of classes")
        return tuple(f"class {i}" for i in range(number))
    expected = {str(i) for i in range(len(names))} if isinstance(names, Mapping) else set()
    if not expected or set(names) != expected or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{CONFIG}: id2label must give the names of classes 0, 1, 2, ... by their numbers")
    return tuple(names[str(i)] for i in range(len(names)))


def _backbone(values: Mapping[str, Any]) -> str:
    given = values.get("backbone_config") or {}
    kind = given.get("model_type", "timm_backbone") if isinstance(given, Mapping) else given
    name = given.get("backbone") if isinstance(given, Mapping) else None
    name = name or values.get("backbone") or "resnet50"
    if kind != "timm_backbone" or values.get("use_timm_backbone") is False:
        raise CheckpointError(f"{CONFIG}: its backbone is a {kind!r} of transformers; only timm's ResNets can be read")
    if name not in RESNETS:
        raise CheckpointError(f"{CONFIG}: there is no backbone {name!r} here; there are {', '.join(RESNETS)}")
    return name
