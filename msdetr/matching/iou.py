"""Assignment by overlap alone, as in detectors before DETR (DETA; Ouyang-Zhang et al., "NMS Strikes Back", 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import count, fraction
from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .explain import Decisions, Status, object_served, pair_table
from .one_to_many import chosen_pairs, favourite
from .released import capped, voted_decisions
from .score import largest, pair_iou, places


@dataclass(frozen=True)
class IoUMatcher(Matcher):
    """Each object gets the queries that overlap it: IoU >= threshold, the k best at most, the best one in any case.

    1. A query goes to the object that it overlaps most, so it serves one object at most.
    2. Of its queries an object takes those whose IoU reaches the threshold, and the best one even below it.
    3. It takes the k best of them at most.
    Classes play no part, and a pair without any overlap is none.

    Released: an object's best query is positive below the threshold, but may serve another object (see
    ``ReleasedIoUMatcher``).  Here: the best of those that overlap no other object more, so that it does serve that object.

    Ties: a query that overlaps two objects alike goes to the first; of two queries that overlap an object alike the one
    with the lower index is taken. Pairs are sorted by layer, then by ascending IoU.

    Raises InputError for a threshold outside [0, 1] or k < 1. k above the number of queries is clamped, with a warning.
    """

    threshold: float = 0.6
    k: int = 4

    def __post_init__(self):
        fraction(self.threshold, "IoU matching: threshold")
        count(self.k, "IoU matching: k")

    @property
    def most(self) -> int:
        return self.k

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        table = pair_iou(predictions, targets)  # [K, T, Q]
        return largest(table.masked_fill(~favourite(table, targets), -1), self.k)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        best, query = host
        self.check_k(predictions)
        first = torch.arange(best.shape[-1]) == 0
        return chosen_pairs((best > 0) & ((best >= self.threshold) | first), best, query, targets)

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        """A query overlaps too little, or overlaps another object more, or k others come before it."""
        table = pair_iou(predictions, targets)
        competes = favourite(table, targets)
        place = places(table, competes)
        best = competes & (place == 1)
        matched = pair_table(matches, table.shape)
        return Decisions(
            matches,
            matched,
            {
                Status.BELOW: (table <= 0) | ((table < self.threshold) & ~best),
                Status.LOST: ~competes,
                Status.BEYOND: place > self.k,
            },
            place,
            limit=torch.full(table.shape[:2], self.k),
            rival=object_served(competes, targets).masked_fill(competes, -1),
            added=torch.zeros_like(matched),
        )

    def check_k(self, predictions: Predictions) -> None:
        """Warns where k is more than there are queries (F46)."""
        num_queries = predictions.logits.shape[2]
        if 0 < num_queries < self.k:
            warnings.warn(f"IoU matching: k = {self.k} is more than the {num_queries} queries; using all", stacklevel=5)


@dataclass(frozen=True)
class ReleasedIoUMatcher(IoUMatcher):
    """What the released code of DETA does, kept to reproduce its training. Not the default.

    1. A query is positive if its highest IoU reaches the threshold, or if no query overlaps some object more than it
       does, even below the threshold; it votes for the object that it overlaps most.
    2. If more than ``cap`` queries are positive, a random subset of that many is kept (``permutation`` draws it).
    3. An object with n votes takes the first min(n, k) queries of its whole row of IoUs. These need not be the ones that
       voted for it: a query can serve two objects, and an object can go without any.

    So an object that nothing overlaps makes every query that overlaps nothing positive, and takes up to k of them.
    Released: k above the number of queries crashes.  Here: clamped.
    Pairs are sorted by layer and object: a query with two objects has the class of the later one.

    cap: None for no limit. Released: 128 in the encoder, a quarter of the queries in the decoder.
    """

    cap: int | None = None
    permutation: Callable[[int], Tensor] = torch.randperm

    def __post_init__(self):
        super().__post_init__()
        if self.cap is not None:
            count(self.cap, "IoU matching: cap", least=0)

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        table = pair_iou(predictions, targets)
        best, query = largest(table, self.k)
        return best, query, self.positive(table, targets)

    def positive(self, table: Tensor, targets: Targets) -> Tensor:
        """[K, T, Q] bool: which query votes for which object, from IoUs [K, T, Q]."""
        image = targets.image[None, :, None].expand_as(table)
        is_best = (table == table.amax(-1, keepdim=True)).long() if table.numel() else table.long()
        of_any = is_best.new_zeros(len(table), targets.num_images, table.shape[-1]).scatter_reduce(
            1, image, is_best, "amax"
        )
        return favourite(table, targets) & ((table >= self.threshold) | of_any[:, targets.image].bool())

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        _, query, positive = host
        self.check_k(predictions)
        limit = positive.shape[-1] if self.cap is None else self.cap
        votes = capped(positive, targets, limit, self.permutation).sum(-1)  # [K, T]
        layer, target, rank = (torch.arange(query.shape[-1]) < votes[..., None]).nonzero(as_tuple=True)
        return Matches(layer, targets.image[target], query[layer, target, rank], target)

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        return voted_decisions(matches, pair_iou(predictions, targets), self.k)
