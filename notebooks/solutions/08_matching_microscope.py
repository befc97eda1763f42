"""Answers to the exercises of notebook 08, two to each. Look here last: every harder exercise has a hint."""

import math

import numpy as np
import torch

from msdetr import boxes as box_ops


# 8.1
def pair_cost(p, box, true):
    as_positive = -0.25 * (1 - p) ** 2 * math.log(p)
    as_negative = -0.75 * p**2 * math.log(1 - p)
    overlap = box_ops.giou(box_ops.cxcywh_to_xyxy(box), box_ops.cxcywh_to_xyxy(true))
    return 2 * (as_positive - as_negative) + 5 * (box - true).abs().sum() - 2 * overlap


def another_pair_cost(p, box, true):
    terms = {
        "class": (1 - p) ** 2 * math.log(p) / -4 + 3 * p**2 * math.log(1 - p) / 4,
        "l1": sum(abs(a - b) for a, b in zip(box.tolist(), true.tolist())),
        "giou": -float(box_ops.giou(*(box_ops.cxcywh_to_xyxy(x) for x in (box, true)))),
    }
    return sum(weight * terms[name] for name, weight in {"class": 2, "l1": 5, "giou": 2}.items())


# 8.2
def prefers(table, query):
    scores = [row[query] for row in table]
    return scores.index(max(scores))


def why_not(table, target, query, tau, k):
    row = table[target]
    if row[query] <= tau:
        return "score"
    if prefers(table, query) != target:
        return "rival"
    before = [i for i in range(len(row)) if (-row[i], i) < (-row[query], query) and prefers(table, i) == target]
    return "matched" if len(before) < k else "place"


def another_why_not(table, target, query, tau, k):
    scores = np.array(table)
    favorite = scores.argmax(axis=0)
    own = np.flatnonzero(favorite == target)
    ranked = own[np.argsort(-scores[target, own], kind="stable")].tolist()
    if not scores[target, query] > tau:
        return "score"
    if query not in ranked:
        return "rival"
    return "matched" if query in ranked[:k] else "place"


# 8.3
def needed_k(table, target, query, tau):
    for k in range(1, len(table[0]) + 1):
        if why_not(table, target, query, tau, k) == "matched":
            return k
    return None


def another_needed_k(table, target, query, tau):
    """Its place, if k is all that stands in its way."""
    scores = np.array(table)
    favorite, row = scores.argmax(axis=0), scores[target]
    if favorite[query] != target or row[query] <= tau:
        return None
    rivals = row[favorite == target]
    before = np.sum(rivals > row[query]) + np.sum((row == row[query])[:query] & (favorite == target)[:query])
    return int(before) + 1


# 8.4
def flip_rate(before, after):
    changes = []
    for target in before:
        either = before[target] | after[target]
        if either:
            changes.append(1 - len(before[target] & after[target]) / len(either))
    return sum(changes) / len(changes) if changes else None


def another_flip_rate(before, after):
    """The other way of counting: queries that changed."""
    changes = [len(a ^ b) / len(a | b) for a, b in ((before[j], after[j]) for j in before) if a | b]
    return float(torch.tensor(changes).mean()) if changes else None
