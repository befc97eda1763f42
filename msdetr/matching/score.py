"""How well a query suits an object: class probability, IoU, the one-to-many score and the terms of the Hungarian cost.

Everything here is computed for the pairs that matter only: a query and an object of the same image. Targets are flat
over the batch, so a table of pairs is [K, T, Q]: row t holds all queries of the image that object t lies in. Its size
grows with the objects of the batch, not with the batch squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import boxes as box_ops
from ..structures import Predictions, Targets


def class_table(values: Tensor, targets: Targets) -> Tensor:
    """[K, B, Q, C] -> [K, T, Q]: for each object what the queries of its image say of its class. Functions of the logits
    are computed before they are looked up here: objects of one class then get the same number to the last bit, and ties
    between them are ties."""
    return values[:, targets.image, :, targets.labels].transpose(0, 1)


def box_table(boxes: Tensor, targets: Targets) -> Tensor:
    """[K, B, Q, 4] -> [K, T, Q, 4]: for each object the boxes of its image. Each coordinate is contiguous in memory, which
    makes the arithmetic on the pairs several times as fast."""
    coordinates = boxes.movedim(-1, 0).contiguous()
    if targets.num_images == 1:
        return coordinates.expand(-1, -1, len(targets), -1).movedim(0, -1)
    return coordinates[:, :, targets.image].movedim(0, -1)


def class_probability(predictions: Predictions, targets: Targets) -> Tensor:
    """[K, T, Q]: s_i[c_j], the sigmoid probability of the object's class."""
    return class_table(predictions.logits.sigmoid(), targets)


def pair_iou(predictions: Predictions, targets: Targets, eps: float = 0.0) -> Tensor:
    """[K, T, Q]: IoU(b_i, b_j) of each query's box with the object's. eps: see ``boxes.iou``."""
    return box_ops.iou(*_pair_corners(predictions, targets), eps)


def _pair_corners(predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor]:
    """xyxy boxes of the queries [K, T, Q, 4] and of the objects [T, 1, 4]."""
    predicted = box_table(box_ops.predicted_corners(predictions.boxes), targets)
    return predicted, box_ops.cxcywh_to_xyxy(targets.boxes.to(predicted.dtype))[:, None]


def score(predictions: Predictions, targets: Targets, alpha: float, eps: float = 0.0) -> Tensor:
    """[K, T, Q]: alpha * s_i[c_j] + (1 - alpha) * IoU(b_i, b_j), Section C of the paper. eps: see ``boxes.iou``."""
    return alpha * class_probability(predictions, targets) + (1 - alpha) * pair_iou(predictions, targets, eps)


@dataclass(frozen=True)
class CostTerms:
    """The unweighted terms of the Hungarian cost, each [K, T, Q]; lower is better."""

    classification: Tensor
    l1: Tensor
    giou: Tensor


def cost_terms(predictions: Predictions, targets: Targets, alpha: float = 0.25, gamma: float = 2.0) -> CostTerms:
    """Focal class cost (the focal loss of a positive minus that of a negative), L1 distance of the cxcywh boxes and
    negative generalised IoU (Deformable DETR, Section A.3)."""
    return CostTerms(
        focal_cost(predictions, targets, alpha, gamma), l1_cost(predictions, targets), giou_cost(predictions, targets)
    )


def focal_cost(predictions: Predictions, targets: Targets, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """[K, T, Q]: focal loss of a positive minus that of a negative."""
    return class_table(focal_cost_of(predictions.logits.sigmoid(), alpha, gamma), targets)


def focal_cost_of(p: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of a positive minus that of a negative, elementwise in probabilities."""
    eps = 1e-8
    positive = -alpha * (1 - p) ** gamma * (p + eps).log()
    negative = -(1 - alpha) * p**gamma * (1 - p + eps).log()
    return positive - negative


def l1_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """[K, T, Q]: sum of the distances of cx, cy, w and h."""
    true = targets.boxes[:, None].to(predictions.boxes.dtype)
    distances = (box_table(predictions.boxes, targets) - true).abs().unbind(-1)
    return sum(distances[1:], distances[0])


def giou_cost(predictions: Predictions, targets: Targets, eps: float = 0.0) -> Tensor:
    """[K, T, Q]: negative generalised IoU. eps: see ``boxes.giou``."""
    return -box_ops.giou(*_pair_corners(predictions, targets), eps)


def largest(table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of the last dimension (all, where there are fewer), descending, and their indices; among equal
    values the lower index comes first, on every device."""
    k = min(k, table.shape[-1])
    value, index = table.topk(k)  # right, but for which of several values equal to the last of them it took
    number = torch.arange(table.shape[-1], dtype=torch.int32, device=table.device)
    last = value[..., -1:]
    lowest = number.masked_fill(table != last, table.shape[-1]).topk(k, largest=False).indices
    above = (value > last).sum(-1, keepdim=True)
    rank = torch.arange(k, device=table.device).expand_as(index)
    index = index.where(rank < above, lowest.gather(-1, (rank - above).clamp(min=0)))
    order = index.argsort(dim=-1)
    order = order.gather(-1, value.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return value.gather(-1, order), index.gather(-1, order)


def places(table: Tensor, competes: Tensor | None = None) -> Tensor:
    """[K, T, Q]: 1 + the number of *other* competing queries that come before a query in the order of ``largest``.
    competes: bool, [K, T, Q]; None: all of them."""
    order = largest(table, table.shape[-1])[1]
    ranked = torch.ones_like(order) if competes is None else competes.gather(-1, order).long()
    return torch.empty_like(order).scatter_(-1, order, 1 + ranked.cumsum(-1) - ranked)
