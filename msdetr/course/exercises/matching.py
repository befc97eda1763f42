"""Notebook 03, matching: from the IoU of two boxes to the rules of one-to-many matching, and to choosing tau and k.

Tables are nested lists, ``table[j][i]`` for object j and query i, with scores in tenths, so that ties and scores equal to tau
occur all the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ... import boxes as box_ops
from ...analysis.algorithm import scene_of_scores, steps
from ...analysis.arrays import predictions_from_arrays, targets_from_arrays
from ...matching import HungarianMatcher, OneToManyMatcher, ReleasedOneToMany, merge_matches, score
from ...structures import Matches
from .exercise import Case, Exercise
from .values import show

Table = list[list[float]]
Pairs = set[tuple[int, int]]

# ---------------------------------------------------------------- boxes and scores


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return box_ops.iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)).item()


def pairs_of_boxes(draw: np.random.Generator) -> Iterator[Case]:
    """Two boxes (x0, y0, x1, y1), as tuples: all the ways in which they can lie."""
    for about, a, b in (
        ("a box and itself", (0, 0, 2, 1), (0, 0, 2, 1)),
        ("two boxes that overlap in one quarter", (0, 0, 2, 2), (1, 1, 3, 3)),
        ("a box inside the other", (0, 0, 4, 4), (1, 1, 2, 3)),
        ("two boxes that share an edge", (0, 0, 1, 1), (1, 0, 2, 1)),
        ("two boxes side by side, apart", (0, 0, 1, 1), (2, 0, 3, 1)),
        ("two boxes apart in both directions", (0, 0, 1, 1), (3, 2, 5, 3)),
        ("two boxes one above the other", (0, 3, 2, 4), (0, 0, 2, 1)),
        ("a box without area and another", (1, 1, 1, 2), (0, 0, 3, 3)),
        ("two equal boxes without area", (1, 1, 1, 1), (1, 1, 1, 1)),
    ):
        yield Case(about, (tuple(map(float, a)), tuple(map(float, b))))
    for trial in range(30):
        corners = draw.integers(0, 8, (2, 2)) + draw.uniform(0, 0.5, (2, 2))
        sizes = draw.uniform(0.5, 4, (2, 2))
        if trial % 3 == 0:  # small, as boxes in shares of an image are
            corners, sizes = corners / 20, sizes / 10
        a, b = (tuple(row) for row in np.concatenate([corners, corners + sizes], 1).tolist())
        yield Case("two random boxes", (a, b))


def _score_table(probability: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor, alpha: float) -> Tensor:
    predictions = predictions_from_arrays(boxes, probability)
    return score(predictions, targets_from_arrays(objects, labels), alpha)[0]


def _scenes(draw: np.random.Generator) -> Iterator[Case]:
    for trial in range(20):
        queries, objects, classes = int(draw.integers(2, 7)), int(draw.integers(1, 4)), int(draw.integers(2, 5))
        if trial == 0:  # small enough to follow by hand
            queries, objects, classes = 2, 1, 2
        true = np.concatenate([draw.uniform(0.3, 0.7, (objects, 2)), draw.uniform(0.1, 0.5, (objects, 2))], 1)
        guess = (true[draw.integers(0, objects, queries)] + draw.normal(0, 0.05, (queries, 4))).clip(0.01, 1)
        if trial == 0:
            guess[0], guess[1] = true[0], (0.9, 0.9, 0.01, 0.01)
        arrays = draw.uniform(0, 1, (queries, classes)), guess, draw.integers(0, classes, objects), true
        yield Case(
            f"{queries} queries, {objects} object(s) and {classes} classes",
            (*map(torch.from_numpy, arrays), 0.3 if trial < 10 else draw.integers(0, 11) / 10),
        )


# ---------------------------------------------------------------- one-to-one


def _one_to_one(cost: Table) -> list[int]:
    return linear_sum_assignment(np.array(cost))[1].tolist()


def costs(draw: np.random.Generator) -> Iterator[Case]:
    """Cost tables [objects][queries], no more objects than queries."""
    yield Case("one object", ([[3.0, 1.0, 2.0]],))
    yield Case("objects that want different queries", ([[1.0, 5.0, 6.0], [5.0, 1.0, 6.0], [6.0, 5.0, 1.0]],))
    yield Case("two objects that want the same query", ([[1.0, 2.0, 9.0], [1.0, 7.0, 9.0]],))
    yield Case(
        "a first object whose cheapest query costs the others dearly",
        ([[1.0, 2.0, 3.0], [1.0, 8.0, 9.0], [5.0, 3.0, 9.0]],),
    )
    yield Case("negative costs", ([[-2.0, -1.0], [-3.0, 0.5]],))
    for _ in range(25):
        objects = int(draw.integers(1, 5))
        table = draw.integers(-9, 10, (objects, int(draw.integers(objects, 7)))) / 2
        yield Case(f"{objects} object(s)", (table.tolist(),))


def _as_cheap(found: object, expected: list[int], arguments: tuple[Table]) -> str | None:
    """Assignments of the same total cost are equally right."""
    (cost,) = arguments
    try:
        queries = [int(query) for query in found]
        total = sum(row[query] for row, query in zip(cost, queries, strict=True))
    except (TypeError, ValueError, IndexError):
        return f"returns {show(found)}, expected one query for each of the {len(cost)} objects"
    if len(set(queries)) < len(queries) or min(queries) < 0:
        return f"returns {show(queries)}, which gives a query to two objects"
    best = sum(row[query] for row, query in zip(cost, expected))
    return (
        None
        if abs(total - best) < 1e-9
        else f"returns {show(queries)} with a total cost of {total:g}, it can be had for {best:g}"
    )


# ---------------------------------------------------------------- one-to-many


def tables(draw: np.random.Generator, count: int = 40) -> Iterator[tuple[str, Table]]:
    """Score tables in tenths: what is special about each, and the table."""
    yield "a query that is best for two objects", [[0.9, 0.6, 0.2], [0.8, 0.3, 0.5]]
    yield "queries that score alike with an object", [[0.8, 0.8, 0.8, 0.8], [0.5, 0.5, 0.5, 0.5]]
    yield "a query that scores alike with two objects", [[0.5, 0.7], [0.5, 0.7]]
    yield "a score that is exactly the threshold", [[0.4, 0.4, 0.5], [0.1, 0.6, 0.4]]
    yield "scores of 0 only", [[0.0, 0.0], [0.0, 0.0]]
    yield "one object", [[0.9, 0.2, 0.7, 0.5, 0.4]]
    for _ in range(count):
        objects, queries = int(draw.integers(1, 5)), int(draw.integers(1, 8))
        yield (
            f"{objects} object(s) and {queries} quer{'y' if queries == 1 else 'ies'}",
            (draw.integers(0, 11, (objects, queries)) / 10).tolist(),
        )


def pairs_of(matches: Matches) -> Pairs:
    """(object, query) of one image and layer."""
    return set(zip(matches.target.tolist(), matches.query.tolist()))


def one_to_many(table: Table, threshold: float, k: int, exclusive: bool = True) -> Pairs:
    """What Section C (or Algorithm 1 as listed) matches on a score table."""
    return {(j, i) for j, i in np.argwhere(steps(table, threshold, k, exclusive)[-1].alive).tolist()}


def _of_object(scores: list[float], tau: float, k: int) -> list[int]:
    chosen = one_to_many([scores], tau, k)
    return sorted((query for _, query in chosen), key=lambda query: (-scores[query], query))


def _rows(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("one query that is good enough", ([0.1, 0.8, 0.3], 0.4, 2))
    yield Case("more good queries than k", ([0.5, 0.9, 0.7, 0.6], 0.4, 2))
    yield Case("a score that is exactly the threshold", ([0.4, 0.6, 0.4], 0.4, 3))
    yield Case("queries that score alike", ([0.8, 0.8, 0.6, 0.8], 0.4, 2))
    yield Case("no good query", ([0.1, 0.2], 0.4, 2))
    yield Case("k larger than the number of queries", ([0.5, 0.9], 0.4, 6))
    for _ in range(40):
        row = (draw.integers(0, 11, int(draw.integers(1, 9))) / 10).tolist()
        yield Case(f"{len(row)} scores", (row, int(draw.integers(1, 8)) / 10, int(draw.integers(1, 7))))


def _favorites(table: Table) -> list[int]:
    return np.array(table).argmax(0).tolist()


def _tables_alone(draw: np.random.Generator) -> Iterator[Case]:
    for about, table in tables(draw):
        yield Case(about, (table,))


def _tables_and_settings(draw: np.random.Generator) -> Iterator[Case]:
    for about, table in tables(draw):
        for threshold, k in ((0.4, 2), (0.4, 6), (int(draw.integers(0, 8)) / 10, int(draw.integers(1, 5)))):
            yield Case(f"{about}, tau {threshold:g}, k {k}", (table, threshold, k))


def _conflicts(table: Table, tau: float, k: int) -> dict[int, set[int]]:
    served: dict[int, set[int]] = {}
    for target, query in one_to_many(table, tau, k, exclusive=False):
        served.setdefault(query, set()).add(target)
    return {query: objects for query, objects in served.items() if len(objects) > 1}


def _merged(one_to_many: Pairs, one_to_one: Pairs) -> Pairs:
    def flat(pairs: Pairs) -> Matches:
        columns = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
        zeros = torch.zeros_like(columns[0])
        return Matches(zeros, zeros, columns[1], columns[0])

    return pairs_of(merge_matches(flat(one_to_many), flat(one_to_one), num_queries=10, num_images=1))


def _pairs_to_merge(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("a one-to-one pair that is there already", ({(0, 1), (0, 2)}, {(0, 1)}))
    yield Case("a one-to-one pair of a query without an object", ({(0, 1)}, {(0, 3), (1, 2)}))
    yield Case("a one-to-one pair whose query serves another object", ({(0, 0)}, {(0, 1), (1, 0)}))
    yield Case("no one-to-many pairs", (set(), {(0, 1), (1, 0)}))
    for _ in range(20):
        scene = scene_of_scores((draw.integers(0, 11, (int(draw.integers(1, 5)), 6)) / 10).tolist())
        several, single = OneToManyMatcher(1.0, 0.5, 2)(*scene), HungarianMatcher()(*scene)
        yield Case("the pairs of a random table", (pairs_of(several), pairs_of(single)))


def _released(table: Table, tau: float, k: int) -> Pairs:
    matcher = ReleasedOneToMany(1.0, tau, min(k, len(table[0])), positive_fraction=1.0)
    predictions, targets = scene_of_scores(table)
    return pairs_of(matcher(predictions, targets))


def _released_tables(draw: np.random.Generator) -> Iterator[Case]:
    """A table becomes logits here, and 0.5 is the only tenth that comes back to the last digit: tau is 0.5, or no tenth."""
    yield Case("an object that no query prefers", ([[0.9, 0.8, 0.1], [0.8, 0.7, 0.0]], 0.45, 2))
    yield Case("a best query that scores less than the threshold", ([[0.1, 0.3, 0.2]], 0.45, 2))
    yield Case("a score that is exactly the threshold", ([[0.5, 0.9, 0.5]], 0.5, 3))
    for about, table in tables(draw):
        for threshold, k in ((0.5, 2), (0.45, 6), (int(draw.integers(0, 9)) / 10 + 0.05, int(draw.integers(1, 5)))):
            yield Case(f"{about}, tau {threshold:g}, k {k}", (table, threshold, k))


# ---------------------------------------------------------------- choosing tau and k


def _strictest(table: Table, thresholds: list[float]) -> float | None:
    served = [
        threshold
        for threshold in thresholds
        if len({target for target, _ in one_to_many(table, threshold, len(table[0]))}) == len(table)
    ]
    return max(served) if served else None


def _tables_and_thresholds(draw: np.random.Generator) -> Iterator[Case]:
    for about, table in tables(draw):
        yield Case(about, (table, [0.05, 0.25, 0.45, 0.65, 0.85]))
    yield Case("thresholds in no order", ([[0.9, 0.3], [0.2, 0.6]], [0.5, 0.1, 0.7, 0.3]))
    yield Case("no threshold that serves all", ([[0.9, 0.8], [0.5, 0.4]], [0.1, 0.3]))
    yield Case("a score that is exactly a threshold", ([[0.5, 0.2]], [0.5, 0.25]))


def _largest_k(table: Table, tau: float, share: float) -> int | None:
    queries = len(table[0])
    fitting = [k for k in range(1, queries + 1) if len(one_to_many(table, tau, k)) <= share * queries]
    return max(fitting) if fitting else None


def _tables_and_shares(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("a share that is just reached", ([[0.9, 0.8, 0.7, 0.6]], 0.4, 0.5))
    yield Case("objects that use up the share with one query each", ([[0.9, 0.1, 0.2], [0.2, 0.9, 0.1]], 0.4, 0.4))
    yield Case("no query over the threshold", ([[0.1, 0.2, 0.3]], 0.4, 0.5))
    for about, table in tables(draw, 30):
        yield Case(about, (table, int(draw.integers(1, 7)) / 10, float(draw.choice([0.15, 0.3, 0.5, 0.75]))))


EXERCISES = (
    Exercise("3.1", "iou", _iou, pairs_of_boxes),
    Exercise("3.2", "score_table", _score_table, _scenes),
    Exercise("3.3", "one_to_one", _one_to_one, costs, compare=_as_cheap),
    Exercise("3.4", "queries_of_object", _of_object, _rows),
    Exercise("3.5", "favorites", _favorites, _tables_alone),
    Exercise("3.6", "conflicts", _conflicts, _tables_and_settings),
    Exercise("3.7", "merge_pairs", _merged, _pairs_to_merge),
    Exercise("3.8", "released", _released, _released_tables),
    Exercise("3.9", "strictest_threshold", _strictest, _tables_and_thresholds),
    Exercise("3.10", "largest_k", _largest_k, _tables_and_shares),
)
