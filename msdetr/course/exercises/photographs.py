"""Notebook 12, photographs: the share of positives, an interval over seeds, and detections that may be right after all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from .exercise import Case, Exercise


def _positive_share(objects: Sequence[int], queries: int, k: int) -> float:
    return float(np.minimum(k * np.array(objects), queries).mean() / queries)


def _images(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one image", ([13], 300, 4))
    yield Case("an image without objects", ([0, 10], 100, 4))
    yield Case("more objects than the queries have room for", ([30, 5], 100, 6))
    yield Case("images of which only some are full", ([60, 20, 1], 100, 4))
    for _ in range(6):
        objects = draw.integers(0, 50, int(draw.integers(1, 7))).tolist()
        yield Case("random counts", (objects, int(draw.integers(50, 300)), int(draw.integers(1, 7))))


def _interval(differences: Sequence[float], draws: Sequence[Sequence[int]]) -> tuple[float, float]:
    means = np.array(differences)[np.array(draws)].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _differences(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("two seeds that agree", ([1.0, 1.0], [[0, 0], [0, 1], [1, 1]]))
    yield Case("two seeds that do not", ([-1.0, 3.0], [[0, 0], [0, 1], [1, 0], [1, 1]]))
    for _ in range(6):
        seeds = int(draw.integers(2, 7))
        draws = draw.integers(0, seeds, (200, seeds)).tolist()
        yield Case("random differences", (draw.normal(0.5, 1.0, seeds).round(2).tolist(), draws))


def _on_nothing(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], objects: Sequence[Sequence[float]], least: float
) -> list[int]:
    found, there = torch.tensor(boxes).reshape(-1, 4), torch.tensor(objects).reshape(-1, 4)
    overlap = box_iou(found, there).amax(1) if len(there) else torch.zeros(len(found))
    chosen = [i for i, score in enumerate(scores) if score >= least and overlap[i] < 0.1]
    return sorted(chosen, key=lambda i: -scores[i])


def _detections(draw: np.random.Generator) -> Iterator[Case]:
    one = [[0.0, 0.0, 10.0, 10.0]]
    yield Case("a detection on an object", (one, [0.9], one, 0.5))
    yield Case("a detection beside the object", ([[20.0, 0.0, 30.0, 10.0]], [0.9], one, 0.5))
    yield Case("a detection that only touches the object", ([[10.0, 0.0, 20.0, 10.0]], [0.9], one, 0.5))
    yield Case("a small overlap", ([[8.0, 8.0, 18.0, 18.0]], [0.9], one, 0.5))
    small = [[0.0, 0.0, 2.0, 2.0]]
    yield Case("small boxes beside each other", (small, [0.9], [[3.0, 0.0, 5.0, 2.0]], 0.5))
    yield Case("small boxes above each other", (small, [0.9], [[0.0, 3.0, 2.0, 5.0]], 0.5))
    yield Case("small boxes at a corner", (small, [0.9], [[3.0, 3.0, 5.0, 5.0]], 0.5))
    for shift in (15.0, 16.0, 17.0):
        yield Case(
            "an overlap near the limit", ([[shift, 3.0, shift + 20.0, 13.0]], [0.9], [[0.0, 3.0, 20.0, 13.0]], 0.5)
        )
        yield Case("boxes of other sizes", ([[3.0, shift, 12.0, shift + 20.0]], [0.9], [[2.0, 1.0, 13.0, 21.0]], 0.5))
    yield Case("an image without objects", (one, [0.9], [], 0.5))
    yield Case("an image without detections", ([], [], one, 0.5))
    yield Case("a score of exactly the least", (one, [0.5], [], 0.5))
    yield Case("a weak detection", (one, [0.4], [], 0.5))
    far = [[40.0 * i, 0.0, 40.0 * i + 9.0, 9.0] for i in range(1, 4)]
    yield Case("several, to be sorted", (far, [0.6, 0.9, 0.7], one, 0.5))
    for _ in range(8):
        corners = draw.integers(0, 60, (9, 2)).astype(float)
        boxes = np.concatenate([corners, corners + draw.integers(5, 25, (9, 2))], axis=1).tolist()
        scores = (draw.permutation(5) / 5 + 0.1).tolist()
        yield Case("random boxes", (boxes[:5], scores, boxes[5 : 5 + int(draw.integers(1, 5))], 0.4))


EXERCISES = (
    Exercise("12.1", "positive_share", _positive_share, _images),
    Exercise("12.2", "interval", _interval, _differences),
    Exercise("12.3", "on_nothing", _on_nothing, _detections),
)
