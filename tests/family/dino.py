"""DINO (IDEA-Research/DINO): whole models with contrastive denoising, mixed selection and look forward twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import golden
import torch
from comparison import Case
from denoised import (
    FIXED,
    HONORED,
    WITHOUT_EFFECT,
    Flags,
    System,
    logged,
    model_cases,
    overridden,
    shared_changes,
)
from denoised_queries import DTYPE, query_case
from golden import CannotHonor

from msdetr.config import RunConfig
from msdetr.losses import Supervised
from msdetr.methods import DenoisingConfig
from msdetr.methods.denoising_queries import DenoisingQueries
from msdetr.structures import Matches, QueryGroup

FLAGS = Flags(
    honored=HONORED
    | frozenset(
        [
            "num_classes",
            "pe_temperatureH",
            "pe_temperatureW",
            "num_select",
            "interm_loss_coef",
            "dec_pred_bbox_embed_share",
            "dec_pred_class_embed_share",
            "dn_number",
            "dn_box_noise_scale",
            "dn_label_noise_ratio",
            "embed_init_tgt",
            "dn_labelbook_size",
            "use_detached_boxes_dec_out",
        ]
    ),
    fixed=FIXED
    | {
        "unic_layers": (0,),
        "pre_norm": (False,),
        "query_dim": (4,),
        "fix_refpoints_hw": (-1,),
        "use_deformable_box_attn": (False,),
        "dec_layer_number": (None,),
        "decoder_layer_noise": (False,),
        "add_channel_attention": (False,),
        "add_pos_value": (False,),
        "two_stage_type": ("standard",),
        "two_stage_pat_embed": (0,),
        "two_stage_add_query_num": (0,),
        "two_stage_bbox_embed_share": (False,),
        "two_stage_class_embed_share": (False,),
        "two_stage_learn_wh": (False,),
        "two_stage_default_hw": (0.05,),
        "two_stage_keep_all_tokens": (False,),
        "transformer_activation": ("relu",),
        "no_interm_box_loss": (False,),
        "decoder_sa_type": ("sa",),
        "matcher_type": ("HungarianMatcher",),
        "decoder_module_seq": (["sa", "ca", "ffn"],),
        "nms_iou_threshold": (-1,),
    },
    without_effect=WITHOUT_EFFECT
    | frozenset(
        [
            "mask_loss_coef",
            "dice_loss_coef",
            "enc_loss_coef",
            "box_attn_type",
            "dln_xy_noise",
            "dln_hw_noise",
            "match_unstable_error",
        ]
    ),
)


def groups_of(dn_number: int) -> dict:
    """The published number of groups: from 50 on as many as fit, below that twice the number, and at least 1."""
    return {"queries": dn_number} if dn_number >= 50 else {"groups": max(2 * dn_number, 1)}


def run_config(variant: Mapping, spec: Mapping) -> RunConfig:
    given = FLAGS.read(variant, spec) | {"two_stage": True}
    if given["pe_temperatureH"] != given["pe_temperatureW"]:
        raise CannotHonor(
            f"the case carries pe_temperatureH = {given['pe_temperatureH']}, another than pe_temperatureW"
        )
    if given["dec_pred_bbox_embed_share"] != given["dec_pred_class_embed_share"]:
        raise CannotHonor("the case carries dec_pred_bbox_embed_share, another than dec_pred_class_embed_share")
    if given["dn_labelbook_size"] < given["num_classes"]:
        raise CannotHonor(f"the case carries dn_labelbook_size = {given['dn_labelbook_size']}, fewer than the classes")
    encoder = given["interm_loss_coef"]
    changes = shared_changes(given, given["num_classes"])
    changes |= {path: encoder * weight for path, weight in changes.items() if path.startswith("two_stage.")}
    changes |= {f"denoising.{name}": value for name, value in groups_of(given["dn_number"]).items()}
    return overridden(
        changes
        | {
            "loss.giou_eps": 1e-6,
            "model.query_positions": "references",
            "model.output_norm": True,
            "model.position_temperature": given["pe_temperatureH"],
            "model.position_offset": 0.0,
            "model.shared_heads": given["dec_pred_class_embed_share"],
            "model.look_forward_twice": not given["use_detached_boxes_dec_out"],
            "two_stage.mixed_selection": given["embed_init_tgt"],
            "two_stage.rank_by": "best_class",
            "two_stage.supervise": "queries",
            "two_stage.match_on": "boxes",
            "denoising.contrastive": True,
            "denoising.label_noise": given["dn_label_noise_ratio"] / 2,
            "denoising.box_noise": given["dn_box_noise_scale"],
        }
    )


def entry(branch: str, term: str, suffix: str) -> str:
    return term + {"one_to_one": suffix, "denoising": f"_dn{suffix}", "encoder": "_interm"}[branch]


def others(branch: str, given: Supervised, matches: Matches, layer: int, divisor: float) -> Mapping[str, float]:
    """Errors, and the parts of the L1 loss, which carry no weight."""
    pairs = matches.select(matches.layer == layer)
    boxes = given.predictions.boxes[layer, pairs.image, pairs.query]
    distance = (boxes - given.targets.boxes[pairs.target]).abs() / divisor
    parts = {"loss_xy": distance[:, :2].sum().item(), "loss_hw": distance[:, 2:].sum().item()}
    errors = logged(given.predictions, matches, given.targets, layer)
    if not given.predictions.logits.shape[2]:
        errors["cardinality_error"] = 0.0  # constants where there are no denoising queries
    return errors | parts


SYSTEM = System(run_config, lambda variant, spec: FLAGS.read(variant, spec)["num_select"], entry, "interm", others)


def cdn_case(folder: Path, name: str, spec: Mapping, case: Case) -> None:
    arrays = golden.read_arrays(folder / f"cdn_{name}.npz")
    config = DenoisingConfig(
        **groups_of(spec["dn_number"]),
        contrastive=True,
        label_noise=spec["label_noise_ratio"] / 2,
        box_noise=spec["box_noise_scale"],
    )
    label_enc = torch.from_numpy(arrays["label_enc"]).to(DTYPE)
    source = DenoisingQueries(label_enc.shape[1], spec["num_classes"], config).to(DTYPE)
    source.load_state_dict({"label_embedding.weight": label_enc[: spec["num_classes"]]})
    empty = torch.zeros(len(spec["objects"]), spec["num_queries"], 4, dtype=DTYPE)
    contents = empty.new_zeros(*empty.shape[:2], label_enc.shape[1])
    query_case(case, source, QueryGroup("primary", contents, contents, empty), arrays, spec)


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    yield from model_cases(SYSTEM, folder, manifest)
    for name, spec in manifest["cdn_cases"].items():
        yield f"cdn {name}", partial(cdn_case, folder, name, spec)
