"""What a matcher decided about every pair of a query and an object of the same image, and what stood in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from ..structures import Matches, Targets


class Status(StrEnum):
    """What became of a pair (query, object); the first that applies."""

    MATCHED = "matched"
    MERGED = "merged"  # one-to-many only: added because it is a one-to-one pair
    BELOW = "dropped by τ"
    LOST = "lost to another object"
    BEYOND = "beyond k"
    UNVOTED = "beyond its votes"  # released rule only: the object takes as many queries as voted for it
    TAKEN = "serves another object"  # one-to-one only
    COSTLIER = "another query costs less"  # one-to-one only
    BACKGROUND = "is to find nothing"  # known pairs only: a negative, or a query that fills up its group


STATUSES = tuple(Status)


@dataclass(frozen=True)
class Decisions:
    """A matcher's decisions, on the CPU.

    matches: what the matcher returns.   matched: [K, T, Q] bool, the same as a table.
    obstacles: what stands in the way of a pair, each [K, T, Q] bool, in the order in which they are named. A pair that the
    matcher itself made has none.
    place: [K, T, Q] 1-based rank of the query among those that compete for the object, were it one of them.
    limit: [K, T] number of queries the object may take.
    rival: [K, T, Q] the object that the query goes to instead, -1 where there is none.
    added: [K, T, Q] bool, the pairs taken over from another matcher.
    """

    matches: Matches
    matched: Tensor
    obstacles: Mapping[Status, Tensor]
    place: Tensor
    limit: Tensor
    rival: Tensor
    added: Tensor

    @property
    def status(self) -> Tensor:
        """[K, T, Q] index into ``STATUSES``: matched or merged, else the first obstacle."""
        status = torch.full(self.matched.shape, -1, dtype=torch.int64)
        for name, here in reversed(self.obstacles.items()):
            status[here] = STATUSES.index(name)
        status[self.matched] = STATUSES.index(Status.MATCHED)
        status[self.added] = STATUSES.index(Status.MERGED)
        return status

    def merged(self, matches: Matches, targets: Targets) -> Decisions:
        """After merging: ``matches`` is what ``merge_matches`` made of these. A pair that had to give way is lost to the
        object that the query serves now."""
        matched = pair_table(matches, self.matched.shape)
        gone = self.matched & ~matched
        obstacles = dict(self.obstacles)
        obstacles[Status.LOST] = obstacles.get(Status.LOST, torch.zeros_like(gone)) | gone
        rival = self.rival.where(~gone, object_served(matched, targets))
        return replace(
            self, matches=matches, matched=matched, obstacles=obstacles, rival=rival, added=matched & ~self.matched
        )


def known_pairs(pairs: Matches, place: Tensor, targets: Targets) -> Decisions:
    """Pairs that were known, and not decided by any matcher. place: [K, T, Q], as in ``Decisions``."""
    matched = pair_table(pairs, place.shape)
    served = object_served(matched, targets)
    return Decisions(
        pairs,
        matched,
        {Status.TAKEN: ~matched & (served >= 0), Status.BACKGROUND: served < 0},
        place,
        limit=matched.sum(-1),
        rival=served.masked_fill(matched, -1),
        added=torch.zeros_like(matched),
    )


def pair_table(matches: Matches, shape: torch.Size) -> Tensor:
    """[K, T, Q] bool: whether a pair is matched."""
    table = torch.zeros(shape, dtype=torch.bool)
    table[matches.layer, matches.target, matches.query] = True
    return table


def object_served(pairs: Tensor, targets: Targets) -> Tensor:
    """[K, T, Q]: the object of t's image that the query is paired with in ``pairs`` [K, T, Q] bool (the last of several),
    -1 where there is none."""
    depth, num_targets, num_queries = pairs.shape
    image = targets.image[None, :, None].expand_as(pairs)
    number = torch.arange(num_targets)[None, :, None].expand_as(pairs).masked_fill(~pairs, -1)
    served = torch.full((depth, targets.num_images, num_queries), -1).scatter_reduce(1, image, number, "amax")
    return served[:, targets.image]
