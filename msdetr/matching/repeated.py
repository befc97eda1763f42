"""Hungarian matching with every object repeated (Align-DETR's "mixed matching"; Cai et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..checks import count
from ..errors import InputError
from ..structures import Matches, Predictions, Targets
from .explain import Decisions
from .hungarian import HungarianMatcher


@dataclass(frozen=True)
class RepeatedHungarianMatcher(HungarianMatcher):
    """Each object gets k queries, those that make the total cost of its image least, as if it were there k times.

    copies: k, for all layers or one for each. In an image whose objects would take more than half of the queries, k is as
    many as they can have of that half, 1 at least. Pairs are sorted by layer and object.

    Raises InputError for k < 1, or a number of k that is not that of the layers.
    """

    copies: int | tuple[int, ...] = 1

    def __post_init__(self):
        super().__post_init__()
        for k in self.copies if isinstance(self.copies, tuple) else (self.copies,):
            count(k, "repeated matching: copies")

    @property
    def each_object(self) -> int | None:
        return self.copies if isinstance(self.copies, int) else None

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        cost, counts = host[0].numpy(), targets.counts.tolist()
        copies = self.copies if isinstance(self.copies, tuple) else (self.copies,) * len(cost)
        if len(copies) != len(cost):
            raise InputError(
                f"repeated matching: copies are given for {len(copies)} layers, predictions of {len(cost)}"
            )
        starts, pairs = np.cumsum([0, *counts]), [np.zeros((4, 0), dtype=np.int64)]
        for layer, table in enumerate(cost):
            for image, k in self.copies_of_images(copies[layer], counts, table.shape[-1]):
                repeated = table[starts[image] : starts[image + 1]].repeat(k, axis=0)
                copy, query = linear_sum_assignment(repeated)
                where = np.full(len(copy), layer), np.full(len(copy), image)
                pairs.append(np.stack([*where, query, starts[image] + copy // k]))
        return Matches(*torch.from_numpy(np.concatenate(pairs, axis=1)))

    def copies_of_images(self, k: int, counts: Sequence[int], num_queries: int) -> list[tuple[int, int]]:
        """(image, k) of the images that have objects."""
        return [(image, min(k, max(num_queries // 2 // n, 1))) for image, n in enumerate(counts) if n]

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        found = super().decisions(matches, predictions, targets)
        return Decisions(**vars(found) | {"limit": found.matched.sum(-1)})


@dataclass(frozen=True)
class ReleasedRepeatedMatcher(RepeatedHungarianMatcher):
    """What the released code of Align-DETR does: where k is lowered for an image, it stays so for the images after it.
    Not the default."""

    def copies_of_images(self, k: int, counts: Sequence[int], num_queries: int) -> list[tuple[int, int]]:
        found = []
        for image, n in enumerate(counts):
            if n:
                k = min(k, max(num_queries // 2 // n, 1))
                found.append((image, k))
        return found
