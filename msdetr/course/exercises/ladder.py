"""Notebook 11, the ladder: who sees whom, noised objects and their known pairs, repeated objects, assignment by IoU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...analysis.ladder import who_sees_whom
from ...matching import IoUMatcher
from ...matching.one_to_many import favourite
from ...matching.score import largest
from ...methods.denoising_queries import Draws, Slots, move_corners
from ...modules.context import Layout
from ...structures import Predictions, QueryGroup, Targets
from .exercise import Case, Exercise
from .matching import Pairs, Table, costs, pairs_of, tables
from .values import show

Group = tuple[str, int, int, list[str]]  # name, queries, parts, names of the groups that it reads


def _sees(groups: Sequence[Group]) -> Tensor:
    def group(name: str, size: int, parts: int, reads: list[str]) -> QueryGroup:
        return QueryGroup(name, *torch.zeros(3, 1, size, 4), parts=parts, reads=tuple(reads))

    return torch.from_numpy(who_sees_whom(Layout.of([group(*given) for given in groups])))


def _groups(draw: np.random.Generator) -> Iterator[Case]:
    primary: Group = ("primary", 3, 1, [])
    yield Case("the primary group alone", ([primary],))
    yield Case("H-DETR's second group", ([primary, ("hybrid", 4, 1, [])],))
    yield Case("Group DETR's two further groups", ([primary, ("group", 6, 2, [])],))
    yield Case("DN-DETR's noised objects, twice", ([primary, ("denoising", 4, 2, ["primary"])],))
    yield Case("a group that reads, in front", ([("denoising", 4, 2, ["primary"]), primary],))
    yield Case(
        "three groups, of which one reads two",
        ([primary, ("hybrid", 2, 1, []), ("last", 2, 2, ["primary", "hybrid"])],),
    )
    for _ in range(4):
        sizes, parts = draw.integers(1, 4, 3).tolist(), draw.integers(1, 4, 3).tolist()
        reads: list[list[str]] = [[], ["a"] if draw.uniform() < 0.5 else [], ["b"]]
        yield Case("random groups", ([(n, s * p, p, r) for n, s, p, r in zip("abc", sizes, parts, reads)],))


def _repeated(cost: Table, k: int) -> Pairs:
    objects, queries = linear_sum_assignment(np.repeat(np.array(cost), k, axis=0))
    return {(int(j) // k, int(i)) for j, i in zip(objects, queries)}


def _tables_to_repeat(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one object", ([[3.0, 1.0, 2.0]], 2))
    yield Case("objects that want the same two queries", ([[1.0, 1.0, 5.0, 6.0], [1.0, 2.0, 9.0, 9.0]], 2))
    yield Case("k = 1", ([[1.0, 2.0, 9.0], [1.0, 7.0, 9.0]], 1))
    for case in costs(draw):
        (table,) = case.arguments
        yield Case(case.about, (table, int(draw.integers(1, len(table[0]) // len(table) + 1))))


def _as_cheap(found: object, expected: Pairs, arguments: tuple[Table, int]) -> str | None:
    """Assignments of the same total cost are equally right."""
    cost, k = arguments
    try:
        pairs = [(int(j), int(i)) for j, i in found]
        total = sum(cost[j][i] for j, i in pairs)
    except (TypeError, ValueError, IndexError):
        return f"returns {show(found)}, expected pairs (object, query)"
    per_object = [sum(j == target for j, _ in pairs) for target in range(len(cost))]
    if per_object != [k] * len(cost):
        return f"returns {show(found)}, in which the objects have {per_object} queries, expected {k} each"
    if len({i for _, i in pairs}) < len(pairs):
        return f"returns {show(found)}, in which a query serves twice"
    best = sum(cost[j][i] for j, i in expected)
    return (
        None
        if abs(total - best) < 1e-9
        else f"returns {show(found)} with a total cost of {total:g}, it can be had for {best:g}"
    )


def _known_pairs(counts: Sequence[int], groups: int, negatives: bool) -> set[tuple[int, int, int]]:
    labels = [torch.zeros(count, dtype=torch.long) for count in counts]
    targets = Targets.from_list(labels, [torch.zeros(count, 4) for count in counts])
    slots = Slots.of(targets, groups, negatives)
    columns = targets.image[slots.object], slots.slot, slots.object
    return set(zip(*(column[~slots.negative].tolist() for column in columns)))


def _numbers_of_objects(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one image, one group", ([3], 1, False))
    yield Case("one image, two groups", ([2], 2, False))
    yield Case("images with different numbers of objects", ([1, 3], 2, False))
    yield Case("an image without objects", ([2, 0, 1], 2, False))
    yield Case("negatives beside the positives", ([2], 2, True))
    yield Case("no objects at all", ([0, 0], 2, True))
    for _ in range(8):
        counts = draw.integers(0, 4, int(draw.integers(1, 4))).tolist()
        yield Case("random numbers", (counts, int(draw.integers(1, 4)), bool(draw.integers(2))))


def _noised(box: Tensor, amount: Tensor, sign: Tensor, scale: float, negative: bool) -> Tensor:
    draws = Draws(torch.zeros(1), torch.zeros(1, dtype=torch.long), amount[None], sign[None])
    return move_corners(box[None], draws, scale, torch.tensor([negative]))[0]


def _boxes_to_noise(draw: np.random.Generator) -> Iterator[Case]:
    box = torch.tensor([0.5, 0.5, 0.4, 0.2], dtype=torch.float64)
    plus, nothing = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    yield Case("a positive that is not moved", (box, nothing, plus, 0.4, False))
    yield Case("a negative that is moved as little as possible", (box, nothing, plus, 0.4, True))
    yield Case("corners that are all moved to the right and down", (box, plus / 2, plus, 0.4, False))
    yield Case(
        "a box that grows beyond the image", (box * 1.9, plus, torch.tensor([-1.0, -1, 1, 1]).double(), 1.0, False)
    )
    for trial in range(12):
        random = (
            np.concatenate([draw.uniform(0.3, 0.7, 2), draw.uniform(0.1, 0.5, 2)]),
            draw.uniform(size=4),
            draw.choice([-1.0, 1], 4),
        )
        yield Case("random noise", (*map(torch.from_numpy, random), float(draw.choice([0.2, 0.4, 0.8])), trial % 2 > 0))


def _by_iou(table: Table, threshold: float, k: int) -> Pairs:
    overlaps = torch.tensor(table, dtype=torch.float64)[None]
    targets = Targets.from_list([torch.zeros(len(table), dtype=torch.long)], [torch.zeros(len(table), 4)])
    predictions = Predictions(torch.zeros(1, 1, len(table[0]), 1), torch.zeros(1, 1, len(table[0]), 4))
    matcher = IoUMatcher(threshold, min(k, len(table[0])))
    return pairs_of(
        matcher.assign(largest(overlaps.masked_fill(~favourite(overlaps, targets), -1), k), predictions, targets)
    )


def _tables_of_overlaps(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("a best query that overlaps too little", ([[0.1, 0.3, 0.2]], 0.6, 4))
    yield Case("an IoU that is exactly the threshold", ([[0.6, 0.9, 0.5]], 0.6, 4))
    yield Case("a best query that overlaps another object more", ([[0.9, 0.1], [0.8, 0.0]], 0.6, 4))
    yield Case("no overlap at all", ([[0.0, 0.0]], 0.6, 4))
    for about, table in tables(draw):
        for threshold, k in ((0.6, 2), (int(draw.integers(1, 9)) / 10, int(draw.integers(1, 5)))):
            yield Case(f"{about}, threshold {threshold:g}, k {k}", (table, threshold, k))


EXERCISES = (
    Exercise("11.1", "sees", _sees, _groups),
    Exercise("11.2", "known_pairs", _known_pairs, _numbers_of_objects),
    Exercise("11.3", "noised_box", _noised, _boxes_to_noise),
    Exercise("11.4", "repeated", _repeated, _tables_to_repeat, compare=_as_cheap),
    Exercise("11.5", "by_iou", _by_iou, _tables_of_overlaps),
)
