"""One-to-many matching taken apart: its steps on a small table, all its rules side by side, and sweeps over settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.boxes import cxcywh_to_xyxy, iou
from msdetr.matching import HungarianMatcher, MatchingRules, OneToManyMatcher, ReleasedOneToMany, merge_matches
from msdetr.structures import Matches, Predictions, Targets

SECTION_C = "exclusive (Section C)"
LISTED = "literal (Algorithm 1)"
MERGED = "exclusive + merge"
LISTED_MERGED = "literal + merge"
RELEASED = "released code"


@dataclass(frozen=True)
class AlgorithmStep:
    """A line of the algorithm after it ran: table [T, Q] of scores, and which pairs [T, Q] are still in the running."""

    line: str
    words: str
    table: np.ndarray
    alive: np.ndarray


def toy_scene() -> tuple[Predictions, Targets]:
    """Three objects of three classes and seven queries, with round numbers. Objects 0 and 1 overlap, query 2 lies
    halfway between them, and object 2 has no good box."""
    objects = [[0.30, 0.60, 0.40, 0.40], [0.50, 0.60, 0.40, 0.40], [0.85, 0.15, 0.20, 0.20]]
    boxes = [
        [0.30, 0.60, 0.40, 0.40], [0.25, 0.60, 0.40, 0.40], [0.40, 0.60, 0.40, 0.40], [0.55, 0.60, 0.40, 0.40],
        [0.50, 0.60, 0.40, 0.20], [0.85, 0.25, 0.20, 0.20], [0.15, 0.15, 0.20, 0.20],
    ]  # fmt: skip
    scores = [
        [0.8, 0.2, 0.0], [0.4, 0.1, 0.0], [0.6, 0.5, 0.0], [0.1, 0.7, 0.0],
        [0.1, 0.6, 0.1], [0.0, 0.1, 0.3], [0.2, 0.2, 0.1],
    ]  # fmt: skip
    return predictions_from_arrays(boxes, scores), targets_from_arrays(objects, [0, 1, 2])


def scene_of_scores(table: Sequence[Sequence[float]]) -> tuple[Predictions, Targets]:
    """A scene with any score table [T, Q] you like, for matching with alpha = 1: object j has class j and query i gives
    it the probability ``table[j][i]``. All boxes are alike."""
    probability = np.asarray(table, dtype=np.float64).T
    num_queries, num_objects = probability.shape
    box = np.full((max(num_queries, num_objects), 4), 0.5)
    return predictions_from_arrays(box[:num_queries], probability), targets_from_arrays(
        box[:num_objects], range(num_objects)
    )


def simulated_scenes(num_images: int = 40, num_queries: int = 60, seed: int = 0) -> tuple[Predictions, Targets]:
    """Made-up images of 1 to 7 objects and predictions around them, from very close to far off, that are on average the
    surer the better their box is. For trying settings without a trained detector."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 8, num_images)
    objects = [np.concatenate([draw.uniform(0.25, 0.75, (n, 2)), draw.uniform(0.15, 0.45, (n, 2))], 1) for n in counts]
    labels = [draw.integers(0, 8, n) for n in counts]
    boxes, scores = np.empty((1, num_images, num_queries, 4)), draw.uniform(0.0, 0.1, (1, num_images, num_queries, 8))
    for image, (true, label) in enumerate(zip(objects, labels, strict=True)):
        near = draw.integers(0, len(true), num_queries)
        spread = draw.exponential(0.4, (num_queries, 1)) * true[near][:, [2, 3, 2, 3]]
        guess = true[near] + spread * draw.normal(0, 1, (num_queries, 4))
        guess[:, 2:] = guess[:, 2:].clip(0.02, 1)
        overlap = iou(_corners(guess), _corners(true[near])).numpy()
        boxes[0, image] = guess
        scores[0, image, range(num_queries), label[near]] = overlap**2 * draw.uniform(0.3, 1.0, num_queries)
    targets = Targets.from_list([torch.from_numpy(x) for x in labels], [torch.from_numpy(x) for x in objects])
    return predictions_from_arrays(boxes, scores), targets


