"""Notebook 04, mixed supervision: the terms of the loss, what they pull at, and how branches add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ... import boxes as box_ops
from ...losses import Branch, Criterion, Supervised, detection_terms
from ...structures import DetectorOutput, Matches, Predictions, Targets
from .exercise import Case, Exercise
from .matching import Pairs, pairs_of_boxes

# ---------------------------------------------------------------- terms


def _giou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return box_ops.giou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)).item()


def _boxes_for_giou(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("unit squares far apart", ((0.0, 0.0, 1.0, 1.0), (9.0, 0.0, 10.0, 1.0)))
    for case in pairs_of_boxes(draw):
        if "without area" not in case.about:
            yield case


def _focal(logits: Tensor, positive: Tensor) -> Tensor:
    return sigmoid_focal_loss(logits, positive.to(logits.dtype), alpha=0.25, gamma=2, reduction="none")


def _logits(draw: np.random.Generator) -> Iterator[Case]:
    one = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64)
    yield Case("three positives", (one, torch.ones(3, dtype=torch.bool)))
    yield Case("three negatives", (one, torch.zeros(3, dtype=torch.bool)))
    far = torch.tensor([60.0, -60.0, 200.0, -200.0], dtype=torch.float64)
    yield Case("very large logits of positives", (far, torch.ones(4, dtype=torch.bool)))
    yield Case("very large logits of negatives", (far, torch.zeros(4, dtype=torch.bool)))
    for _ in range(8):
        logits = torch.from_numpy(draw.normal(0, 3, (3, 4)))
        yield Case("a random table", (logits, torch.from_numpy(draw.integers(0, 2, (3, 4)) > 0)))


def _pull(p: float, positive: bool) -> float:
    logit = torch.logit(torch.tensor(p, dtype=torch.float64)).requires_grad_()
    _focal(logit, torch.tensor(positive)).backward()
    return -logit.grad.item()


def _probabilities(draw: np.random.Generator) -> Iterator[Case]:
    for p in (0.5, 0.01, 0.3, 0.6, 0.9, 0.99, *draw.uniform(0.02, 0.98, 6).tolist()):
        for positive in (True, False):
            yield Case(f"p = {p:.2g} as a {'positive' if positive else 'negative'}", (p, positive))


def _class_targets(pairs: Pairs, labels: Sequence[int], num_queries: int, num_classes: int) -> Tensor:
    table = torch.zeros(num_queries, num_classes)
    for target, query in pairs:
        table[query, labels[target]] = 1
    return table


def _some_pairs(draw: np.random.Generator, objects: int, queries: int) -> Pairs:
    chosen = np.argwhere(draw.uniform(size=(objects, queries)) < 0.4)
    return {(j, i) for j, i in chosen.tolist()}


def _pairs_and_labels(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("nothing matched", (set(), [0], 2, 3))
    yield Case("one pair", ({(0, 1)}, [2], 3, 3))
    yield Case("two queries for an object", ({(0, 1), (0, 2)}, [1], 3, 2))
    yield Case("a query that serves objects of two classes", ({(0, 1), (1, 1)}, [0, 2], 3, 3))
    for _ in range(10):
        objects, queries, classes = (int(draw.integers(low, 6)) for low in (1, 2, 2))
        labels = draw.integers(0, classes, objects).tolist()
        yield Case("random pairs", (_some_pairs(draw, objects, queries), labels, queries, classes))


# ---------------------------------------------------------------- branches


def _quarrels(one_to_one: Pairs, one_to_many: Pairs, labels: Sequence[int]) -> set[tuple[int, int]]:
    size = 1 + max((query for _, query in one_to_one | one_to_many), default=0), 1 + max(labels)
    single, several = (_class_targets(pairs, labels, *size) for pairs in (one_to_one, one_to_many))
    return {(i, c) for i, c in (single != several).nonzero().tolist()}


def _both_pairs(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("branches that agree", ({(0, 1)}, {(0, 1)}, [0]))
    yield Case("two more one-to-many queries", ({(0, 1)}, {(0, 1), (0, 2), (0, 3)}, [1]))
    yield Case("an object without one-to-many queries", ({(0, 1), (1, 2)}, {(0, 1)}, [1, 0]))
    yield Case("a query that serves two objects of one class", ({(0, 1), (1, 0)}, {(1, 1), (0, 0)}, [2, 2]))
    yield Case("a query that serves two objects of two classes", ({(0, 1), (1, 0)}, {(1, 1), (0, 0)}, [2, 1]))
    for _ in range(20):
        objects, queries = int(draw.integers(1, 4)), int(draw.integers(4, 7))
        single = {(j, i) for j, i in enumerate(draw.permutation(queries)[:objects].tolist())}
        labels = draw.integers(0, 3, objects).tolist()
        yield Case("random pairs", (single, _some_pairs(draw, objects, queries), labels))


def _parts_of_loss(sums: Sequence[float], objects: Sequence[int]) -> list[float]:
    return [value / max(sum(objects), 1) for value in sums]


def _micro_batches(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one part", ([6.0], [3]))
    yield Case("a part without objects", ([2.0, 5.0], [0, 4]))
    yield Case("no objects at all", ([0.5, 0.25], [0, 0]))
    for _ in range(8):
        parts = int(draw.integers(2, 5))
        yield Case("parts of several sizes", (draw.uniform(1, 9, parts).tolist(), draw.integers(0, 7, parts).tolist()))


def _flat(pairs: Pairs) -> Matches:
    columns = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
    zeros = torch.zeros_like(columns[0])
    return Matches(zeros, zeros, columns[1], columns[0])


def _branch_loss(
    logits: Tensor, boxes: Tensor, pairs: Pairs, labels: Tensor, objects: Tensor, weights: Mapping[str, float]
) -> Tensor:
    given = Supervised(
        Predictions(logits[None, None], boxes[None, None]), Targets.from_list([labels], [objects]), pairs=_flat(pairs)
    )
    terms = detection_terms(weights["class"], weights["l1"], weights["giou"])
    branch = Branch("branch", lambda output, targets: given, None, terms)
    return Criterion([branch])(DetectorOutput(given.predictions), given.targets).total


def _mixed_loss(
    one_to_one: tuple[Tensor, Tensor, Pairs], one_to_many: tuple[Tensor, Tensor, Pairs], labels: Tensor, objects: Tensor
) -> Tensor:
    weights = {"class": 1.0, "l1": 5.0, "giou": 2.0}
    single = _branch_loss(*one_to_one, labels, objects, weights)
    return single + _branch_loss(*one_to_many, labels, objects, weights | {"class": 2.0})


def _random_scene(draw: np.random.Generator, objects: int, queries: int, classes: int) -> tuple[Tensor, ...]:
    boxes = draw.uniform(0.2, 0.8, (objects + queries, 4))
    labels = torch.from_numpy(draw.integers(0, classes, objects))
    logits = torch.from_numpy(draw.normal(-1, 2, (queries, classes)))
    return logits, torch.from_numpy(boxes[objects:]), labels, torch.from_numpy(boxes[:objects])


def _once(pairs: Pairs) -> Pairs:
    """Each query with one object at most."""
    return {(j, i) for i, j in {query: target for target, query in sorted(pairs)}.items()}


def _scenes_to_supervise(draw: np.random.Generator) -> Iterator[Case]:
    weights = {"class": 1.0, "l1": 5.0, "giou": 2.0}
    for trial in range(12):
        objects, queries, classes = (int(draw.integers(low, 6)) for low in (1, 2, 2))
        objects = 0 if trial == 1 else objects
        logits, boxes, labels, true = _random_scene(draw, objects, queries, classes)
        pairs = set() if trial < 2 else _once(_some_pairs(draw, objects, queries))
        if trial > 5:
            weights = dict(zip(weights, draw.integers(0, 7, 3).astype(float).tolist()))
        about = {0: "no pairs", 1: "no objects"}.get(trial, f"{len(pairs)} pair(s) of {objects} object(s)")
        yield Case(about, (logits, boxes, pairs, labels, true, weights))


def _scenes_to_mix(draw: np.random.Generator) -> Iterator[Case]:
    for trial in range(8):
        objects, queries, classes = int(draw.integers(1, 4)), int(draw.integers(4, 8)), int(draw.integers(2, 5))
        if trial == 0:  # small enough to follow by hand
            objects, queries, classes = 1, 2, 2
        logits, boxes, labels, true = _random_scene(draw, objects, queries, classes)
        others, other_boxes, _, _ = _random_scene(draw, objects, queries, classes)
        single = {(j, i) for j, i in enumerate(draw.permutation(queries)[:objects].tolist())}
        several = _once(_some_pairs(draw, objects, queries))
        yield Case(
            f"{len(several)} one-to-many pairs", ((logits, boxes, single), (others, other_boxes, several), labels, true)
        )


# ---------------------------------------------------------------- gradients


def _cosine(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float | None:
    """As ``analysis.gradients``: None counts as zeros."""
    reached = [(a, b) for a, b in zip(one, other) if a is not None and b is not None]
    product = sum(float((a * b).sum()) for a, b in reached)
    lengths = [sum(float((g**2).sum()) for g in found if g is not None) ** 0.5 for found in (one, other)]
    return product / (lengths[0] * lengths[1]) if lengths[0] and lengths[1] else None


def _gradients(draw: np.random.Generator) -> Iterator[Case]:
    def random(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=shape))

    a, b = random(2, 3), random(4)
    yield Case("gradients that are alike but for their length", ([a, b], [3 * a, 3 * b]))
    yield Case("gradients that are opposed", ([a, b], [-a, -b]))
    yield Case("a parameter that the second branch does not reach", ([a, b], [2 * a, None]))
    yield Case("a parameter that the first branch does not reach", ([None, b], [a, b]))
    yield Case("branches that reach different parameters", ([a, None], [None, b]))
    yield Case("a branch that reaches nothing", ([None, None], [a, b]))
    yield Case("a second branch that reaches nothing", ([a, b], [None, None]))
    yield Case("two branches that reach nothing", ([None, None], [None, None]))
    yield Case("a gradient of zeros", ([a, b], [torch.zeros(2, 3), torch.zeros(4)]))
    for _ in range(6):
        yield Case("random gradients", ([random(3), random(2, 2), random(1)], [random(3), random(2, 2), random(1)]))


EXERCISES = (
    Exercise("4.1", "generalized_iou", _giou, _boxes_for_giou),
    Exercise("4.2", "stable_focal", _focal, _logits),
    Exercise("4.3", "pull", _pull, _probabilities),
    Exercise("4.4", "class_targets", _class_targets, _pairs_and_labels),
    Exercise("4.5", "quarrels", _quarrels, _both_pairs),
    Exercise("4.6", "parts_of_loss", _parts_of_loss, _micro_batches),
    Exercise("4.7", "loss_of_branch", _branch_loss, _scenes_to_supervise),
    Exercise("4.8", "mixed_loss", _mixed_loss, _scenes_to_mix),
    Exercise("4.9", "cosine", _cosine, _gradients),
)
