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


def by_iou(table, threshold: float, k: int) -> set[tuple[int, int]]:
    """Assignment by overlap: each query goes to the object it overlaps most, each object takes its k best of those that
    reach the threshold, and the best one in any case. table[j][i] is the IoU of query i with object j."""
    pairs = set()
    for target, row in enumerate(table):
        own = []
        for query, value in enumerate(row):
            column = [other[query] for other in table]
            if column.index(max(column)) == target and value > 0:
                own.append(query)
        own.sort(key=lambda query: (-row[query], query))
        pairs |= {(q, target) for rank, q in enumerate(own[:k]) if rank == 0 or row[q] >= threshold}
    return pairs


def released_by_iou(table, threshold: float, k: int) -> set[tuple[int, int]]:
    """The released rule of DETA, without its random cap."""
    if not len(table):
        return set()
    votes = [0] * len(table)
    for query in range(len(table[0])):
        column = [row[query] for row in table]
        if max(column) >= threshold or any(row[query] == max(row) for row in table):
            votes[column.index(max(column))] += 1
    pairs = set()
    for target, row in enumerate(table):
        ranked = sorted(range(len(row)), key=lambda query: (-row[query], query))
        pairs |= {(query, target) for query in ranked[: min(k, votes[target])]}
    return pairs


def without_duplicates(scores, corners, levels, first, iou_threshold, per_level) -> list[int] | None:
    """The first tokens of an image after suppression within each level; None where too few survive. corners: xyxy."""
    ranked = sorted(range(len(scores)), key=lambda token: -scores[token])
    taking_part = {token for level in set(levels) for token in [t for t in ranked if levels[t] == level][:per_level]}
    survivors: list[int] = []
    for token in ranked:
        rivals = [t for t in survivors if levels[t] == levels[token]]
        if token in taking_part and all(_iou_of_corners(corners[t], corners[token]) <= iou_threshold for t in rivals):
            survivors.append(token)
    if len(survivors) < first:
        return None
    share = first // len(set(levels))
    entitled = [t for level in set(levels) for t in [s for s in survivors if levels[s] == level][:share]]
    others = [token for token in survivors if token not in entitled]
    chosen = set(entitled) | set(others[: first - len(entitled)])
    return [token for token in survivors if token in chosen]


def _iou_of_corners(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


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
