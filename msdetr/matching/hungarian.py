"""One-to-one matching: the assignment of least total cost (Hungarian algorithm), as in DETR."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import InputError
from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .explain import Decisions, Status, object_served, pair_table
from .score import focal_cost, giou_cost, l1_cost, places

Cost = Callable[[Predictions, Targets], Tensor]  # -> [K, T, Q], queries and objects of the same image


@dataclass(frozen=True)
class HungarianMatcher(Matcher):
    """Each object gets the one query that makes the total cost of its image least; pairs are sorted by query.

    costs: name -> (weight, cost); see ``detection_costs``. Costs of weight 0 are not computed.
    Ties are broken by scipy's ``linear_sum_assignment``, which is deterministic, on the host for every device (F49).
    More objects than queries (F45): the cheapest objects are matched, a warning says how many are not.
    parts: the queries are so many equal parts, each of which is matched to all objects (Group DETR, Section 3.2).

    Raises InputError where every cost has weight 0.
    """

    costs: Mapping[str, tuple[float, Cost]] = field(default_factory=lambda: detection_costs())
    parts: int = 1

    def __post_init__(self):
        if not any(weight for weight, _ in self.costs.values()):
            raise InputError(
                f"one-to-one matching: the weights of all costs ({', '.join(self.costs)}) are 0, so no query suits an object "
                "better than another; give one of them a weight"
            )

    @property
    def each_object(self) -> int:
        return self.parts

    def terms(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Name -> weighted cost [K, T, Q], of those with a weight."""
        return {name: weight * cost(predictions, targets) for name, (weight, cost) in self.costs.items() if weight}

    def cost(self, predictions: Predictions, targets: Targets) -> Tensor:
        """[K, T, Q]: the weighted sum of the costs."""
        first, *others = self.terms(predictions, targets).values()
        return sum(others, first)

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        return (self.cost(predictions, targets),)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        cost = host[0].numpy()
        counts = targets.counts.tolist()
        starts = np.cumsum([0, *counts])
        size = cost.shape[-1] // self.parts
        if (unmatched := sum(max(0, count - size) for count in counts)) > 0:
            warnings.warn(
                f"{unmatched} objects of this batch stay unmatched: an image has up to {max(counts)} objects and the "
                f"model only {size} queries",
                stacklevel=4,
            )
        pairs = []
        for layer in range(len(cost)):
            for image, count in enumerate(counts):
                for start in [part * size for part in range(self.parts if count else 0)]:
                    rows = slice(starts[image], starts[image + 1])
                    target, query = linear_sum_assignment(cost[layer, rows, start : start + size])
                    order = np.argsort(query)
                    place = np.full(len(order), layer), np.full(len(order), image)
                    pairs.append((*place, query[order] + start, target[order] + rows.start))
        columns = [np.concatenate(column) for column in zip(*pairs)] if pairs else [np.zeros(0, dtype=np.int64)] * 4
        return Matches(*(torch.from_numpy(column.astype(np.int64)) for column in columns))

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        """A query that is not matched to an object serves another one, or costs more than the one that is."""
        cost = self.cost(predictions, targets)
        matched = pair_table(matches, cost.shape)
        served = object_served(matched, targets)
        return Decisions(
            matches,
            matched,
            {Status.TAKEN: ~matched & (served >= 0), Status.COSTLIER: served < 0},
            place=places(-cost),
            limit=torch.full(cost.shape[:2], self.parts),
            rival=served.masked_fill(matched, -1),
            added=torch.zeros_like(matched),
        )


def detection_costs(
    classification: float = 2.0, l1: float = 5.0, giou: float = 2.0, giou_eps: float = 0.0, focal_alpha: float = 0.25
) -> Mapping[str, tuple[float, Cost]]:
    """The weighted costs of Deformable DETR: focal class cost, L1 distance and negative generalised IoU of the boxes."""
    overlap = partial(giou_cost, eps=giou_eps) if giou_eps else giou_cost
    classes = partial(focal_cost, alpha=focal_alpha) if focal_alpha != 0.25 else focal_cost
    return {"l1": (l1, l1_cost), "class": (classification, classes), "giou": (giou, overlap)}
