"""Answers to the exercises of notebook 05, two to each. Look here last: every harder exercise has a hint."""

from math import log

import numpy as np
import torch


# 5.1
def first_class_loss(num_queries, num_classes, num_objects, p):
    positive = 0.25 * (1 - p) ** 2 * -log(p)
    negative = 0.75 * p**2 * -log(1 - p)
    negatives = num_queries * num_classes - num_objects
    return (num_objects * positive + negatives * negative) / max(num_objects, 1)


def another_first_class_loss(num_queries, num_classes, num_objects, p):
    """Entry by entry."""
    total = 0.0
    for query in range(num_queries):
        for label in range(num_classes):
            if query < num_objects and label == 0:
                total -= 0.25 * (1 - p) ** 2 * log(p)
            else:
                total -= 0.75 * p**2 * log(1 - p)
    return total / num_objects if num_objects else total


# 5.2
def clipped(gradients, max_norm):
    norm = sum(float((gradient**2).sum()) for gradient in gradients) ** 0.5
    factor = max_norm / norm if norm > max_norm else 1
    return [gradient * factor for gradient in gradients]


def another_clipped(gradients, max_norm):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return [gradient / torch.clamp(norm / max_norm, min=1) for gradient in gradients]


# 5.3
def precision_recall(hits, num_objects):
    right, curve = 0, []
    for seen, hit in enumerate(hits, 1):
        right += hit
        curve.append((right / seen, right / num_objects))
    return curve


def another_precision_recall(hits, num_objects):
    return [(sum(hits[:n]) / n, sum(hits[:n]) / num_objects) for n in range(1, len(hits) + 1)]


# 5.4
def average_precision(scores, hits, num_objects):
    if num_objects == 0:
        return None
    ranked = [hit for _, hit in sorted(zip(scores, hits), reverse=True)]
    curve = precision_recall(ranked, num_objects)
    levels = [i / 100 for i in range(101)]
    return sum(max([p for p, r in curve if r >= level], default=0) for level in levels) / 101


def another_average_precision(scores, hits, num_objects):
    """As COCO computes it: precision made monotone from behind, then looked up."""
    if not num_objects:
        return None
    right = np.array(hits, dtype=float)[np.argsort(scores)[::-1]].cumsum()
    precision = right / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(right / num_objects, np.linspace(0, 1, 101))
    return np.append(best_from_here, 0.0)[index].mean()
