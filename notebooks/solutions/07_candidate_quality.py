"""Answers to the exercises of notebook 07, two to each. Look here last: every harder exercise has a hint."""

import torch

from msdetr.boxes import iou, pairwise_iou


# 7.1
def candidate_quality(overlaps, k, t):
    best = overlaps.topk(k, dim=1).values
    return best.mean().item(), (overlaps > t).sum(dim=1).float().mean().item()


def another_candidate_quality(overlaps, k, t):
    top, above = [], []
    for row in overlaps.tolist():
        top.append(sum(sorted(row, reverse=True)[:k]) / k)
        above.append(sum(overlap > t for overlap in row))
    return sum(top) / len(top), sum(above) / len(above)


# 7.2
def duplicate_gap(probability, overlaps):
    rivals = sorted(probability[overlaps >= 0.5].tolist())
    return rivals[-1] - rivals[-2] if len(rivals) >= 2 else None


def another_duplicate_gap(probability, overlaps):
    near = overlaps >= 0.5
    if near.sum() < 2:
        return None
    first, second = probability[near].topk(2).values
    return first - second


# 7.3
def suppressed(boxes, scores, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def another_suppressed(boxes, scores, threshold):
    """The other way round: whoever is kept removes its neighbors."""
    overlap, alive = pairwise_iou(boxes, boxes), torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if alive[i]:
            kept.append(i)
            alive &= overlap[i] <= threshold
    return kept
