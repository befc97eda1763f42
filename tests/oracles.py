"""Plain transcriptions of the paper's rules, one query and one object at a time, to compare the package with."""

from __future__ import annotations

import math


def iou(a, b) -> float:
    """IoU of two cxcywh boxes."""
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    intersection = max(width, 0) * max(height, 0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    return intersection / union if union > 0 else 0.0


def algorithm_1(table, threshold: float, k: int) -> set[tuple[int, int]]:
    """Algorithm 1 as listed. table[j][i] is the score of query i with object j of one image.

    For each object: the k queries with the highest scores, of which those above the threshold are kept.
    """
    pairs = set()
    for target, row in enumerate(table):
        ranked = sorted(range(len(row)), key=lambda query: (-row[query], query))
        for query in ranked[:k]:
            if row[query] > threshold:
                pairs.add((query, target))
    return pairs


def section_c(table, threshold: float, k: int) -> set[tuple[int, int]]:
    """The rule in the words of Section C: each query goes to the object it scores highest with, then as Algorithm 1."""
    if not len(table):
        return set()
    own = []
    for query in range(len(table[0])):
        column = [row[query] for row in table]
        own.append(column.index(max(column)))
    only = [
        [score if own[q] == target else -math.inf for q, score in enumerate(row)] for target, row in enumerate(table)
    ]
    return algorithm_1(only, threshold, k)


def released(table, threshold: float, k: int) -> set[tuple[int, int]]:
    """The released rule, without its random cap."""
    if not len(table):
        return set()
    num_queries = len(table[0])
    best_of_object = {max(range(num_queries), key=lambda q: (row[q], -q)) for row in table}
    votes = [0] * len(table)
    for query in range(num_queries):
        column = [row[query] for row in table]
        if max(column) >= threshold or query in best_of_object:
            votes[column.index(max(column))] += 1
    pairs = set()
    for target, row in enumerate(table):
        ranked = sorted(range(num_queries), key=lambda query: (-row[query], query))
        pairs |= {(query, target) for query in ranked[: min(k, votes[target])]}
    return pairs
