"""Released checkpoints <-> this package: rename tables, read in both directions. Of MS-DETR, Deformable DETR, H-DETR, DETA,
DN-DETR and DINO, and of Mr.DETR what comes after its neck."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import CheckpointError, InputError
from .convert_lw_detr import from_lw_detr, to_lw_detr
from .rename import advice, rename

# released name -> name here; {i} and {j} stand for a number, {*} for the rest of the name
RENAMES = [
    ("backbone.0.body.{*}", "backbone.body.{*}"),
    ("input_proj.{*}", "projections.{*}"),
    ("transformer.level_embed", "level_embedding"),
    ("transformer.encoder.layers.{i}.self_attn.{*}", "encoder.layers.{i}.attention.inner.{*}"),
    ("transformer.encoder.layers.{i}.norm1.{*}", "encoder.layers.{i}.attention.norm.{*}"),
    ("transformer.encoder.layers.{i}.linear1.{*}", "encoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("transformer.encoder.layers.{i}.linear2.{*}", "encoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("transformer.encoder.layers.{i}.norm2.{*}", "encoder.layers.{i}.ffn.norm.{*}"),
    ("transformer.decoder.layers.{i}.cross_attn.{*}", "decoder.layers.{i}.cross_attention.inner.{*}"),
    ("transformer.decoder.layers.{i}.norm1.{*}", "decoder.layers.{i}.cross_attention.norm.{*}"),
    ("transformer.decoder.layers.{i}.self_attn.{*}", "decoder.layers.{i}.self_attention.inner.attention.{*}"),
    ("transformer.decoder.layers.{i}.norm2.{*}", "decoder.layers.{i}.self_attention.norm.{*}"),
    ("transformer.decoder.layers.{i}.linear1.{*}", "decoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("transformer.decoder.layers.{i}.linear2.{*}", "decoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("transformer.decoder.layers.{i}.norm3.{*}", "decoder.layers.{i}.ffn.norm.{*}"),
    ("transformer.decoder.layers.{i}.linear3.{*}", "decoder.one_to_many.ffns.{i}.inner.linear1.{*}"),
    ("transformer.decoder.layers.{i}.linear4.{*}", "decoder.one_to_many.ffns.{i}.inner.linear2.{*}"),
    ("transformer.decoder.layers.{i}.norm4.{*}", "decoder.one_to_many.ffns.{i}.norm.{*}"),
    ("transformer.enc_output.{*}", "query_selection.memory_projection.{*}"),
    ("transformer.enc_output_norm.{*}", "query_selection.memory_norm.{*}"),
    ("transformer.pos_trans.{*}", "query_selection.position_projection.{*}"),
    ("transformer.pos_trans_norm.{*}", "query_selection.position_norm.{*}"),
    ("transformer.pix_trans.{*}", "query_selection.token_contents.projection.{*}"),
    ("transformer.pix_trans_norm.{*}", "query_selection.token_contents.norm.{*}"),
    ("transformer.reference_points.{*}", "query_selection.reference_points.{*}"),
    ("transformer.decoder.ref_point_head.{*}", "decoder.query_positions.mlp.{*}"),
    ("transformer.decoder.query_scale.{*}", "decoder.query_positions.scale.{*}"),
    ("transformer.decoder.norm.{*}", "decoder.output_norm.{*}"),
    ("class_embed.{i}.{*}", "decoder.class_heads.{i}.{*}"),
    ("bbox_embed.{i}.{*}", "decoder.box_heads.{i}.{*}"),
    ("class_embed_o2m.{i}.{*}", "decoder.one_to_many.class_heads.{i}.{*}"),
]
# what models of one kind call otherwise: one-stage DN-DETR; two-stage DN-DETR and DINO; DINO
OF_DAB = [
    ("tgt_embed.weight", "query_selection.contents.weight"),
    ("refpoint_embed.weight", "query_selection.references.weight"),
]
OF_REFERENCES = [("transformer.tgt_embed.weight", "query_selection.contents.weight")]
OF_DINO = [
    ("transformer.enc_out_class_embed.{*}", "query_selection.class_head.{*}"),
    ("transformer.enc_out_bbox_embed.{*}", "query_selection.box_head.{*}"),
]
# encoders made of detrex's parts
OF_DETREX_ENCODER = [
    ("transformer.encoder.layers.{i}.attentions.0.{*}", "encoder.layers.{i}.attention.inner.{*}"),
    ("transformer.encoder.layers.{i}.norms.0.{*}", "encoder.layers.{i}.attention.norm.{*}"),
    ("transformer.encoder.layers.{i}.ffns.0.layers.0.0.{*}", "encoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("transformer.encoder.layers.{i}.ffns.0.layers.1.{*}", "encoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("transformer.encoder.layers.{i}.norms.1.{*}", "encoder.layers.{i}.ffn.norm.{*}"),
]
# what Mr.DETR's code calls otherwise
OF_MR_DETR = [
    *OF_DETREX_ENCODER,
    ("query_embedding.weight", "query_selection.contents.weight"),
    ("transformer.level_embeds", "level_embedding"),
    ("transformer.decoder.layers.{i}.attentions.0.attn.{*}", "decoder.layers.{i}.self_attention.inner.attention.{*}"),
    ("transformer.decoder.layers.{i}.attentions.0.norm_o2o.{*}", "decoder.layers.{i}.self_attention.norm.{*}"),
    (
        "transformer.decoder.layers.{i}.attentions.0.instruction_o2m.weight",
        "decoder.layers.{i}.self_attention.routes.instruct_route.contents",
    ),
    (
        "transformer.decoder.layers.{i}.attentions.0.instruction_o2m_pos.weight",
        "decoder.layers.{i}.self_attention.routes.instruct_route.positions",
    ),
    (
        "transformer.decoder.layers.{i}.attentions.0.norm_o2m.{*}",
        "decoder.layers.{i}.self_attention.routes.instruct_route.norm.{*}",
    ),
    ("transformer.decoder.layers.{i}.attentions.1.{*}", "decoder.layers.{i}.cross_attention.inner.{*}"),
    ("transformer.decoder.layers.{i}.norms.0.{*}", "decoder.layers.{i}.cross_attention.norm.{*}"),
    ("transformer.decoder.layers.{i}.ffns.0.layers.0.linear.linear.{*}", "decoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("transformer.decoder.layers.{i}.ffns.0.layers.1.linear.{*}", "decoder.layers.{i}.ffn.inner.linear2.{*}"),
    (
        "transformer.decoder.layers.{i}.ffns.0.layers.0.linear.linear_sep.{*}",
        "decoder.layers.{i}.ffn.routes.ffn_route.ffn.linear1.{*}",
    ),
    (
        "transformer.decoder.layers.{i}.ffns.0.layers.1.linear_sep.{*}",
        "decoder.layers.{i}.ffn.routes.ffn_route.ffn.linear2.{*}",
    ),
    ("transformer.decoder.layers.{i}.norms.1.{*}", "decoder.layers.{i}.ffn.norm.{*}"),
    ("transformer.decoder.class_embed_o2m_encoder.{*}", "sources.instruct_route.class_head.{*}"),
    ("transformer.decoder.bbox_embed_enc_o2m.{*}", "sources.instruct_route.box_head.{*}"),
]
# Stable-DINO's encoder
OF_FUSED_ENCODER = [
    *OF_DETREX_ENCODER,
    ("transformer.encoder.fusion_layer.0.{*}", "encoder.fusion.projection.{*}"),
    ("transformer.encoder.fusion_layer.1.{*}", "encoder.fusion.norm.{*}"),
]
# the released models register shared heads under several names; these repeat others
REPEATED = ("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed.", "bbox_embed_o2m.")


LEARNED_QUERIES = "query_embed.weight"
FIRST_CLASS_HEAD = "class_embed.0.weight"
LABELS, LABELS_HERE = "label_enc.weight", "sources.denoising.label_embedding.weight"


def is_two_stage(config: RunConfig) -> bool:
    return "two_stage" in config.methods


def learned_queries(config: RunConfig) -> list[str]:
    """Names of the learned queries here, which the released code has in one tensor: of the primary group, and H-DETR's. None
    where they are called otherwise."""
    if config.model.query_positions != "once" or "mr_detr" in config.methods:
        return []
    kind = "contents" if is_two_stage(config) else "embedding"
    sources = ["query_selection"] + ["sources.hybrid"] * ("hybrid" in config.methods)
    return [f"{source}.{kind}.weight" for source in sources]


def from_released(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The state dict of a detector from a released one. Raises InputError listing names it does not know.

    Learned queries of H-DETR are one tensor there: the first rows are the primary group's, the rest are its second group's.
    Shapes are not compared with the configuration's, and the file may have another number of decoder layers or classes.
    DINO's label embedding has more rows than there are classes, which nothing uses; they are left out.
    """
    if "lw_detr" in config.methods:
        return from_lw_detr(state, config)
    renamed, unknown, proposing = {}, [], _proposing_heads(state)
    for name, tensor in state.items():
        if name.startswith(REPEATED):
            continue
        if name == LEARNED_QUERIES:
            names, size = learned_queries(config), config.model.num_queries
            rows = (tensor[:size], tensor[size:]) if len(names) > 1 else (tensor,)
            renamed |= dict(zip(names, rows))
            continue
        if name == LABELS and "denoising" in config.methods and config.denoising.style == "plain":
            tensor = _of_real_classes(tensor, state)
        new_name = _from_released_name(name, config, proposing)
        if new_name is None:
            unknown.append(name)
        elif new_name:
            renamed[new_name] = tensor
    if unknown:
        raise InputError(
            f"not a released checkpoint of such a model; unknown names: {', '.join(unknown[:10])}{advice(unknown)}"
        )
    return renamed


