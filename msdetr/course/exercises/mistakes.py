"""Notebook 10, break it: eight functions with a classic mistake each, and what the package does in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...boxes import cxcywh_to_xyxy, pairwise_iou
from ...data import Categories, normalized
from ...losses import l1_loss
from ...model.coding import LogitBoxes
from ...model.postprocess import postprocess
from ...modules import MultiScaleDeformableAttention
from ...structures import Matches, Predictions, Targets
from .exercise import Case, Exercise
from .matching import Pairs, one_to_many
from .values import differs


def _class_of(category_ids: list[int]) -> dict[int, int]:
    package = Categories(names=tuple(map(str, category_ids)), category_ids=tuple(sorted(category_ids)))
    return {category_id: package.to_class(category_id) for category_id in category_ids}


def _categories(draw: np.random.Generator) -> Iterator[Case]:
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    yield Case("ids without gaps", ([1, 2, 3],))
    yield Case("ids with a gap", ([1, 2, 4, 5],))
    yield Case("COCO's ids", ([i for i in range(1, 91) if i not in unused],))
    yield Case("ids in no order", ([7, 2, 40, 5],))
    yield Case("ids from 0 on", ([0, 3, 4],))


def _prepare(pixels: Tensor) -> Tensor:
    return normalized()(pixels)


def _pictures(draw: np.random.Generator) -> Iterator[Case]:
    for about, pixels in (
        ("a black image", np.zeros((3, 2, 3))),
        ("a white image", np.full((3, 2, 2), 255)),
        ("a random image", draw.integers(0, 256, (3, 4, 5))),
    ):
        yield Case(about, (torch.from_numpy(pixels.astype(np.uint8)),))


def _best_pairs(probability: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    boxes = torch.zeros(*probability.shape[:1], 4, dtype=probability.dtype)
    found = postprocess(Predictions(torch.logit(probability)[None, None], boxes[None, None]), torch.ones(1, 2), count)[
        0
    ]
    return found.scores, found.query, found.labels


def _probabilities(draw: np.random.Generator) -> Iterator[Case]:
    for queries, classes in ((2, 3), (3, 2), *draw.integers(2, 8, (6, 2)).tolist()):
        table = torch.from_numpy(draw.permutation(queries * classes).reshape(queries, classes) + 1) / (
            queries * classes + 2
        )
        yield Case(
            f"{queries} queries and {classes} classes", (table.double(), int(draw.integers(1, queries * classes)))
        )


def _sampling_locations(reference: Tensor, offsets: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    levels, points, _ = offsets.shape
    attention = MultiScaleDeformableAttention(dim=4, num_heads=1, num_levels=levels, num_points=points).to(
        offsets.dtype
    )
    attention.sampling_offsets.bias.data.copy_(offsets.flatten())
    references = reference.expand(1, 1, levels, 2)
    return attention.sampling_locations(torch.zeros(1, 1, 4, dtype=offsets.dtype), references, tuple(shapes))[
        0, 0, 0
    ].detach()


def _points(draw: np.random.Generator) -> Iterator[Case]:
    for about, shapes in (
        ("a square level", [(8, 8)]),
        ("a wide level", [(4, 16)]),
        ("two levels", [(10, 6), (5, 3)]),
        ("two levels", [(3, 9), (6, 7)]),
    ):
        reference, offsets = draw.uniform(size=2), draw.normal(0, 2, (len(shapes), 2, 2))
        yield Case(about, (torch.from_numpy(reference), torch.from_numpy(offsets), shapes))


def _overlap(predicted: Tensor, true: Tensor) -> Tensor:
    return pairwise_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))


def _boxes(draw: np.random.Generator) -> Iterator[Case]:
    box = torch.tensor([[0.2, 0.3, 0.4, 0.5]])
    yield Case("a box and itself", (box, box))
    for _ in range(5):
        both = (np.concatenate([draw.uniform(0.3, 0.7, (n, 2)), draw.uniform(0.1, 0.6, (n, 2))], 1) for n in (3, 2))
        yield Case("random boxes", tuple(map(torch.from_numpy, both)))


def _positives(score: Tensor, k: int, threshold: float) -> Pairs:
    return one_to_many(score.tolist(), threshold, k, exclusive=False)


def _scores(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one score over the threshold", (torch.tensor([[0.1, 0.9, 0.2, 0.3]]), 2, 0.4))
    yield Case("no score over the threshold", (torch.tensor([[0.1, 0.2], [0.3, 0.25]]), 2, 0.4))
    yield Case("a score that is exactly the threshold", (torch.tensor([[0.5, 0.75, 0.25]]), 2, 0.5))
    yield Case("more than k scores over the threshold", (torch.tensor([[0.5, 0.9, 0.8, 0.7]]), 2, 0.4))
    yield Case("a query that is good for two objects", (torch.tensor([[0.9, 0.1], [0.8, 0.2]]), 1, 0.4))
    for _ in range(10):
        table = draw.permutation(30)[: 3 * int(draw.integers(4, 9))].reshape(3, -1) / 30 + 0.01
        yield Case(
            "random scores", (torch.from_numpy(table), int(draw.integers(1, 5)), float(draw.choice([0.2, 0.4, 0.7])))
        )


def _box_loss(predicted: Tensor, true: Tensor, num_objects: int) -> Tensor:
    zeros, numbers = torch.zeros(len(true), dtype=torch.long), torch.arange(len(true))
    pairs = Matches(layer=zeros, image=zeros, query=numbers, target=numbers)
    predictions = Predictions(predicted.new_zeros(1, 1, len(true), 1), predicted[None, None])
    return l1_loss(predictions, Targets.from_list([zeros], [true]), pairs)[0] / num_objects


def _whole_and_parts(
    box_loss: Callable[..., Tensor], predicted: Tensor, true: Tensor, num_objects: int
) -> dict[str, Any]:
    parts = box_loss(predicted[:1], true[:1], num_objects), box_loss(predicted[1:], true[1:], num_objects)
    return {"whole batch": box_loss(predicted, true, num_objects), "sum of two micro-batches": parts[0] + parts[1]}


def _matched_boxes(draw: np.random.Generator) -> Iterator[Case]:
    for objects in (2, 3, 8):
        true, noise = draw.uniform(size=(objects, 4)), draw.normal(0, 0.1, (objects, 4))
        yield Case(f"{objects} objects", (torch.from_numpy(true + noise), torch.from_numpy(true), objects))


def _refine(reference: Tensor, deltas: list[Tensor], shift: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Look forward twice, as the decoder does: the box of a layer is relative to the box of the layer before, through which
    its gradient goes, and the start of that one is detached."""
    boxes, starts = [], [reference]
    for delta in deltas:
        starts.append(shift(starts[-1], delta).detach())
    for layer, delta in enumerate(deltas):
        anchor = shift(starts[layer - 1], deltas[layer - 1]) if layer else reference
        boxes.append(shift(anchor, delta))
    return boxes


