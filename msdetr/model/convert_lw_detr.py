"""Published LW-DETR and RF-DETR weights of everything after the neck <-> this package."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import InputError
from .rename import advice, rename

# published name -> name here; {i} stands for a number, {*} for the rest of the name
_SAME = [
    ("transformer.decoder.layers.{i}.self_attn.{*}", "decoder.layers.{i}.self_attention.inner.attention.{*}"),
    ("transformer.decoder.layers.{i}.norm1.{*}", "decoder.layers.{i}.self_attention.norm.{*}"),
    ("transformer.decoder.layers.{i}.cross_attn.{*}", "decoder.layers.{i}.cross_attention.inner.{*}"),
    ("transformer.decoder.layers.{i}.norm2.{*}", "decoder.layers.{i}.cross_attention.norm.{*}"),
    ("transformer.decoder.layers.{i}.linear1.{*}", "decoder.layers.{i}.ffn.inner.linear1.{*}"),
    ("transformer.decoder.layers.{i}.linear2.{*}", "decoder.layers.{i}.ffn.inner.linear2.{*}"),
    ("transformer.decoder.layers.{i}.norm3.{*}", "decoder.layers.{i}.ffn.norm.{*}"),
    ("transformer.decoder.norm.{*}", "decoder.output_norm.{*}"),
    ("transformer.decoder.ref_point_head.{*}", "decoder.query_positions.mlp.{*}"),
    ("class_embed.{*}", "decoder.class_heads.0.{*}"),
    ("bbox_embed.{*}", "decoder.box_heads.0.{*}"),
]
_OF_GROUPS = {
    "enc_output": "projection",
    "enc_output_norm": "norm",
    "enc_out_class_embed": "class_head",
    "enc_out_bbox_embed": "box_head",
}
_ROWS = {"query_feat.weight": "contents.weight", "refpoint_embed.weight": "offsets.weight"}
_REPEATED = "transformer.decoder.bbox_embed."  # the heads once more, with refinement
PRIMARY, FURTHER = "query_selection", "sources.lw_detr"


def from_lw_detr(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The state dict of a detector. Raises InputError listing names it does not know.

    Learned rows of all groups are one tensor there, those of the primary group first.
    """
    found, unknown = {}, []
    for name, tensor in state.items():
        if name in _ROWS:
            size = config.model.num_queries
            found[f"{PRIMARY}.{_ROWS[name]}"] = tensor[:size]
            if len(tensor) > size:
                found[f"{FURTHER}.{_ROWS[name]}"] = tensor[size:]
        elif not name.startswith(_REPEATED):
            new_name = _of_group(name) or rename(name, _SAME)
            if new_name is None:
                unknown.append(name)
            else:
                found[new_name] = tensor
    if unknown:
        raise InputError(
            f"not a checkpoint of LW-DETR after its neck; unknown names: {', '.join(unknown[:10])}{advice(unknown)}"
        )
    return found


def to_lw_detr(state: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The way back. Raises InputError for a name that has no counterpart, those of backbone and projections among them."""
    back = [(new, old) for old, new in _SAME]
    found = {}
    for name, tensor in state.items():
        if name.startswith((f"{PRIMARY}.proposer.", f"{PRIMARY}.further_proposers.")):
            found[_as_published(name)] = tensor
        elif not name.startswith((f"{PRIMARY}.", f"{FURTHER}.")):
            new_name = rename(name, back)
            if new_name is None:
                raise InputError(f"LW-DETR has no counterpart of {name}")
            found[new_name] = tensor
    for published, rows in _ROWS.items():
        parts = [state[f"{owner}.{rows}"] for owner in (PRIMARY, FURTHER) if f"{owner}.{rows}" in state]
        found[published] = torch.cat(parts) if len(parts) > 1 else parts[0]
    if config.model.box_refine:
        heads = {name: tensor for name, tensor in found.items() if name.startswith("bbox_embed.")}
        found |= {f"transformer.decoder.{name}": tensor for name, tensor in heads.items()}
    return found


def _of_group(name: str) -> str | None:
    match = re.fullmatch(r"transformer\.(enc_\w+)\.(\d+)\.(.+)", name)
    if not match or match[1] not in _OF_GROUPS:
        return None
    group = int(match[2])
    owner = "proposer" if group == 0 else f"further_proposers.{group - 1}"
    return f"{PRIMARY}.{owner}.{_OF_GROUPS[match[1]]}.{match[3]}"


def _as_published(name: str) -> str:
    match = re.fullmatch(rf"{PRIMARY}\.(?:proposer|further_proposers\.(\d+))\.(\w+?)\.(.+)", name)
    group = 0 if match[1] is None else int(match[1]) + 1
    module = {new: old for old, new in _OF_GROUPS.items()}[match[2]]
    return f"transformer.{module}.{group}.{match[3]}"
