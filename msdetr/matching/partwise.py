"""Any matching, done for each of several groups of queries by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .base import Matcher
from .explain import Decisions


@dataclass(frozen=True)
class PartwiseMatcher(Matcher):
    """Queries are so many equal parts, each of which is matched to all objects as if it were alone.

    The pairs of a part stand together; queries are numbered over all parts.
    """

    matcher: Matcher
    parts: int

    @property
    def each_object(self) -> int | None:
        return None if self.matcher.each_object is None else self.parts * self.matcher.each_object

    @property
    def most(self) -> int | None:
        return None if self.matcher.most is None else self.parts * self.matcher.most

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        prepared = [self.matcher.prepare(part, targets) for part in self._split(predictions)]
        return tuple(tensor for tensors in prepared for tensor in tensors)

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        each, size = len(host) // self.parts, predictions.logits.shape[2] // self.parts
        found = []
        for i, part in enumerate(self._split(predictions)):
            matches = self.matcher.assign(host[i * each : (i + 1) * each], part, targets)
            found.append(replace(matches, query=matches.query + i * size))
        return Matches(*(torch.cat([getattr(m, x) for m in found]) for x in ("layer", "image", "query", "target")))

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        size = predictions.logits.shape[2] // self.parts
        found = []
        for i, part in enumerate(self._split(predictions)):
            own = matches.select(matches.query // max(size, 1) == i)
            found.append(self.matcher.decisions(replace(own, query=own.query - i * size), part, targets))
        tables = {
            name: torch.cat([getattr(one, name) for one in found], -1)
            for name in ("matched", "place", "rival", "added")
        }
        obstacles = {status: torch.cat([one.obstacles[status] for one in found], -1) for status in found[0].obstacles}
        return Decisions(matches, obstacles=obstacles, limit=sum(one.limit for one in found), **tables)

    def _split(self, predictions: Predictions) -> list[Predictions]:
        columns = (predictions.logits.chunk(self.parts, 2), predictions.boxes.chunk(self.parts, 2))
        return [Predictions(*part) for part in zip(*columns, strict=True)]
