"""LW-DETR's queries: learned contents, and boxes that are learned offsets to proposals which every group makes for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..modules import BoxHead, Linear, Pyramid, class_head
from ..structures import EncoderOutput, Predictions, QueryGroup, Targets
from .coding import BoxCoding
from .query_selection import PRIMARY, Proposals, QuerySource, anchor_boxes, no_positions, refuse_ranking

FewTokens = Literal["fewer", "learned"]


class Proposer(nn.Module):
    """Of one group: which tokens it takes, by their best class, and the boxes it proposes for them."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.projection = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.class_head = class_head(dim, num_classes)
        self.box_head = BoxHead(dim)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(
        self, memory: Pyramid, anchors: Tensor, usable: Tensor, count: int, coding: BoxCoding
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the ``count`` best tokens of an image: their numbers [B, T], class logits [B, T, C] and boxes [B, T, 4]. anchors
        [B, S, 4]; usable [B, S] bool."""
        tokens = memory.tokens.masked_fill(~usable[..., None], 0)
        features = self.norm(self.projection(tokens))
        logits, boxes = self.class_head(features), coding(anchors, self.box_head(features))
        boxes = boxes.masked_fill(~usable[..., None], coding.unusable)
        selected = logits.amax(-1).topk(min(count, logits.shape[1]), dim=1).indices
        at = selected[..., None]
        return (
            selected,
            logits.gather(1, at.expand(-1, -1, logits.shape[-1])),
            boxes.gather(1, at.expand(-1, -1, 4)),
        )


class FurtherProposers(nn.ModuleList):
    """Those of the groups that only training has."""

    training_only = True


class OffsetQueries(QuerySource):
    """Learned contents, and reference boxes that are learned offsets to a group's proposals; in a one-stage model the boxes
    are learned themselves. The decoder makes positions in every layer.

    groups: all, the primary one included; the others have proposers of their own and are ``FurtherOffsetQueries``.
    few_tokens: see ``LWDETRConfig``.
    """

    training_only = False

    def __init__(
        self,
        dim: int,
        num_queries: int,
        num_classes: int,
        groups: int,
        two_stage: bool,
        coding: BoxCoding,
        few_tokens: FewTokens = "fewer",
    ):
        super().__init__()
        self.num_queries, self.coding, self.few_tokens = num_queries, coding, few_tokens
        self.ranked = num_queries if two_stage else 0
        self.contents = nn.Embedding(num_queries, dim)
        self.offsets = learned_offsets(num_queries, two_stage)
        self.proposer = Proposer(dim, num_classes) if two_stage else None
        further = groups - 1 if two_stage else 0
        self.further_proposers = (
            FurtherProposers(Proposer(dim, num_classes) for _ in range(further)) if further else None
        )

    def propose(self, memory: Pyramid, ranked: int, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        """The proposals of each group along the depth dimension of the encoder's predictions [G, B, T, C]; of the primary
        group alone where no other source asks for any."""
        if self.proposer is None:
            refuse_ranking(ranked)
            return Proposals(memory, offset_boxes=self.boxes)
        anchors, usable = anchor_boxes(memory)
        anchors = anchors.masked_fill(~usable[..., None], self.coding.unusable)
        proposers = [self.proposer, *(self.further_proposers or [])][: ranked // self.num_queries]
        found = [proposer(memory, anchors, usable, self.num_queries, self.coding) for proposer in proposers]
        selected, logits, boxes = (torch.stack(column) for column in zip(*found))
        output = EncoderOutput(Predictions(logits, boxes), anchors)
        return Proposals(memory, output, ranking=selected.transpose(0, 1).flatten(1), offset_boxes=self.boxes)

    def boxes(self, proposed: Tensor | None, offsets: Tensor) -> Tensor:
        """References [B, Q, 4] (or [Q, 4] without proposals) from learned offsets [Q, 4] to proposals [B, T, 4], T <= Q: those
        without a proposal start where they are learned."""
        if proposed is None:
            return self.coding.start(offsets)
        count = proposed.shape[1]
        rest = self.coding.start(offsets[count:]).expand(proposed.shape[0], -1, -1)
        return torch.cat([self.coding(proposed, offsets[:count]), rest], dim=1)

    def forward(self, proposals, targets=None, earlier=None) -> QueryGroup:
        return offset_group(PRIMARY, proposals, self, first=0, groups=1)


class FurtherOffsetQueries(QuerySource):
    """The groups after the primary one, as parts of one: with contents, offsets and proposals of their own."""

    def __init__(self, name: str, dim: int, num_queries: int, groups: int, two_stage: bool, few_tokens: FewTokens):
        super().__init__()
        self.name, self.groups, self.num_queries, self.few_tokens = name, groups, num_queries, few_tokens
        self.ranked = (groups - 1) * num_queries if two_stage else 0
        self.contents = nn.Embedding((groups - 1) * num_queries, dim)
        self.offsets = learned_offsets((groups - 1) * num_queries, two_stage)

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        group = offset_group(self.name, proposals, self, first=1, groups=self.groups - 1)
        return replace(group, parts=self.groups - 1, divisor=self.groups)


def learned_offsets(count: int, two_stage: bool) -> nn.Embedding:
    """Offsets that start at zero, so that queries start at their proposals; boxes anywhere where there are none."""
    offsets = nn.Embedding(count, 4)
    if two_stage:
        nn.init.zeros_(offsets.weight)
    return offsets


def offset_group(
    name: str,
    proposals: Proposals,
    source: OffsetQueries | FurtherOffsetQueries,
    first: int,
    groups: int,
) -> QueryGroup:
    """The queries of so many groups, the ``first`` of them numbered over all groups."""
    contents, offsets, size = source.contents.weight, source.offsets.weight, source.num_queries
    batch = proposals.memory.tokens.shape[0]
    proposed = selected = None
    if proposals.encoder is not None:
        found = proposals.encoder.predictions.boxes.detach()  # [G, B, T, 4]
        taken = found.shape[2]
        if source.few_tokens == "fewer" and taken < size:
            contents, offsets = (x.unflatten(0, (groups, size))[:, :taken].flatten(0, 1) for x in (contents, offsets))
            size = taken
        where = slice(first * size, (first + groups) * size)
        proposed = found.transpose(0, 1).flatten(1, 2)[:, where]
        selected = proposals.ranking[:, where] if taken == size else None
    references = proposals.offset_boxes(proposed, offsets).expand(batch, -1, -1)
    positions = no_positions(references, proposals.memory)
    return QueryGroup(name, contents.expand(batch, -1, -1), positions, references, selected=selected)