def steps(table: np.ndarray, threshold: float, k: int, exclusive: bool = True) -> list[AlgorithmStep]:
    """The lines of Section C (exclusive) or Algorithm 1 as listed, and what each leaves of the score table [T, Q]."""
    table = np.asarray(table, dtype=np.float64)
    alive = np.ones(table.shape, dtype=bool)
    done = [AlgorithmStep("score = α · p + (1 − α) · IoU", "every object with every query", table, alive)]
    if exclusive:
        alive = np.arange(len(table))[:, None] == table.argmax(0)
        done.append(
            AlgorithmStep("favorite = argmax over objects", "a query competes for one object only", table, alive)
        )
    alive = alive & _best(np.where(alive, table, -np.inf), k)
    done.append(AlgorithmStep(f"top-k of every object, k = {k}", "an object's best queries", table, alive))
    alive = alive & (table > threshold)
    done.append(AlgorithmStep(f"score > τ = {threshold:g}", "only good ones", table, alive))
    return done


def rules(
    predictions: Predictions, targets: Targets, alpha: float = 0.3, threshold: float = 0.4, k: int = 6
) -> dict[str, np.ndarray]:
    """What every rule matches in one image and layer: name -> [T, Q] bool. The released rule is shown without its random
    cap, which would leave a quarter of the queries at most."""
    exclusive = OneToManyMatcher(alpha, threshold, k)(predictions, targets)
    literal = OneToManyMatcher(alpha, threshold, k, exclusive=False)(predictions, targets)
    single = HungarianMatcher()(predictions, targets)
    num_queries = predictions.logits.shape[2]
    found = {
        SECTION_C: exclusive,
        LISTED: literal,
        MERGED: merge_matches(exclusive, single, num_queries, targets.num_images),
        LISTED_MERGED: merge_matches(literal, single, num_queries, targets.num_images, exclusive=False),
        RELEASED: ReleasedOneToMany(alpha, threshold, k, positive_fraction=1.0)(predictions, targets),
    }
    return {name: membership(matches, len(targets), num_queries) for name, matches in found.items()}


def membership(matches: Matches, num_objects: int, num_queries: int) -> np.ndarray:
    """[T, Q] bool: the matched pairs of one image and layer as a table."""
    table = np.zeros((num_objects, num_queries), dtype=bool)
    table[matches.target.cpu(), matches.query.cpu()] = True
    return table


@dataclass(frozen=True)
class Sweep:
    """Matching under values [V] of one setting. positives: matched queries per object. without: share of the objects
    that nobody serves. shared: share of the matched queries that serve more than one object."""

    name: str
    values: np.ndarray
    positives: np.ndarray
    without: np.ndarray
    shared: np.ndarray


def sweep(
    predictions: Predictions, targets: Targets, name: str, values: Sequence[float], matching: MatchingRules
) -> Sweep:
    """One-to-many matching of one layer (K = 1) with ``matching.name`` set to each of the values."""
    rows = []
    for value in values:
        matches = replace(matching, **{name: value}).one_to_many()(predictions, targets)
        served = torch.bincount(matches.target, minlength=len(targets))
        slot = matches.image * predictions.logits.shape[2] + matches.query
        per_query = slot.unique(return_counts=True)[1]
        rows.append(
            (
                len(matches) / max(len(targets), 1),
                (served == 0).double().mean().item(),
                (per_query > 1).double().mean().item() if len(per_query) else 0.0,
            )
        )
    return Sweep(name, np.asarray(values, dtype=np.float64), *np.array(rows).T)


def _best(table: np.ndarray, k: int) -> np.ndarray:
    """[T, Q] bool: the k largest of every row, of equal ones the first."""
    best = np.zeros(table.shape, dtype=bool)
    np.put_along_axis(best, np.argsort(-table, axis=1, kind="stable")[:, :k], True, axis=1)
    return best


def _corners(boxes: np.ndarray) -> torch.Tensor:
    return cxcywh_to_xyxy(torch.from_numpy(boxes))
