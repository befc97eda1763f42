"""The three terms of a detection loss, summed over matched pairs (and, for the class term, over all queries) of each
layer: every function returns [K], not yet divided by the number of objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import boxes as box_ops
from ..structures import Matches, Predictions, Targets


def focal_loss(
    predictions: Predictions, targets: Targets, matches: Matches, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017) of all K x B x Q x C logits -> [K].

    A matched query is a positive of its object's class and a negative of every other; an unmatched one a negative of
    all. Computed as if everything were negative, then corrected at the positives, which are few.
    """
    counts = gives_class(matches, predictions.logits.shape)
    positives = matched_logits(predictions, targets, matches)
    correction = focal_of_positives(positives, alpha, gamma) - focal_of_negatives(positives, alpha, gamma)
    everything = _AllNegatives.apply(predictions.logits, alpha, gamma)
    return everything.index_add(0, matches.layer, correction * counts)


def focal_of_positives(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """-alpha (1 - p)^gamma log p, elementwise."""
    return alpha * focusing(1 - logits.sigmoid(), gamma) * F.softplus(-logits)


def focal_of_negatives(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """-(1 - alpha) p^gamma log(1 - p), elementwise."""
    return (1 - alpha) * focusing(logits.sigmoid(), gamma) * F.softplus(logits)


def focusing(error: Tensor, gamma: float) -> Tensor:
    """error^gamma, elementwise, for errors in [0, 1]. For gamma between 0 and 1 the slope at 0 is infinite: here it is 0, so
    that a saturated probability has a gradient."""
    if not 0 < gamma < 1:
        return error**gamma
    return (error.clamp(min=torch.finfo(error.dtype).tiny) ** gamma).masked_fill(error == 0, 0)


_CACHED = 2**15  # numbers of a part whose intermediate results stay in the caches


class _AllNegatives(torch.autograd.Function):
    """``focal_of_negatives`` of logits [K, B, Q, C], summed per layer -> [K].

    No other term touches every logit, and its cost is memory traffic. So its derivative is computed along with its
    value, nothing else is kept, and on the CPU it goes by a few images: what is in between stays in the caches.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, alpha: float, gamma: float) -> Tensor:
        rows = logits.flatten(0, 1)
        derivative = torch.empty_like(rows)
        size = max(1, _CACHED // max(1, rows.shape[1:].numel())) if rows.device.type == "cpu" else len(rows)
        sums = []
        for x, slope in zip(rows.split(size), derivative.split(size)):
            p, minus_log = x.sigmoid(), F.softplus(x)  # softplus(x) = -log(1 - p)
            weight = (1 - alpha) * p**gamma
            sums.append((weight * minus_log).sum((1, 2)))
            torch.mul(weight, gamma * (1 - p) * minus_log + p, out=slope)
        ctx.save_for_backward(derivative.view_as(logits))
        return torch.cat(sums).view(logits.shape[:2]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return upstream[:, None, None, None] * derivative, None, None


def l1_loss(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """Sum of |cx|, |cy|, |w|, |h| differences over the matched pairs -> [K]."""
    return per_layer(matched_distance(predictions, targets, matches), predictions, matches)


def giou_loss(predictions: Predictions, targets: Targets, matches: Matches, eps: float = 0.0) -> Tensor:
    """Sum of 1 - generalised IoU over the matched pairs -> [K]. eps: see ``boxes.giou``."""
    fit = box_ops.giou(*matched_corners(predictions, targets, matches), eps)
    return per_layer(1 - fit, predictions, matches)


def matched_logits(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """[M]: what each pair's query says of the class of its object."""
    return predictions.logits[matches.layer, matches.image, matches.query, targets.labels[matches.target]]


def matched_boxes(predictions: Predictions, matches: Matches) -> Tensor:
    """[M, 4]: the predicted box of each pair."""
    return predictions.boxes[matches.layer, matches.image, matches.query]


def matched_distance(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """[M]: sum of |cx|, |cy|, |w|, |h| differences of each pair."""
    return (matched_boxes(predictions, matches) - targets.boxes[matches.target]).abs().sum(-1)


def matched_corners(predictions: Predictions, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor]:
    """xyxy boxes of each pair, both [M, 4]: predicted and true."""
    predicted = box_ops.predicted_corners(matched_boxes(predictions, matches))
    return predicted, box_ops.cxcywh_to_xyxy(targets.boxes[matches.target])


def gives_class(matches: Matches, shape: torch.Size) -> Tensor:
    """[M] bool: whether a pair gives its query its class: of a query's pairs the last. A mask, not a selection, whose
    size the host would have to wait for; deterministic on every device."""
    _, num_images, num_queries = shape[:3]
    slot = (matches.layer * num_images + matches.image) * num_queries + matches.query
    number = torch.arange(len(slot), device=slot.device)
    last = torch.full((shape[0] * num_images * num_queries,), -1, device=slot.device).scatter_reduce(
        0, slot, number, "amax"
    )
    return last[slot] == number


def per_layer(values: Tensor, predictions: Predictions, matches: Matches) -> Tensor:
    """[K]: values of pairs [M], summed per layer."""
    return values.new_zeros(len(predictions.boxes)).index_add(0, matches.layer, values)
