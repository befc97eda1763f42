"""One-to-many matching: Section C and Algorithm 1 of the paper, and the optional merge with one-to-one pairs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .explain import Decisions, Status, object_served, pair_table
from .score import largest, places, score


@dataclass(frozen=True)
class OneToManyMatcher(Matcher):
    """Each object gets the queries that score highest with it: score > tau, the k best at most (Algorithm 1).

    score(i, j) = alpha * s_i[c_j] + (1 - alpha) * IoU(b_i, b_j).

    exclusive=True (Section C's text): a query first goes to the object it scores highest with, so it serves at most
    one. exclusive=False (Algorithm 1 as listed): a query may serve several objects.

    Ties (F49): a query that scores alike with two objects goes to the one that comes first; of two queries that score
    alike with an object the one with the lower index is taken. Pairs are sorted by layer, then by ascending score, so
    where a query serves two objects the one with the higher score gives it its class.

    eps is added to the areas that IoU divides by (Mr.DETR's code: 1e-6).

    Paper: score > tau.  Released: score >= tau, and more (see ``ReleasedOneToMany``).  Here: score > tau.

    Raises InputError for alpha or threshold outside [0, 1] or NaN, or k < 1 (F47). k above the number of queries is
    clamped, with a warning (F46).
    """

    alpha: float = 0.3
    threshold: float = 0.4
    k: int = 6
    exclusive: bool = True
    eps: float = 0.0

    def __post_init__(self):
        for name in ("alpha", "threshold"):
            value = getattr(self, name)
            if math.isnan(value) or not 0 <= value <= 1:
                raise InputError(f"one-to-many matching: {name} must be in [0, 1], got {value}")
        if self.k < 1:
            raise InputError(f"one-to-many matching: k must be at least 1, got {self.k}")

    @property
    def most(self) -> int:
        return self.k

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        table = score(predictions, targets, self.alpha, self.eps)  # [K, T, Q]
        if self.exclusive:
            table = table.masked_fill(~favourite(table, targets), -1)
        return largest(table, self.k)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        best, query = host
        self.check_k(predictions)
        return chosen_pairs(self.good(best), best, query, targets)

    def good(self, value: Tensor) -> Tensor:
        """Whether a score is enough for a pair."""
        return value > self.threshold

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        """A query's score is not above tau, or it competes for another object (exclusive), or k others come before it."""
        table = score(predictions, targets, self.alpha, self.eps)
        competes = favourite(table, targets) if self.exclusive else torch.ones_like(table, dtype=torch.bool)
        place = places(table, competes)
        matched = pair_table(matches, table.shape)
        rival = object_served(competes, targets) if self.exclusive else torch.full_like(place, -1)
        return Decisions(
            matches,
            matched,
            {Status.BELOW: ~self.good(table), Status.LOST: ~competes, Status.BEYOND: place > self.k},
            place,
            limit=torch.full(table.shape[:2], self.k),
            rival=rival.masked_fill(competes, -1),
            added=torch.zeros_like(matched),
        )

    def check_k(self, predictions: Predictions) -> None:
        """Warns where k is more than there are queries (F46)."""
        num_queries = predictions.logits.shape[2]
        if 0 < num_queries < self.k:
            warnings.warn(
                f"one-to-many matching: k = {self.k} is more than the {num_queries} queries; using all", stacklevel=5
            )


def favourite(table: Tensor, targets: Targets) -> Tensor:
    """[K, T, Q] bool: whether object t is the one of its image that the query scores highest with, the first of them
    where several are."""
    depth, num_targets, num_queries = table.shape
    if num_targets == 0:
        return torch.zeros_like(table, dtype=torch.bool)
    image = targets.image[None, :, None].expand_as(table)
    best = table.new_full((depth, targets.num_images, num_queries), -math.inf).scatter_reduce(1, image, table, "amax")
    number = torch.arange(num_targets, device=table.device)[None, :, None].expand_as(table)
    contender = number.masked_fill(table < best[:, targets.image], num_targets)
    first = torch.full_like(best, num_targets, dtype=torch.long).scatter_reduce(1, image, contender, "amin")
    return first[:, targets.image] == number


def chosen_pairs(chosen: Tensor, value: Tensor, query: Tensor, targets: Targets) -> Matches:
    """The pairs of the true entries of [K, T, k], sorted by layer, then by ascending value."""
    layer, target, rank = chosen.nonzero(as_tuple=True)
    pairs = Matches(layer, targets.image[target], query[layer, target, rank], target)
    order = value[layer, target, rank].sort(stable=True).indices
    return pairs.select(order[layer[order].sort(stable=True).indices])


def merge_matches(
    one_to_many: Matches, one_to_one: Matches, num_queries: int, num_images: int, exclusive: bool = True
) -> Matches:
    """Adds the one-to-one pairs that one-to-many matching missed (paper: +0.1 to 0.2 AP).

    exclusive=True: a query serves one object; where it would serve two, the one-to-many pair stays and the one-to-one
    pair is not added (what the released code does as well), and of two one-to-many pairs the later one stays.
    exclusive=False: every one-to-one pair that is not yet present is added, before the one-to-many pairs of its layer: of the
    objects that a query serves, the one that scores highest still gives it its class.
    """
    both = [torch.cat([a, b]) for a, b in zip(_columns(one_to_one), _columns(one_to_many))]
    layer, image, query, target = both
    slot = (layer * num_images + image) * num_queries + query
    if exclusive:
        key = slot
    else:
        key = slot * (int(target.max()) + 1 if len(target) else 1) + target
    order = key.sort(stable=True).indices
    key = key[order]
    last = torch.ones_like(key, dtype=torch.bool)  # of pairs with the same key, the last written stays
    last[:-1] = key[1:] != key[:-1]
    kept = order[last]
    if not exclusive:
        kept = kept.sort().values
        kept = kept[layer[kept].sort(stable=True).indices]
    return Matches(*(column[kept] for column in both))


def _columns(matches: Matches) -> tuple[Tensor, ...]:
    return matches.layer, matches.image, matches.query, matches.target
