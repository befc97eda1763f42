"""Answers to the exercises of notebook 12, two to each. Look here last: every harder exercise has a hint."""

import numpy as np
import torch
from torchvision.ops import box_iou


# 12.1
def positive_share(objects, queries, k):
    return sum(min(k * count, queries) / queries for count in objects) / len(objects)


def another_positive_share(objects, queries, k):
    return float(np.mean([min(k * count / queries, 1.0) for count in objects]))


# 12.2
def interval(differences, draws):
    means = [sum(differences[i] for i in drawn) / len(drawn) for drawn in draws]
    return np.percentile(means, 2.5), np.percentile(means, 97.5)


def another_interval(differences, draws):
    """The percentile by hand: between two neighbors in proportion."""
    means = sorted(np.mean([differences[i] for i in drawn]) for drawn in draws)
    places = np.linspace(0, 1, len(means))
    return np.interp(0.025, places, means), np.interp(0.975, places, means)


# 12.3
def on_nothing(boxes, scores, objects, least):
    def overlap(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        both = width * height
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    free = [i for i, box in enumerate(boxes) if all(overlap(box, other) < 0.1 for other in objects)]
    return sorted((i for i in free if scores[i] >= least), key=lambda i: -scores[i])


def another_on_nothing(boxes, scores, objects, least):
    if not boxes:
        return []
    overlap = torch.zeros(len(boxes))
    if objects:
        overlap = box_iou(torch.tensor(boxes), torch.tensor(objects)).amax(1)
    best_first = np.argsort(-np.array(scores), kind="stable").tolist()
    return [i for i in best_first if scores[i] >= least and overlap[i] < 0.1]
