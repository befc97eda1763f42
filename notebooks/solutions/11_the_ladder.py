"""Answers to the exercises of notebook 11, two to each. Look here last: every harder exercise has a hint."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


# 11.1
def sees(groups):
    place, stop = {}, 0
    for name, queries, _, _ in groups:
        place[name] = slice(stop, stop + queries)
        stop += queries
    table = torch.zeros(stop, stop, dtype=torch.bool)
    for name, queries, parts, reads in groups:
        size = queries // parts
        for start in range(place[name].start, place[name].stop, size):
            table[start : start + size, start : start + size] = True
        for other in reads:
            table[place[name], place[other]] = True
    return table


def another_sees(groups):
    """Each query knows its group and part; two queries are then compared."""
    queries = [(name, i * parts // n, reads) for name, n, parts, reads in groups for i in range(n)]
    return [[b[0] in a[2] or a[:2] == b[:2] for b in queries] for a in queries]


# 11.2
def known_pairs(counts, groups, negatives):
    size = max(counts) * (2 if negatives else 1)
    pairs, first = set(), 0
    for image, count in enumerate(counts):
        for number in range(count):
            pairs |= {(image, group * size + number, first + number) for group in range(groups)}
        first += count
    return pairs


def another_known_pairs(counts, groups, negatives):
    size, found = max(counts) * (1 + negatives), []
    objects = [(image, number) for image, count in enumerate(counts) for number in range(count)]
    for target, (image, number) in enumerate(objects):
        found += [(image, start + number, target) for start in range(0, groups * size, size)]
    return found


# 11.3
def noised_box(box, amount, sign, scale, negative):
    cx, cy, w, h = box.tolist()
    edges = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    far = amount + 1 if negative else amount
    x0, y0, x1, y1 = (edges + sign * far * scale * torch.tensor([w, h, w, h]) / 2).clamp(0, 1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def another_noised_box(box, amount, sign, scale, negative):
    half = box[2:] / 2
    low = box[:2] + half * (sign[:2] * scale * (amount[:2] + negative) - 1)
    high = box[:2] + half * (sign[2:] * scale * (amount[2:] + negative) + 1)
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    return torch.cat([(low + high) / 2, high - low])


# 11.4
def repeated(cost, k):
    rows, queries = linear_sum_assignment(np.repeat(cost, k, axis=0))
    return {(int(row) // k, int(query)) for row, query in zip(rows, queries)}


def another_repeated(cost, k):
    """All rows once, then all rows again: the object is the remainder."""
    rows, queries = linear_sum_assignment(cost * k)
    return set(zip((rows % len(cost)).tolist(), queries.tolist()))


# 11.5
def by_iou(table, threshold, k):
    columns = list(zip(*table))
    pairs = set()
    for target, row in enumerate(table):
        own = [i for i in range(len(row)) if columns[i].index(max(columns[i])) == target and row[i] > 0]
        own.sort(key=lambda query: -row[query])
        pairs |= {(target, query) for n, query in enumerate(own[:k]) if row[query] >= threshold or n == 0}
    return pairs


def another_by_iou(table, threshold, k):
    overlaps = np.array(table)
    own = np.where(overlaps.argmax(axis=0) == np.arange(len(table))[:, None], overlaps, 0)
    ranks = np.argsort(np.argsort(-own, kind="stable"))
    return np.argwhere((own > 0) & (ranks < k) & ((own >= threshold) | (ranks == 0)))
