"""What recorded denoising queries are compared with: how objects were noised, where the queries lie, and who sees whom."""

from __future__ import annotations

from collections.abc import Mapping

import golden
import numpy as np
import torch
from comparison import Case
from published import dense_mask
from torch import Tensor

from msdetr.methods.denoising_queries import DenoisingQueries, Draws
from msdetr.model import Proposals
from msdetr.modules import Layout
from msdetr.structures import QueryGroup, Targets

DTYPE = torch.float64


def read_draws(arrays: Mapping[str, np.ndarray], count: int, dtype: torch.dtype = DTYPE) -> Draws:
    """The recorded random numbers of ``count`` noised objects; those that were not drawn decide nothing."""

    def noise(name: str, *shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.from_numpy(arrays.get(f"noise/{name}", np.zeros((count, *shape)))).to(kind)

    return Draws(
        noise("label_uniform"),
        noise("label_new", kind=torch.long),
        noise("box_uniform", 4),
        noise("box_sign", 4) * 2 - 1,
    )


def compare_queries(
    case: Case,
    source: DenoisingQueries,
    group: QueryGroup,
    primary: QueryGroup,
    targets: Targets,
    draws: Draws,
    spec: Mapping,
    arrays: Mapping[str, np.ndarray],
    prefix: str = "",
) -> None:
    """The denoising group, how its objects were noised and where they lie, and who sees whom."""
    want = {key: torch.from_numpy(arrays[prefix + key]) for key in QUERY_ARRAYS if prefix + key in arrays}
    groups, padded = spec.get("groups", spec.get("num_dn_group")), group.contents.shape[1]
    case.equal("pad_size", padded, spec["pad_size"])
    if padded:  # without objects there is nothing to be repeated
        case.equal("groups", group.parts, groups)
        case.equal("divisor", group.divisor, groups)
    slots = source.slots(targets, group.parts)
    case.equal("flat length", len(slots.slot), len(want["noised_labels"]))
    for key, ours in (("flat_slot", slots.slot), ("flat_image", targets.image[slots.object])):
        if key in want:
            case.equal(key, ours.tolist(), want[key].tolist())
    if "flat_is_negative" in want:
        case.equal("flat_is_negative", slots.negative.tolist(), want["flat_is_negative"].tolist())
    labels, boxes = source.noised(targets, slots, draws)
    case.equal("noised_labels", labels.tolist(), want["noised_labels"].tolist())
    case.close("noised_boxes", boxes, want["noised_boxes"], atol=1e-12)
    if "flat_target_boxes" in want:
        own, pairs = source.supervision(targets, slots)
        own = targets if own is None else own
        case.equal("flat_target_labels", own.labels[pairs.target].tolist(), want["flat_target_labels"].tolist())
        case.close("flat_target_boxes", own.boxes[pairs.target], want["flat_target_boxes"], atol=1e-12)

    contents, references = (torch.cat([getattr(g, x) for g in (group, primary)], 1) for x in ("contents", "references"))
    recorded = want["query_box_logit"].shape[1]  # with the matching queries, or without
    case.close("query_box_logit", torch.logit(references[:, :recorded]), want["query_box_logit"], atol=1e-11)
    if "query_label" in want:
        case.close("query_label", contents[:, :recorded], want["query_label"], atol=1e-12)
    blocked = dense_mask(Layout.of([primary, group]))
    case.equal("attention_mask", torch.equal(blocked.roll((padded, padded), (0, 1)), want["attention_mask"]), True)


QUERY_ARRAYS = (
    "query_label",
    "query_box_logit",
    "attention_mask",
    "noised_labels",
    "noised_boxes",
    "flat_image",
    "flat_slot",
    "flat_is_negative",
    "flat_target_labels",
    "flat_target_boxes",
)


def query_case(
    case: Case, source: DenoisingQueries, primary: QueryGroup, arrays: Mapping[str, np.ndarray], spec: Mapping
) -> None:
    """source: with the recorded label embedding.   primary: the matching queries."""
    targets = golden.read_targets(arrays, len(spec["objects"]), DTYPE)
    draws = read_draws(arrays, len(arrays["noised_labels"]))
    proposals = Proposals(None, embed=lambda references: (references, None))
    with torch.no_grad():
        group = source(proposals, targets, {"primary": primary}, draws)
        compare_queries(case, source, group, primary, targets, draws, spec, arrays)
