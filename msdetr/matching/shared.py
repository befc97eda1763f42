"""One assignment that serves every decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .explain import Decisions


@dataclass(frozen=True)
class SharedMatcher(Matcher):
    """What a matcher finds in the first layer, for all K layers: for boxes that are the same in all of them, as the
    references that queries start from. A rule that draws random numbers draws them once."""

    matcher: Matcher

    @property
    def each_object(self) -> int | None:
        return self.matcher.each_object

    @property
    def most(self) -> int | None:
        return self.matcher.most

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        return self.matcher.prepare(predictions.layer(0), targets)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        found, depth = self.matcher.assign(host, predictions.layer(0), targets), len(predictions.logits)
        columns = (getattr(found, name).repeat(depth) for name in ("image", "query", "target"))
        return Matches(torch.arange(depth).repeat_interleave(len(found)), *columns)

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        first = self.matcher.decisions(matches.select(matches.layer == 0), predictions.layer(0), targets)
        depth = len(predictions.logits)

        def in_all(table: Tensor) -> Tensor:
            return table.expand(depth, *table.shape[1:]).clone()

        tables = {name: in_all(getattr(first, name)) for name in ("matched", "place", "limit", "rival", "added")}
        obstacles = {status: in_all(table) for status, table in first.obstacles.items()}
        return replace(first, matches=matches, obstacles=obstacles, **tables)
