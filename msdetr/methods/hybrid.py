"""Hybrid matching (H-DETR; Jia et al., "DETRs with Hybrid Matching", CVPR 2023): a second query group, supervised
one-to-one with every object repeated k times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from torch import nn

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..model import Proposals, QuerySource
from ..structures import DetectorOutput, QueryGroup, Targets
from .base import Method, hungarian, weighted_terms


@dataclass(frozen=True)
class HybridConfig:
    """The second query group and its supervision. Defaults are those published for COCO."""

    queries: Annotated[int, Range(1, 10**6)] = 1500  # beyond model.num_queries
    k: Annotated[int, Range(1, 10**6)] = 6  # copies of every object
    weight: Annotated[float, Range(0, 10**6)] = 1.0  # lambda: of the group's losses beside the primary group's

    def check(self, run: RunConfig) -> None:
        if "dab" in run.methods:
            raise ConfigError(
                "hybrid: learns where its queries start as Deformable DETR does, from points, and dab has boxes; switch one "
                "of them off (hybrid=null or dab=null)"
            )


class HybridQueries(QuerySource):
    """The proposals that rank next after those of the primary group; contents are learned in mixed selection, else they
    come from the proposals. An image with fewer tokens has fewer of these queries."""

    def __init__(self, dim: int, queries: int, copies: int, mixed: bool):
        super().__init__()
        self.ranked = queries
        self.copies = copies
        self.contents = nn.Embedding(queries, dim) if mixed else None

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        first = earlier["primary"].selected.shape[1]
        selected = proposals.ranking[:, first : first + self.ranked]
        references = proposals.references(selected)
        positions, contents = proposals.embed(references, selected)
        if self.contents is not None:
            contents = self.contents.weight[: selected.shape[1]].expand(len(selected), -1, -1)
        return _repeating(self.copies, targets, contents, positions, references, selected)


class LearnedHybridQueries(QuerySource):
    """Of a one-stage model: contents and positions are learned, references are read off as those of the primary group."""

    def __init__(self, dim: int, queries: int, copies: int):
        super().__init__()
        self.copies = copies
        self.embedding = nn.Embedding(queries, 2 * dim)

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        batch = len(proposals.memory.tokens)
        positions, contents = self.embedding.weight.expand(batch, -1, -1).chunk(2, dim=-1)
        return _repeating(self.copies, targets, contents, positions, proposals.points(positions))


def _repeating(copies: int, targets: Targets, contents, positions, references, selected=None) -> QueryGroup:
    """The group, supervised with every object so many times."""
    return QueryGroup(
        Hybrid.name,
        contents,
        positions,
        references,
        targets=targets.repeated(copies),
        divisor=copies,
        selected=selected,
    )


class Hybrid(Method):
    """H-DETR, Section 3.2 ("hybrid branch scheme"), on this package's model.

    Both groups pass the same decoder; self-attention is apart both ways, so the primary group's predictions are those
    of a model without the other. Its branch divides by its own number of targets, k times the objects.

    Released: at least 1 target after the repetition.   Here: at least 1 object before it, so the divisor of a batch
    without objects is k; ``loss.floor=product`` is as released.
    Released: the encoder is matched on its predicted boxes with the class cost.   Here: on anchors without it, as in
    MS-DETR, for every method alike; ``two_stage.match_on=boxes`` is as released.
    The recipe coco/h-detr-300 has both as released.

    With ``ms_detr.groups=all`` the candidates of this group are supervised one-to-many with the objects as they are,
    not repeated, at the weights of ``ms_detr``.
    """

    name = "hybrid"
    Config = HybridConfig

    def sources(self) -> Mapping[str, QuerySource]:
        own, dim, two_stage = self.config, self.run.model.hidden_dim, self.run.two_stage
        if two_stage is None:
            return {self.name: LearnedHybridQueries(dim, own.queries, own.k)}
        return {self.name: HybridQueries(dim, own.queries, own.k, two_stage.mixed_selection)}

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        terms = weighted_terms(self.run.loss, self.run, self.config.weight)
        return [Branch(self.name, of_group(self.name), hungarian(self.run), terms)]

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        own = f"one_to_many_{self.name}"
        return [replace(b, select=_unrepeated(b.select)) if b.name == own else b for b in branches]


def _unrepeated(select):
    """Supervises the same predictions with the objects of the batch."""

    def selected(output: DetectorOutput, targets: Targets):
        given = select(output, targets)
        return given and replace(given, targets=targets, divisor=1.0)

    return selected
