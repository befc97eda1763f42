"""Answers to the exercises of notebook 03, two to each. Look here last: every harder exercise has a hint."""

import itertools

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from msdetr.boxes import cxcywh_to_xyxy, pairwise_iou


# 3.1
def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def another_iou(a, b):
    first, second = torch.tensor(a).double(), torch.tensor(b).double()
    sides = (torch.minimum(first, second)[2:] - torch.maximum(first, second)[:2]).clamp(min=0)
    shared = sides.prod()
    areas = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()
    return float(shared / (areas - shared)) if areas > 0 else 0.0


# 3.2
def score_table(probability, boxes, labels, objects, alpha):
    overlap = pairwise_iou(cxcywh_to_xyxy(objects), cxcywh_to_xyxy(boxes))
    return alpha * probability[:, labels].T + (1 - alpha) * overlap


def another_score_table(probability, boxes, labels, objects, alpha):
    rows = []
    for label, true in zip(labels.tolist(), cxcywh_to_xyxy(objects).tolist()):
        overlaps = torch.tensor([iou(box, true) for box in cxcywh_to_xyxy(boxes).tolist()])
        rows.append(alpha * probability[:, label] + (1 - alpha) * overlaps)
    return torch.stack(rows)


# 3.3
def one_to_one(cost):
    ways = itertools.permutations(range(len(cost[0])), len(cost))
    return min(ways, key=lambda queries: sum(row[query] for row, query in zip(cost, queries)))


def another_one_to_one(cost):
    """With the Hungarian algorithm."""
    return linear_sum_assignment(np.array(cost))[1]


def third_one_to_one(cost, taken=frozenset()):
    """The first object tries every query that is free; the other objects do the same with the rest."""
    if not cost:
        return []
    ways = []
    for query in range(len(cost[0])):
        if query not in taken:
            ways.append([query, *third_one_to_one(cost[1:], taken | {query})])
    return min(ways, key=lambda queries: sum(row[query] for row, query in zip(cost, queries)))


# 3.4
def queries_of_object(scores, tau, k):
    ranked = sorted(range(len(scores)), key=lambda query: -scores[query])
    return [query for query in ranked[:k] if scores[query] > tau]


def another_queries_of_object(scores, tau, k):
    """In Section C's order: first tau, then k."""
    left, taken = {query: score for query, score in enumerate(scores) if score > tau}, []
    for _ in range(min(k, len(left))):
        best = max(left, key=left.get)  # the first of equals
        taken.append(best)
        del left[best]
    return taken


# 3.5
def favorites(table):
    return [scores.index(max(scores)) for scores in zip(*table)]


def another_favorites(table):
    return np.argmax(table, axis=0)


# 3.6
def conflicts(table, tau, k):
    takers = {query: set() for query in range(len(table[0]))}
    for target, row in enumerate(table):
        for query in queries_of_object(row, tau, k):
            takers[query].add(target)
    return {query: objects for query, objects in takers.items() if len(objects) > 1}


def another_conflicts(table, tau, k):
    scores = np.array(table)
    ranks = np.argsort(np.argsort(-scores, kind="stable"))
    matched = (ranks < k) & (scores > tau)
    shared = np.flatnonzero(matched.sum(axis=0) > 1)
    return {int(query): set(np.flatnonzero(matched[:, query]).tolist()) for query in shared}


# 3.7
def merge_pairs(one_to_many, one_to_one):
    serving = {query for _, query in one_to_many}
    return one_to_many | {(target, query) for target, query in one_to_one if query not in serving}


def another_merge_pairs(one_to_many, one_to_one):
    """One dictionary of queries; what one-to-many matching found is written last."""
    serves = {query: target for target, query in one_to_one}
    serves.update({query: target for target, query in one_to_many})
    return [(target, query) for query, target in serves.items()]


# 3.8
def released(table, tau, k):
    favorite = favorites(table)
    best = {row.index(max(row)) for row in table}
    pairs = set()
    for target, row in enumerate(table):
        voters = [i for i in range(len(row)) if favorite[i] == target and (row[i] >= tau or i in best)]
        ranked = sorted(range(len(row)), key=lambda query: -row[query])
        pairs |= {(target, query) for query in ranked[: min(len(voters), k)]}
    return pairs


def another_released(table, tau, k):
    scores = np.array(table)
    ranks = np.argsort(np.argsort(-scores, kind="stable"))
    prefers = scores.argmax(axis=0) == np.arange(len(scores))[:, None]
    votes = (prefers & ((scores >= tau) | (ranks == 0).any(axis=0))).sum(axis=1)
    return np.argwhere(ranks < np.minimum(votes, k)[:, None])


# 3.9
def strictest_threshold(table, thresholds):
    favorite, served = favorites(table), []
    for tau in thresholds:
        if all(any(favorite[i] == j and row[i] > tau for i in range(len(row))) for j, row in enumerate(table)):
            served.append(tau)
    return max(served, default=None)


def another_strictest_threshold(table, thresholds):
    """The object whose best query is worst decides."""
    scores = np.array(table)
    own = np.where(scores.argmax(axis=0) == np.arange(len(scores))[:, None], scores, -1)
    weakest = own.max(axis=1).min()
    return max((tau for tau in thresholds if tau < weakest), default=None)


# 3.10
def largest_k(table, tau, share):
    favorite = favorites(table)
    own = [sum(favorite[i] == j and row[i] > tau for i in range(len(row))) for j, row in enumerate(table)]
    for k in range(len(favorite), 0, -1):
        if sum(min(number, k) for number in own) <= share * len(favorite):
            return k
    return None


def another_largest_k(table, tau, share):
    scores = np.array(table)
    prefers = scores.argmax(axis=0) == np.arange(len(scores))[:, None]
    own = (prefers & (scores > tau)).sum(axis=1)
    settings = np.arange(1, scores.shape[1] + 1)
    matched = np.minimum(own, settings[:, None]).sum(axis=1)
    fitting = settings[matched / scores.shape[1] <= share]
    return int(fitting[-1]) if len(fitting) else None
