"""Notebook 05, training: the first loss by hand, clipping, and average precision from a ranked list."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from .exercise import Case, Exercise


def _first_class_loss(num_queries: int, num_classes: int, num_objects: int, p: float) -> float:
    logits = torch.logit(torch.full((num_queries, num_classes), p, dtype=torch.float64))
    positive = torch.zeros_like(logits)
    positive[:num_objects, 0] = 1
    return sigmoid_focal_loss(logits, positive, 0.25, 2, "sum").item() / max(num_objects, 1)


def _untrained(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("the embedded data set's numbers", (100, 8, 4, 0.01))
    yield Case("COCO's numbers", (300, 80, 7, 0.01))
    yield Case("an image without objects", (100, 8, 0, 0.01))
    yield Case("one query, one class and one object", (1, 1, 1, 0.01))
    yield Case("a probability of one half", (20, 3, 2, 0.5))
    for _ in range(6):
        queries = int(draw.integers(5, 50))
        yield Case(
            "other numbers", (queries, int(draw.integers(1, 9)), int(draw.integers(1, 5)), draw.uniform(0.05, 0.9))
        )


def _clipped(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    parameters = [torch.zeros_like(gradient).requires_grad_() for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return [parameter.grad for parameter in parameters]


def _gradients(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("a norm of 5 and a limit of 1", ([torch.tensor([3.0]), torch.tensor([4.0])], 1.0))
    yield Case("a norm below the limit", ([torch.tensor([0.03]), torch.tensor([0.04])], 0.1))
    yield Case("a norm that is just the limit", ([torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])], 5.0))
    yield Case("gradients of 0", ([torch.zeros(2), torch.zeros(1, 3)], 0.1))
    for _ in range(6):
        shapes = [
            tuple(draw.integers(1, 4, int(draw.integers(1, 3))).tolist()) for _ in range(int(draw.integers(1, 4)))
        ]
        yield Case("random gradients", ([torch.from_numpy(draw.normal(size=s)) for s in shapes], draw.uniform(0.1, 3)))


def _precision_recall(hits: list[bool], num_objects: int) -> list[tuple[float, float]]:
    found = np.cumsum(hits)
    return list(zip((found / np.arange(1, len(hits) + 1)).tolist(), (found / num_objects).tolist()))


def _hits(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("all right", ([True, True], 2))
    yield Case("all wrong", ([False, False, False], 2))
    yield Case("a wrong one first", ([False, True], 1))
    yield Case("objects that nobody found", ([True, False, True], 5))
    yield Case("no detection", ([], 3))
    for _ in range(6):
        hits = (draw.uniform(size=int(draw.integers(2, 9))) < 0.6).tolist()
        yield Case(f"{len(hits)} detections", (hits, sum(hits) + int(draw.integers(1, 3))))


def average_precision(scores: list[float], hits: list[bool], num_objects: int) -> float | None:
    """COCO's: the mean, over the recalls 0, 0.01, ..., 1, of the best precision at that recall or beyond. None where there is
    nothing to find."""
    if num_objects == 0:
        return None
    order = np.argsort(-np.array(scores), kind="stable")
    curve = np.array(_precision_recall([hits[i] for i in order], num_objects)).reshape(-1, 2)
    reached = [curve[curve[:, 1] >= level, 0] for level in np.linspace(0, 1, 101)]
    return float(np.mean([precision.max() if len(precision) else 0.0 for precision in reached]))


def _ranked_lists(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("everything right", ([0.9, 0.8], [True, True], 2))
    yield Case("a wrong detection after the right ones", ([0.9, 0.8, 0.1], [True, True, False], 2))
    yield Case("a wrong detection before the right ones", ([0.9, 0.8, 0.7], [False, True, True], 2))
    yield Case("detections that are not sorted", ([0.2, 0.9, 0.5], [False, True, True], 2))
    yield Case("an object that nobody found", ([0.9], [True], 2))
    yield Case("precision that rises again", ([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, False, True, True], 3))
    yield Case("no detection", ([], [], 3))
    yield Case("nothing right", ([0.6, 0.5], [False, False], 4))
    yield Case("no objects", ([0.9], [False], 0))
    for _ in range(20):
        hits = (draw.uniform(size=int(draw.integers(2, 12))) < 0.6).tolist()
        objects = next(
            prime for prime in (3, 7, 11, 13) if prime >= sum(hits)
        )  # whose recalls are none of the hundredths
        scores = draw.permutation(len(hits)) / 20
        yield Case(f"{len(hits)} detections and {objects} objects", (scores.tolist(), hits, objects))


EXERCISES = (
    Exercise("5.1", "first_class_loss", _first_class_loss, _untrained),
    Exercise("5.2", "clipped", _clipped, _gradients),
    Exercise("5.3", "precision_recall", _precision_recall, _hits),
    Exercise("5.4", "average_precision", average_precision, _ranked_lists),
)
