"""Class losses whose target is how well the matched box fits, in LW-DETR's wording (its default is ``aligned_loss``).

Every function is a term: summed over all queries and classes of each layer, [K], not yet divided by the number of objects.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .iou_aware import pair_iou
from .terms import focusing


def weighted_varifocal_loss(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al., "VarifocalNet", CVPR 2021, Eq. 2) -> [K]: the target is the IoU, which weighs its own
    cross-entropy; everything else, and a match without overlap, is a negative weighed by (1 - alpha) p^gamma.

    Paper: 0.75 p^2, written alpha p^gamma.   Released (LW-DETR): (1 - alpha) with alpha = 0.25, and with gradient through
    the weight.   Here: as released.
    """
    target = _at_pairs(predictions, targets, matches, pair_iou(predictions, targets, matches)).nan_to_num()
    p = predictions.logits.sigmoid()
    weight = torch.where(target > 0, target, (1 - alpha) * focusing((p - target).abs(), gamma))
    return (weight * _cross_entropy(predictions.logits, target)).sum((1, 2, 3))


def fit_supervised_loss(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss towards the IoU instead of 1 (Liu et al., "Stable-DINO", ICCV 2023, Eq. 3) -> [K].

    Targets are divided by the largest of their image, so that it is 1.
    Released (LW-DETR): the largest of all groups.   Here: of the queries given, those of the primary group or of the others.
    Released (Stable-DINO): squared first, see ``position_supervised_loss``.
    """
    target = _at_pairs(predictions, targets, matches, pair_iou(predictions, targets, matches)).nan_to_num()
    target = target / (target.amax((2, 3), keepdim=True) + 1e-8)
    p = predictions.logits.sigmoid()
    weight = torch.where(target > 0, alpha, 1 - alpha) * focusing((target - p).abs(), gamma)
    return (weight * _cross_entropy(predictions.logits, target)).sum((1, 2, 3))


def _at_pairs(predictions: Predictions, targets: Targets, matches: Matches, values: Tensor) -> Tensor:
    """[K, B, Q, C]: a value [M] at each pair's query and class, NaN elsewhere."""
    table = torch.full_like(predictions.logits.detach(), torch.nan)
    place = matches.layer, matches.image, matches.query, targets.labels[matches.target]
    return table.index_put(place, values.to(table.dtype))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
