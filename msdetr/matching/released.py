"""The one-to-many rule of the released MS-DETR code, kept to reproduce its training. Not the paper's, not the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .explain import Decisions, Status, pair_table
from .one_to_many import OneToManyMatcher, chosen_pairs, favourite
from .score import largest, places, score


@dataclass(frozen=True)
class ReleasedOneToMany(OneToManyMatcher):
    """What the released code does where the paper describes Algorithm 1.

    1. A query is positive if its highest score reaches tau (>=), or if it is the best query of some object, even
       under tau; it votes for the object it scores highest with.
    2. If more than ``positive_fraction`` of the queries are positive, a random subset of that many is kept.
    3. An object with n votes takes the first min(n, k) of the k best queries of its raw score row. These need not be
       the ones that voted for it: a query can serve two objects, and an object can go without any.

    Paper: Algorithm 1.  Released: the above, and a crash for k > N.  Here: the above, k clamped.
    Ties: of several best queries the one with the lowest index counts. ``exclusive`` has no
    meaning here. Pairs of a layer are sorted by ascending score.
    """

    exclusive: bool = False
    positive_fraction: float = 0.25

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        table = score(predictions, targets, self.alpha, self.eps)  # [K, T, Q]
        best, query = largest(table, self.k)
        vote = favourite(table, targets)
        # a query is in the running through its highest score, or as the best query of any object of its image
        slots = (len(table), targets.num_images, table.shape[-1])
        image = targets.image[None].expand(table.shape[:2])
        is_best = torch.zeros(slots, dtype=torch.bool, device=table.device)
        if len(targets) and query.shape[-1]:
            layer = torch.arange(len(table), device=table.device)[:, None].expand_as(image)
            # a tensor of the device: a number of the host would be copied there, and waited for
            is_best[layer, image, query[..., 0]] = torch.ones_like(image, dtype=torch.bool)
        positive = vote & ((table >= self.threshold) | is_best[:, targets.image])
        return best, query, positive

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        best, query, positive = host
        self.check_k(predictions)
        limit = self.most_positives(positive.shape[-1])
        votes = capped(positive, targets, limit).sum(-1)  # [K, T]
        rank = torch.arange(best.shape[-1])
        return self.pairs(rank < votes[..., None], best, query, targets)

    def most_positives(self, num_queries: int) -> int:
        """Of an image and layer."""
        return int(num_queries * self.positive_fraction)

    def pairs(self, chosen: Tensor, best: Tensor, query: Tensor, targets: Targets) -> Matches:
        """In an order in which the last pair of a query gives it its class."""
        return chosen_pairs(chosen, best, query, targets)

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        """k others come before a query, or as many as the object has votes; how many these are, the matches say."""
        return voted_decisions(matches, score(predictions, targets, self.alpha, self.eps), self.k)


def capped(
    positive: Tensor, targets: Targets, limit: int, permutation: Callable[[int], Tensor] = torch.randperm
) -> Tensor:
    """[K, T, Q] bool: the votes of at most ``limit`` queries of each layer and image, a random subset where there are
    more: the first of them in the order that ``permutation`` gives so many."""
    voting = torch.stack([votes.any(1) for votes in positive.split(targets.counts.tolist(), dim=1)], dim=1)  # [K, B, Q]
    kept = positive.clone()
    for layer, b in (voting.sum(-1) > limit).nonzero().tolist():
        queries, objects = voting[layer, b].nonzero().flatten(), (targets.image == b).nonzero()
        kept[layer, objects, queries[permutation(len(queries))[limit:]]] = False
    return kept


def voted_decisions(matches: Matches, table: Tensor, k: int) -> Decisions:
    """Where an object takes as many of its k best queries as voted for it. table: [K, T, Q] what is compared."""
    place = places(table)
    matched = pair_table(matches, place.shape)
    votes = matched.sum(-1)  # of the one random draw that made the matches
    return Decisions(
        matches,
        matched,
        {
            Status.LOST: torch.zeros_like(matched),
            Status.BEYOND: place > k,
            Status.UNVOTED: (place > votes[..., None]) & (place <= k),
        },
        place,
        limit=votes,
        rival=torch.full_like(place, -1),
        added=torch.zeros_like(matched),
    )


@dataclass(frozen=True)
class ReleasedMrDETR(ReleasedOneToMany):
    """The rule as the released code of Mr.DETR has it. It differs from that of MS-DETR in two numbers and an order: up to 225
    queries of an image are positive, a quarter of 900, whatever the model has; a query that serves two objects has the class
    of the one that comes later (there on a CPU; here on every device)."""

    def most_positives(self, num_queries: int) -> int:
        return 225

    def pairs(self, chosen: Tensor, best: Tensor, query: Tensor, targets: Targets) -> Matches:
        layer, target, rank = chosen.nonzero(as_tuple=True)  # by layer, then by object
        return Matches(layer, targets.image[target], query[layer, target, rank], target)
