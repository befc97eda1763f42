"""One-to-one matching: the assignment of least total cost (Hungarian algorithm), as in DETR."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .score import focal_cost, giou_cost, l1_cost


def hungarian_cost(
    predictions: Predictions, targets: Targets, cost_class: float = 2.0, cost_l1: float = 5.0, cost_giou: float = 2.0
) -> Tensor:
    """[K, T, Q]: weighted sum of the cost terms, for queries and objects of the same image."""
    cost = cost_l1 * l1_cost(predictions, targets)
    if cost_class:  # the encoder's matching does without
        cost = cost_class * focal_cost(predictions, targets) + cost
    return cost + cost_giou * giou_cost(predictions, targets)


@dataclass(frozen=True)
class HungarianMatcher(Matcher):
    """Each object gets the one query that makes the total cost of its image least; pairs are sorted by query.

    Ties are broken by scipy's ``linear_sum_assignment``, which is deterministic, on the host for every device (F49).
    More objects than queries (F45): the cheapest objects are matched, a warning says how many are not.
    """

    cost_class: float = 2.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        return (hungarian_cost(predictions, targets, self.cost_class, self.cost_l1, self.cost_giou),)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        cost = host[0].numpy()
        counts = targets.counts.tolist()
        starts = np.cumsum([0, *counts])
        num_queries = cost.shape[-1]
        if (unmatched := sum(max(0, count - num_queries) for count in counts)) > 0:
            warnings.warn(
                f"{unmatched} objects of this batch stay unmatched: an image has up to {max(counts)} objects and the "
                f"model only {num_queries} queries",
                stacklevel=4,
            )
        pairs = []
        for layer in range(len(cost)):
            for image, count in enumerate(counts):
                if count == 0:
                    continue
                rows = slice(starts[image], starts[image + 1])
                target, query = linear_sum_assignment(cost[layer, rows])
                order = np.argsort(query)
                pairs.append(
                    (np.full(len(order), layer), np.full(len(order), image), query[order], target[order] + rows.start)
                )
        columns = [np.concatenate(column) for column in zip(*pairs)] if pairs else [np.zeros(0, dtype=np.int64)] * 4
        return Matches(*(torch.from_numpy(column.astype(np.int64)) for column in columns))
