"""Notebook 07, candidate quality: the numbers behind Figures 1 and 2, the duplicate gap, and suppressing duplicates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from .exercise import Case, Exercise


def _candidate_quality(overlaps: Tensor, k: int, t: float) -> tuple[float, float]:
    best = -np.sort(-overlaps.numpy(), axis=1)
    return best[:, :k].mean(), (best > t).sum() / len(best)


def _overlap_tables(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one object", (torch.tensor([[0.2, 0.9, 0.7, 0.0]]), 2, 0.5))
    yield Case("the best candidate alone", (torch.tensor([[0.2, 0.9], [0.8, 0.1]]), 1, 0.5))
    yield Case("an IoU that is exactly the threshold", (torch.tensor([[0.5, 0.75, 0.25]]), 3, 0.5))
    yield Case("an object without good candidates", (torch.tensor([[0.0, 0.1, 0.0], [0.9, 0.8, 0.7]]), 2, 0.75))
    for _ in range(8):
        objects, queries = int(draw.integers(1, 4)), int(draw.integers(3, 8))
        table = torch.from_numpy(draw.uniform(size=(objects, queries)))
        yield Case("random IoUs", (table, int(draw.integers(1, 4)), draw.integers(1, 10) / 10))


def _duplicate_gap(probability: Tensor, overlaps: Tensor) -> float | None:
    rivals = np.sort(probability.numpy()[overlaps.numpy() >= 0.5])
    return float(rivals[-1] - rivals[-2]) if len(rivals) > 1 else None


def _rivals(draw: np.random.Generator) -> Iterator[Case]:
    p = torch.tensor([0.9, 0.7, 0.3, 0.2], dtype=torch.float64)
    yield Case("three candidates that overlap", (p, torch.tensor([0.9, 0.6, 0.8, 0.1], dtype=torch.float64)))
    yield Case(
        "a candidate that is certain and lies elsewhere", (p, torch.tensor([0.1, 0.6, 0.8, 0.7], dtype=torch.float64))
    )
    yield Case("an IoU of just 0.5", (p, torch.tensor([0.9, 0.5, 0.8, 0.1], dtype=torch.float64)))
    yield Case("one candidate that overlaps", (p, torch.tensor([0.1, 0.6, 0.2, 0.1], dtype=torch.float64)))
    yield Case("no candidate that overlaps", (p, torch.tensor([0.1, 0.2, 0.2, 0.1], dtype=torch.float64)))
    yield Case(
        "two candidates that are equally certain", (torch.tensor([0.4, 0.8, 0.8]), torch.tensor([0.9, 0.9, 0.9]))
    )
    for _ in range(10):
        yield Case(
            "random candidates", (torch.from_numpy(draw.uniform(size=6)), torch.from_numpy(draw.uniform(size=6)))
        )


def _suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    return nms(boxes, scores, threshold).tolist()


def _detections(draw: np.random.Generator) -> Iterator[Case]:
    three = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.8], [5, 5, 6, 6]])
    yield Case("a duplicate and another object", (three, torch.tensor([0.9, 0.8, 0.7]), 0.5))
    yield Case("the better of two last", (three, torch.tensor([0.6, 0.8, 0.7]), 0.5))
    halves = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    yield Case("an IoU that is exactly the threshold", (halves, torch.tensor([0.9, 0.8]), 0.5))
    chain = torch.tensor([[0.0, 0, 10, 1], [3, 0, 13, 1], [6, 0, 16, 1]])
    yield Case("a box that overlaps only a box that is suppressed", (chain, torch.tensor([0.9, 0.8, 0.7]), 0.5))
    yield Case("no boxes", (torch.zeros(0, 4), torch.zeros(0), 0.5))
    for _ in range(12):
        corner = draw.uniform(0, 3, (8, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + draw.uniform(1, 3, (8, 2))], 1))
        yield Case(
            "random boxes", (boxes, torch.from_numpy(draw.permutation(8) / 8), float(draw.choice([0.1, 0.3, 0.5])))
        )


EXERCISES = (
    Exercise("7.1", "candidate_quality", _candidate_quality, _overlap_tables),
    Exercise("7.2", "duplicate_gap", _duplicate_gap, _rivals),
    Exercise("7.3", "suppressed", _suppressed, _detections),
)
