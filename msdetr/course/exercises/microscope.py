"""Notebook 08, the microscope: what a pair costs, why it was not matched, what would change that, and how matches flip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ...analysis.algorithm import scene_of_scores
from ...matching import STATUSES, HungarianMatcher, OneToManyMatcher, Status
from ...structures import Predictions, Targets
from .exercise import Case, Exercise
from .matching import Table, one_to_many, tables


def _pair_cost(p: float, box: Tensor, true: Tensor) -> float:
    logits = torch.logit(torch.tensor(p, dtype=torch.float64)).view(1, 1, 1, 1)
    targets = Targets.from_list([torch.tensor([0])], [true[None]])
    return HungarianMatcher().cost(Predictions(logits, box.view(1, 1, 1, 4)), targets).item()


def _pairs_to_cost(draw: np.random.Generator) -> Iterator[Case]:
    box = torch.tensor([0.5, 0.5, 0.4, 0.4], dtype=torch.float64)
    yield Case("a box that fits, and certainty", (0.99, box, box))
    yield Case("a box that fits, and p = 0.5", (0.5, box, box))
    yield Case("a box shifted by a quarter of its width", (0.5, box, box + torch.tensor([0.1, 0, 0, 0])))
    yield Case("a box of half the height", (0.3, box, box * torch.tensor([1, 1, 1, 0.5])))
    yield Case("boxes apart", (0.6, box * 0.4, box + 0.3))
    for _ in range(12):
        boxes = torch.from_numpy(np.concatenate([draw.uniform(0.3, 0.7, (2, 2)), draw.uniform(0.1, 0.6, (2, 2))], 1))
        yield Case("a random pair", (draw.uniform(0.02, 0.98), *boxes))


WORDS = {Status.MATCHED: "matched", Status.BELOW: "score", Status.LOST: "rival", Status.BEYOND: "place"}


def _why_not(table: Table, target: int, query: int, tau: float, k: int) -> str:
    matcher = OneToManyMatcher(1.0, tau, min(k, len(table[0])))
    return WORDS[STATUSES[matcher.explain(*scene_of_scores(table)).status[0, target, query]]]


def _pairs_to_explain(draw: np.random.Generator) -> Iterator[Case]:
    row = [0.9, 0.7, 0.6, 0.2]
    yield Case("a query that is matched", ([row], 0, 1, 0.5, 2))
    yield Case("a query that comes third", ([row], 0, 2, 0.5, 2))
    yield Case("a query that scores too little", ([row], 0, 3, 0.5, 2))
    yield Case("a score that is exactly the threshold", ([[0.5, 0.4]], 0, 0, 0.5, 2))
    yield Case("a query that prefers another object", ([[0.9, 0.1], [0.7, 0.6]], 1, 0, 0.5, 2))
    yield Case("a query that scores alike with two objects", ([[0.7, 0.1], [0.7, 0.6]], 1, 0, 0.5, 2))
    yield Case("a query that scores too little and prefers another object", ([[0.4, 0.9], [0.3, 0.1]], 1, 0, 0.5, 2))
    yield Case("better queries that all prefer another object", ([[0.9, 0.9, 0.1], [0.8, 0.8, 0.6]], 1, 2, 0.5, 1))
    for about, table in tables(draw, 60):
        target, query = int(draw.integers(len(table))), int(draw.integers(len(table[0])))
        threshold = 0.5 if draw.uniform() < 0.5 else int(draw.integers(0, 7)) / 10 + 0.05
        yield Case(about, (table, target, query, threshold, int(draw.integers(1, 4))))


def _needed_k(table: Table, target: int, query: int, tau: float) -> int | None:
    enough = (k for k in range(1, len(table[0]) + 1) if (target, query) in one_to_many(table, tau, k))
    return next(enough, None)


def _pairs_to_let_in(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("the best query", ([[0.9, 0.7, 0.6]], 0, 0, 0.4))
    yield Case("the third query", ([[0.9, 0.7, 0.6]], 0, 2, 0.4))
    yield Case("the second of two that score alike", ([[0.8, 0.8]], 0, 1, 0.4))
    yield Case("the first of two that score alike", ([[0.8, 0.8]], 0, 0, 0.4))
    yield Case("a score that is exactly the threshold", ([[0.9, 0.4]], 0, 1, 0.4))
    yield Case("a query that prefers another object", ([[0.9, 0.1], [0.7, 0.6]], 1, 0, 0.4))
    yield Case("better queries that all prefer another object", ([[0.9, 0.9, 0.1], [0.8, 0.8, 0.6]], 1, 2, 0.4))
    yield Case("a query that scores alike and prefers another object", ([[0.9, 0.1], [0.7, 0.7]], 1, 1, 0.4))
    for about, table in tables(draw, 60):
        target, query = int(draw.integers(len(table))), int(draw.integers(len(table[0])))
        yield Case(about, (table, target, query, int(draw.integers(0, 6)) / 10))


def _flip_rate(before: Mapping[int, set[int]], after: Mapping[int, set[int]]) -> float | None:
    """By counting pairs, as ``analysis.stability`` does."""
    old, new = ({(target, query) for target, some in found.items() for query in some} for found in (before, after))
    objects = {target for target, _ in old | new}
    changes = [1 - sum(t == j for t, _ in old & new) / sum(t == j for t, _ in old | new) for j in objects]
    return float(np.mean(changes)) if changes else None


def _records(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("nothing that changed", ({0: {1}, 1: {2}}, {0: {1}, 1: {2}}))
    yield Case("one of two objects with another query", ({0: {1}, 1: {2}}, {0: {1}, 1: {3}}))
    yield Case("an object that exchanged one of three queries", ({0: {1, 2, 3}}, {0: {1, 2, 4}}))
    yield Case("an object that lost its query", ({0: {1}, 1: {2}}, {0: {1}, 1: set()}))
    yield Case("an object that got its first query", ({0: set(), 1: {2}}, {0: {1}, 1: {2}}))
    yield Case("an object without a query before and after", ({0: set(), 1: {2}}, {0: set(), 1: {3, 2}}))
    yield Case("objects without any query", ({0: set()}, {0: set()}))
    for _ in range(10):
        size = int(draw.integers(1, 4))
        before, after = (
            {j: set(draw.choice(5, int(draw.integers(0, 4)), replace=False).tolist()) for j in range(size)}
            for _ in "12"
        )
        yield Case("random queries", (before, after))


EXERCISES = (
    Exercise("8.1", "pair_cost", _pair_cost, _pairs_to_cost),
    Exercise("8.2", "why_not", _why_not, _pairs_to_explain),
    Exercise("8.3", "needed_k", _needed_k, _pairs_to_let_in),
    Exercise("8.4", "flip_rate", _flip_rate, _records),
)
