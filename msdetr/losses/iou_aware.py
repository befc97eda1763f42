"""Class losses whose targets say how well the matched box fits, in place of 1: in the style of the other terms, they sum
over all queries and return [K].

u is the IoU of a pair's predicted box with its object, p the predicted probability of the object's class. No gradient
reaches the boxes through any of them. A query that serves two objects has the class of its later pair, as in
``focal_loss``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import boxes as box_ops
from ..structures import Matches, Predictions, Targets
from .terms import focusing, gives_class, matched_corners, matched_distance, matched_logits, per_layer

Transform = Literal["none", "exp", "sin"]
_EPS = 1e-8


def position_supervised_loss(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    alpha: float = 0.25,
    gamma: float = 2.0,
    iou_power: float = 2.0,
    probability_power: float = 0.0,
    transform: Transform = "none",
) -> Tensor:
    """Stable-DINO's position-supervised loss (Liu et al., "Detection Transformer with Stable Matching", ICCV 2023).

    A positive's target is q = p^probability_power u^iou_power, perhaps transformed ("exp": (e^q - 1) / (e - 1), "sin":
    sin(q pi / 2)), then rescaled so that the best pair of every image and layer has target 1. Sum of alpha |q - p|^gamma
    BCE(p, q) over positives and (1 - alpha) p^gamma BCE(p, 0) over all others.

    Released: 1 - p is kept above 0 by 1e-8, and IoU has 1e-6 added to its union.  Here: as released. Released: log p is
    infinite where p underflows.  Here: computed from the logit, finite.
    """
    q = pair_iou(predictions, targets, matches, eps=1e-6) ** iou_power
    if probability_power:
        q = q * matched_logits(predictions, targets, matches).detach().sigmoid() ** probability_power
    if transform == "exp":
        q = q.expm1() / (math.e - 1)
    elif transform == "sin":
        q = (q * math.pi / 2).sin()
    q = rescaled_per_image(q * gives_class(matches, predictions.logits.shape), predictions, matches)

    def positives(logits: Tensor) -> Tensor:
        p = logits.sigmoid()
        cross_entropy = q * F.softplus(-logits) - (1 - q) * (1 - p + _EPS).log()
        return alpha * focusing((q - p).abs(), gamma) * cross_entropy

    def negatives(logits: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(1 - alpha) * focusing(p, gamma) * (1 - p + _EPS).log()

    return _class_loss(predictions, targets, matches, positives, negatives)


def varifocal_loss(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al., "VarifocalNet", CVPR 2021, Eq. 2, as used by RT-DETR): u BCE(p, u) over positives,
    alpha p^gamma BCE(p, 0) over all others, with the weights u and p^gamma taken as constants."""
    u = pair_iou(predictions, targets, matches)

    def positives(logits: Tensor) -> Tensor:
        return u * (F.softplus(logits) - u * logits)

    def negatives(logits: Tensor) -> Tensor:
        return alpha * logits.detach().sigmoid() ** gamma * F.softplus(logits)

    return _class_loss(predictions, targets, matches, positives, negatives)


def aligned_loss(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    alpha: float = 0.25,
    gamma: float = 2.0,
    tau: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Align-DETR's IoU-aware class loss (Cai et al., "Align-DETR: Enhancing End-to-end Object Detection with Aligned Loss",
    2023): BCE(p, t) over positives, p^gamma BCE(p, 0) over all others.

    t is the quality of a pair times its weight among those of its object, see ``pair_quality`` and ``rank_weights``. eps:
    0 is as in LW-DETR, whose class loss this is without ranks.
    """
    t = pair_quality(predictions, targets, matches, alpha, eps)
    t = t * rank_weights(t, targets, matches, tau)

    def positives(logits: Tensor) -> Tensor:
        return F.softplus(logits) - t * logits

    def negatives(logits: Tensor) -> Tensor:
        return focusing(logits.sigmoid(), gamma) * F.softplus(logits)

    return _class_loss(predictions, targets, matches, positives, negatives)


def ranked_l1_loss(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float = 0.25, tau: float | None = None
) -> Tensor:
    """``l1_loss`` with each pair weighed by its rank among those of its object (Align-DETR)."""
    weight = rank_weights(pair_quality(predictions, targets, matches, alpha), targets, matches, tau)
    return per_layer(weight * matched_distance(predictions, targets, matches), predictions, matches)


def ranked_giou_loss(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    alpha: float = 0.25,
    tau: float | None = None,
    eps: float = 0.0,
) -> Tensor:
    """``giou_loss`` with each pair weighed by its rank among those of its object (Align-DETR). eps: see ``boxes.giou``."""
    weight = rank_weights(pair_quality(predictions, targets, matches, alpha), targets, matches, tau)
    fit = box_ops.giou(*matched_corners(predictions, targets, matches), eps)
    return per_layer(weight * (1 - fit), predictions, matches)


# ---------------------------------------------------------------- of pairs, all [M] and without gradient


def pair_iou(predictions: Predictions, targets: Targets, matches: Matches, eps: float = 0.0) -> Tensor:
    """IoU of each pair, with ``eps`` added to the union."""
    return box_ops.iou(*matched_corners(predictions, targets, matches), eps).detach()


def pair_quality(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float, eps: float = 1e-6
) -> Tensor:
    """p^alpha u^(1 - alpha), at least 0.01 (Align-DETR). As released, 1e-6 is added to the union of u."""
    p = matched_logits(predictions, targets, matches).detach().sigmoid()
    return (p**alpha * pair_iou(predictions, targets, matches, eps) ** (1 - alpha)).clamp(min=0.01)


def rank_weights(quality: Tensor, targets: Targets, matches: Matches, tau: float | None) -> Tensor:
    """exp(-rank / tau), where of an object's pairs in a layer the best has rank 0 (ties: the earlier pair first); 1 where
    tau is None."""
    if tau is None:
        return torch.ones_like(quality)
    order = quality.argsort(descending=True, stable=True)
    of_object = matches.layer * max(len(targets), 1) + matches.target
    order = order[of_object[order].argsort(stable=True)]
    grouped, number = of_object[order], torch.arange(len(order), device=order.device)
    starts = torch.ones_like(grouped, dtype=torch.bool)
    starts[1:] = grouped[1:] != grouped[:-1]
    rank = number - (number * starts).cummax(0).values if len(order) else number
    return (-torch.empty_like(rank).scatter(0, order, rank).to(quality.dtype) / tau).exp()


def rescaled_per_image(values: Tensor, predictions: Predictions, matches: Matches) -> Tensor:
    """Values in [0, 1] of pairs, so scaled that the largest of every image and layer is 1."""
    depth, num_images = predictions.logits.shape[:2]
    where = matches.layer * num_images + matches.image
    largest = values.new_zeros(depth * num_images).scatter_reduce(0, where, values, "amax")
    return values * (1 / (largest + _EPS)).clamp(min=1)[where]


def _class_loss(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    positives: Callable[[Tensor], Tensor],
    negatives: Callable[[Tensor], Tensor],
) -> Tensor:
    """[K]: ``negatives`` of all logits, but ``positives`` of those that a pair gives its class. Computed as if everything
    were negative, then corrected."""
    counts = gives_class(matches, predictions.logits.shape)
    logits = matched_logits(predictions, targets, matches)
    everything = negatives(predictions.logits).sum((1, 2, 3))
    return everything.index_add(0, matches.layer, (positives(logits) - negatives(logits)) * counts)