def _boxes_and_reach(
    refine: Callable[..., list[Tensor]],
    reference: Tensor,
    deltas: list[Tensor],
    shift: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Any]:
    deltas = [delta.clone().requires_grad_() for delta in deltas]
    boxes = refine(reference, deltas, shift)
    pulls = [torch.autograd.grad(box.sum(), deltas, retain_graph=True, allow_unused=True) for box in boxes]
    table = [[0.0 if pull is None else pull.abs().sum().item() for pull in row] for row in pulls]
    return {"boxes": torch.stack(boxes), "gradient [box of layer, offsets of layer]": table}


def _offsets(draw: np.random.Generator) -> Iterator[Case]:
    for layers in (1, 2, 3, 4):
        deltas = [torch.from_numpy(draw.normal(0, 0.5, (2, 4))) for _ in range(layers)]
        yield Case(f"{layers} layer(s)", (torch.from_numpy(draw.uniform(0.2, 0.8, (2, 4))), deltas, LogitBoxes()))


def _first_difference(found: Any, expected: dict[str, Any], arguments: tuple[Any, ...]) -> str | None:
    """Of several observations the first that differs, by name."""
    wrong = ((name, differs(found[name], value)) for name, value in expected.items())
    return next((f"({name}) {text}" for name, text in wrong if text is not None), None)


EXERCISES = (
    Exercise("10.1", "class_of", _class_of, _categories),
    Exercise("10.2", "prepare", _prepare, _pictures),
    Exercise("10.3", "best_pairs", _best_pairs, _probabilities),
    Exercise("10.4", "sampling_locations", _sampling_locations, _points),
    Exercise("10.5", "overlap", _overlap, _boxes),
    Exercise("10.6", "positives", _positives, _scores),
    Exercise("10.7", "box_loss", _box_loss, _matched_boxes, observe=_whole_and_parts, compare=_first_difference),
    Exercise("10.8", "refine", _refine, _offsets, observe=_boxes_and_reach, compare=_first_difference),
)