def to_released(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """A released state dict, repeated names and all, from that of a detector; tensors are shared. Raises InputError for a
    part that the released code does not have, and for variants (b) and (d), which it would run in another order."""
    if (instead := {"b": "a", "d": "c"}.get(variant := config.ms_detr and config.ms_detr.variant)) is not None:
        raise InputError(
            f"the released code does not have variant ({variant}); it would run these weights in the order of ({instead}). "
            "Only its own variants (baseline, a, c) convert"
        )
    if "lw_detr" in config.methods:
        return to_lw_detr(state, config)
    released = {}
    queries = [state[name] for name in learned_queries(config) if name in state]
    if queries:
        released[LEARNED_QUERIES] = torch.cat(queries) if len(queries) > 1 else queries[0]
    for name, tensor in state.items():
        if name == LABELS_HERE and config.denoising.style == "plain":
            tensor = torch.cat([tensor, torch.zeros_like(tensor[:1])])
        if name not in learned_queries(config):
            released[_to_released_name(name, config)] = tensor
    layers, box_refine, two_stage = config.model.decoder_layers, config.model.box_refine, is_two_stage(config)
    heads = {name: t for name, t in released.items() if name.startswith(("class_embed.", "bbox_embed."))}
    if not box_refine or config.model.shared_heads:  # and without refinement a two-stage encoder has the same ones, too
        for name, tensor in list(heads.items()):
            for i in range(1, layers + (two_stage and not box_refine)):
                heads[name.replace(".0.", f".{i}.", 1)] = tensor
        released |= heads
    if not box_refine:
        shared = {n: t for n, t in released.items() if n.startswith("class_embed_o2m.0.")}
        released |= {n.replace(".0.", f".{i}.", 1): t for n, t in shared.items() for i in range(1, layers)}
    # the decoder knows the class heads of a two-stage model, and the box heads of one with refinement
    repeated = ("class_embed.",) * two_stage + ("bbox_embed.",) * box_refine
    released |= {f"transformer.decoder.{name}": tensor for name, tensor in heads.items() if name.startswith(repeated)}
    if any(name.startswith("class_embed_o2m.") for name in released):
        of_layers = {n: t for n, t in heads.items() if n.startswith("bbox_embed.") and int(n.split(".")[1]) < layers}
        released |= {name.replace("bbox_embed.", "bbox_embed_o2m.", 1): t for name, t in of_layers.items()}
    return released


def load_released(path: str | Path, config: RunConfig) -> dict[str, Tensor]:
    """Reads a released .pth file (``read_released``) and converts its weights. Raises CheckpointError for a file that is none,
    InputError for names that it does not know."""
    return from_released(read_released(path), config)


def read_released(path: str | Path) -> Mapping[str, Tensor]:
    """The weights of a released .pth file, as they are called there. Nothing in the file is executed: only tensors and plain
    values are read, so the training arguments, an ``argparse.Namespace``, are allowed by name.

    Raises CheckpointError for a file that is none.
    """
    import argparse

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give a released checkpoint, a .pth file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how an unknown file was pickled
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is not a released checkpoint (.pth): it holds more than tensors and plain values; nothing of it was "
            "executed"
        ) from error
    except Exception as error:  # a file of another kind fails anywhere in torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: is not a released checkpoint (.pth) that can be read: {reason}") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(_is_weight(*item) for item in state.items()):
        raise CheckpointError(
            f"{path}: is not a released checkpoint: it must hold tensors by name, perhaps under 'model'"
        )
    return state


