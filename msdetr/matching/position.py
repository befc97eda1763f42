"""Hungarian costs in which the class probability counts as much as the box fits (Stable-DINO; Liu et al., "Detection
Transformer with Stable Matching", ICCV 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import boxes as box_ops
from ..structures import Predictions, Targets
from .hungarian import HungarianMatcher
from .score import box_table, class_table, focal_cost_of, giou_cost


def modulated_focal_cost(
    predictions: Predictions,
    targets: Targets,
    power: float = 0.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    giou_eps: float = 0.0,
) -> Tensor:
    """[K, T, Q]: ``focal_cost`` of p u^power in place of p, where u = (GIoU + 1) / 2, rescaled so that the best pair of
    every image has 1: the position-modulated cost."""
    u = (1 - giou_cost(predictions, targets, giou_eps)) / 2
    u = u * _to_one(_largest_per_image(u, targets))[:, targets.image, None]
    return focal_cost_of(class_table(predictions.logits.sigmoid(), targets) * u**power, alpha, gamma)


def _largest_per_image(table: Tensor, targets: Tensor) -> Tensor:
    """[K, T, Q] -> [K, B], 0 for an image without objects."""
    rows = table.amax(-1) if table.shape[-1] else table.new_zeros(table.shape[:2])
    image = targets.image.expand_as(rows)
    return rows.new_zeros(len(rows), targets.num_images).scatter_reduce(1, image, rows, "amax")


def _to_one(largest: Tensor) -> Tensor:
    return (1 / (largest + 1e-8)).clamp(min=1)


@dataclass(frozen=True)
class ReleasedModulatedMatcher(HungarianMatcher):
    """What the released code of Stable-DINO does, kept to reproduce its training. Not the default.

    It writes the modulation u of each object, over the whole batch, into a table of queries and classes. So where objects
    share a class the last one wins, also one of another image: the class cost of all of them has the u of that one, and
    an image's values are rescaled by the largest of all its queries with all classes of the batch.

    power: of u.   giou_eps: added to areas that GIoU divides by.   Costs called "class" are modulated, others are as given.
    """

    power: float = 0.5
    alpha: float = 0.25
    gamma: float = 2.0
    giou_eps: float = 1e-6
    image_by_image = False  # an image's costs depend on the objects of others

    def terms(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        costs = super().terms(predictions, targets)
        if "class" in costs and len(targets):
            costs["class"] = self.costs["class"][0] * self._class_cost(predictions, targets)
        return costs

    def _class_cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        number = torch.arange(len(targets), device=targets.labels.device)
        last = torch.zeros(predictions.logits.shape[-1], dtype=torch.long, device=number.device)
        last = last.scatter_reduce(0, targets.labels, number, "amax", include_self=False)[targets.labels]
        true = box_ops.cxcywh_to_xyxy(targets.boxes.to(predictions.boxes.dtype))
        corners = box_ops.predicted_corners(predictions.boxes)
        u = (box_ops.giou(box_table(corners, targets), true[last][:, None], self.giou_eps) + 1) / 2  # [K, T, Q]
        all_classes = (box_ops.giou(corners[..., None, :], true[last], self.giou_eps) + 1) / 2  # [K, B, Q, T]
        u = u * _to_one(all_classes.amax((2, 3)))[:, targets.image, None]
        p = class_table(predictions.logits.sigmoid(), targets)
        return focal_cost_of(p * u**self.power, self.alpha, self.gamma)
