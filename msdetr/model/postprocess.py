"""From predictions to detections: the best query-class pairs, boxes in pixels; with suppression of duplicates or without."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ..boxes import predicted_corners
from ..checks import count, fraction
from ..structures import Detections, Predictions

PRE_NMS = 10_000  # query-class pairs that enter non-maximum suppression, as in the released code


def postprocess(predictions: Predictions, sizes: Tensor, max_detections: int = 100) -> list[Detections]:
    """The ``max_detections`` best query-class pairs of each image by class probability; a query may appear with
    several classes.

    predictions: of the one-to-one branch, logits [K, B, Q, C] and boxes [K, B, Q, 4] cxcywh; the last layer counts.
    sizes: [B, 2] height and width in pixels of the images the boxes are wanted in.
    Fewer pairs than ``max_detections`` (Q * C is smaller) give fewer detections. Raises InputError where it is below 1.
    """
    max_detections = count(max_detections, "max_detections")
    scores, labels, boxes, query = best_pairs(predictions, sizes, max_detections)
    return [Detections(*image) for image in zip(scores, labels, boxes, query)]


def nms_postprocess(
    predictions: Predictions, sizes: Tensor, max_detections: int = 100, iou_threshold: float = 0.7
) -> list[Detections]:
    """As ``postprocess``, with class-wise non-maximum suppression in between: of two detections of one class with
    IoU > ``iou_threshold`` the weaker is dropped. For comparison; DETR does not need it.

    The first 10,000 pairs by score enter (all of them where there are fewer, where the released code fails). Raises
    InputError for a ``max_detections`` below 1 or an IoU threshold outside [0, 1].
    """
    max_detections = count(max_detections, "max_detections")
    iou_threshold = fraction(iou_threshold, "iou_threshold")
    detections = []
    for scores, labels, boxes, query in zip(*best_pairs(predictions, sizes, PRE_NMS)):
        keep = batched_nms(boxes, scores, labels, iou_threshold)[:max_detections]
        detections.append(Detections(scores[keep], labels[keep], boxes[keep], query[keep]))
    return detections


def best_pairs(predictions: Predictions, sizes: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores [B, N], labels [B, N], boxes [B, N, 4] xyxy in pixels and queries [B, N], best first."""
    predictions = predictions.layer(-1).float()
    probability = predictions.logits[0].sigmoid()  # [B, Q, C]
    num_queries, num_classes = probability.shape[1:]
    scores, pairs = probability.flatten(1).topk(min(kept, num_queries * num_classes), dim=1)
    query, labels = pairs // num_classes, pairs % num_classes

    height, width = sizes.to(predictions.boxes.device).unbind(-1)
    pixels = torch.stack([width, height, width, height], dim=-1)[:, None]  # [B, 1, 4]
    boxes = predicted_corners(predictions.boxes[0]) * pixels
    boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    return scores, labels, boxes, query
