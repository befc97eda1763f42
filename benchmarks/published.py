"""The published training step's design, told again in plain PyTorch, as what the benchmarks compare with.

What it does differently from the package: the Hungarian cost is computed between every query of the batch and every object
of the batch, and only its diagonal blocks are used; every decoder layer is matched on its own, with a wait for the device
each; one-to-many matching and every loss term loop over images and layers; the class loss builds a one-hot table; the
attention operator is a composition of ``grid_sample`` calls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from msdetr.matching import OneToManyMatcher
from msdetr.methods import matching_rules
from msdetr.structures import DetectorOutput, Predictions, Targets

Pairs = list[tuple[Tensor, Tensor]]


def hungarian(logits: Tensor, boxes: Tensor, targets: Targets, weights=(2.0, 5.0, 2.0)) -> Pairs:
    """One layer: logits [B, Q, C], boxes [B, Q, 4]; (query, object of the image) per image."""
    num_images, num_queries = logits.shape[:2]
    p = logits.flatten(0, 1).sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    classification = positive[:, targets.labels] - negative[:, targets.labels]
    flat = boxes.flatten(0, 1)
    l1 = torch.cdist(flat, targets.boxes, p=1)
    giou = generalized_box_iou(box_convert(flat, "cxcywh", "xyxy"), box_convert(targets.boxes, "cxcywh", "xyxy"))
    cost = weights[0] * classification + weights[1] * l1 - weights[2] * giou  # [B * Q, all objects of the batch]
    blocks = cost.view(num_images, num_queries, -1).cpu().split(targets.counts.tolist(), -1)
    pairs = [linear_sum_assignment(block[image]) for image, block in enumerate(blocks)]
    return [(torch.as_tensor(query), torch.as_tensor(target)) for query, target in pairs]


def one_to_many(logits: Tensor, boxes: Tensor, targets: Targets, matcher: OneToManyMatcher) -> Pairs:
    """One layer, image by image."""
    pairs = []
    for image in range(len(logits)):
        single = targets.of_image(image)
        found = matcher(Predictions(logits[None, image : image + 1], boxes[None, image : image + 1]), single)
        pairs.append((found.query, found.target))
    return pairs


def layer_loss(logits: Tensor, boxes: Tensor, targets: Targets, pairs: Pairs, weights, num_boxes: float) -> Tensor:
    """Weighted class, L1 and GIoU terms of one layer."""
    one_hot = torch.zeros_like(logits)
    predicted, true = [], []
    for image, (query, target) in enumerate(pairs):
        single = targets.of_image(image)
        one_hot[image, query, single.labels[target]] = 1
        predicted.append(boxes[image, query])
        true.append(single.boxes[target])
    predicted, true = torch.cat(predicted), torch.cat(true)
    focal = sigmoid_focal_loss(logits, one_hot, 0.25, 2.0, reduction="sum")
    l1 = F.l1_loss(predicted, true, reduction="sum")
    giou = generalized_box_iou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy"))
    return (weights[0] * focal + weights[1] * l1 + weights[2] * (1 - giou.diag()).sum()) / num_boxes


def objective(output: DetectorOutput, targets: Targets, config) -> Tensor:
    """The total loss, layer by layer and branch by branch."""
    loss, num_boxes = config.loss, max(len(targets), 1)
    matcher = matching_rules(config).one_to_many()
    total = 0.0
    for logits, boxes in zip(output.one_to_one.logits, output.one_to_one.boxes):
        pairs = hungarian(logits.detach(), boxes.detach(), targets)
        total = total + layer_loss(
            logits, boxes, targets, pairs, (loss.class_weight, loss.l1_weight, loss.giou_weight), num_boxes
        )
    if output.one_to_many is not None:
        own = config.ms_detr
        weights = own.class_weight, own.l1_weight, own.giou_weight
        for logits, boxes in zip(output.one_to_many.logits, output.one_to_many.boxes):
            pairs = one_to_many(logits.detach(), boxes.detach(), targets, matcher)
            total = total + layer_loss(logits, boxes, targets, pairs, weights, num_boxes)
    if output.encoder is not None:
        agnostic = targets.class_agnostic()
        logits, boxes = output.encoder.predictions.logits[0], output.encoder.predictions.boxes[0]
        pairs = hungarian(logits.detach(), output.encoder.anchors, agnostic, weights=(0.0, 5.0, 2.0))
        own = config.two_stage
        weights = own.class_weight, own.l1_weight, own.giou_weight
        total = total + layer_loss(logits, boxes, agnostic, pairs, weights, num_boxes)
    return total