def _is_weight(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.is_floating_point() or value.dtype == torch.int64)
    )


def _of_real_classes(labels: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """A label embedding without rows beyond the classes that the file's own class heads know."""
    head = state.get(FIRST_CLASS_HEAD, labels)
    return labels[: len(head)] if labels.dim() == head.dim() == 2 else labels


def _proposing_heads(state: Mapping[str, Tensor]) -> int | None:
    """The number of the heads that make a two-stage model's proposals: the last one. None where there are no proposals, and
    where these heads have names of their own (DINO)."""
    if "transformer.enc_output.weight" not in state or any(name.startswith("transformer.enc_out_") for name in state):
        return None
    numbers = [int(match[1]) for name in state if (match := re.match(r"(?:class|bbox)_embed\.(\d+)\.", name))]
    return max(numbers, default=None)


def _from_released_name(name: str, config: RunConfig, proposing: int | None) -> str | None:
    """The name here; '' for a repetition, None for an unknown name. proposing: see ``_proposing_heads``."""
    if match := re.fullmatch(r"(class|bbox)_embed(_o2m)?\.(\d+)\.(.*)", name):
        kind, one_to_many, number, rest = match.groups()
        shared = not config.model.box_refine or (config.model.shared_heads and not one_to_many)
        if shared and number != "0":
            return ""
        if not one_to_many and int(number) == proposing:
            return f"query_selection.{'class' if kind == 'class' else 'box'}_head.{rest}"
    return rename(name, _renames(config))


def _to_released_name(name: str, config: RunConfig) -> str:
    if not _is_dino(config) and (match := re.fullmatch(r"query_selection\.(class|box)_head\.(.*)", name)):
        kind = "class_embed" if match[1] == "class" else "bbox_embed"
        return f"{kind}.{config.model.decoder_layers}.{match[2]}"
    renamed = rename(name, [(new, old) for old, new in _renames(config)])
    if renamed is None:
        raise InputError(
            f"the released code has no counterpart of {name}; only its own variants (baseline, a, c) convert"
        )
    return renamed


def _is_dino(config: RunConfig) -> bool:
    return is_two_stage(config) and config.model.query_positions == "references"


def _renames(config: RunConfig) -> list[tuple[str, str]]:
    special = OF_DAB if "dab" in config.methods else OF_REFERENCES * (config.model.query_positions != "once")
    if "mr_detr" in config.methods:
        special = [*OF_MR_DETR, *special]
    elif "stable" in config.methods and config.stable.memory_fusion:
        special = [*OF_FUSED_ENCODER, *special]
    return [*special, *(OF_DINO * _is_dino(config)), (LABELS, LABELS_HERE), *RENAMES]
