"""Boxes: conversions, IoU, generalised IoU and the logit of a reference point.

Pairwise functions broadcast over leading dimensions, so all layers and images are handled at once, and degenerate boxes
(zero width or height) give finite values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) -> (x0, y0, x1, y1); any leading dimensions."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def predicted_corners(boxes: Tensor) -> Tensor:
    """As ``cxcywh_to_xyxy``, but a negative size counts as 0: predictions relative to a learned box can have one."""
    return cxcywh_to_xyxy(torch.cat([boxes[..., :2], boxes[..., 2:].clamp(min=0)], dim=-1))


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(x0, y0, x1, y1) -> (cx, cy, w, h); any leading dimensions."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Area of xyxy boxes [..., 4] -> [...]; inverted boxes count as empty."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of xyxy boxes, elementwise after broadcasting."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)
    width = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    height = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    return intersection, area(a) + area(b) - intersection


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0, with finite gradients there."""
    empty = denominator <= 0
    return torch.where(empty, torch.zeros_like(numerator), numerator / torch.where(empty, 1, denominator))


def iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """IoU of xyxy boxes, elementwise after broadcasting: [..., 4], [..., 4] -> [...]. 0 for two empty boxes. eps is added to
    the union."""
    intersection, union = _overlap(a, b)
    return _ratio(intersection, union + eps if eps else union)


def giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU in [-1, 1] (Rezatofighi et al., 2019) of xyxy boxes, elementwise after broadcasting. eps: added to
    the areas that are divided by."""
    intersection, union = _overlap(a, b)
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)
    width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    height = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    hull = width.clamp(min=0) * height.clamp(min=0)
    return _ratio(intersection, union + eps) - _ratio(hull - union, hull + eps)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every pair: [..., N, 4], [..., M, 4] xyxy -> [..., N, M]."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of every pair: [..., N, 4], [..., M, 4] xyxy -> [..., N, M]."""
    return giou(a[..., :, None, :], b[..., None, :, :])


def logit(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Inverse sigmoid with both x and 1 - x kept above eps, as Deformable DETR defines it for reference points."""
    return torch.log(x.clamp(eps, 1) / (1 - x).clamp(eps, 1))
