"""Any matching, done for each of several groups of queries by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..structures import Matches, Predictions, Targets
from .base import Matcher


@dataclass(frozen=True)
class PartwiseMatcher(Matcher):
    """Queries are so many equal parts, each of which is matched to all objects as if it were alone.

    The pairs of a part stand together; queries are numbered over all parts.
    """

    matcher: Matcher
    parts: int

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

    def _split(self, predictions: Predictions) -> list[Predictions]:
        columns = (predictions.logits.chunk(self.parts, 2), predictions.boxes.chunk(self.parts, 2))
        return [Predictions(*part) for part in zip(*columns, strict=True)]
