"""Where the decoder's queries come from: learned (one-stage), the encoder's best proposals (two-stage), or further
sources that only training has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modules import BoxHead, Linear, Pyramid, class_head, sine_embedding_of_boxes
from ..structures import EncoderOutput, Predictions, QueryGroup, Targets
from .ranking import Ranking, most_object_like

PRIMARY = "primary"  # the group whose predictions are the detector's answer


@dataclass(frozen=True)
class Proposals:
    """What query sources choose from.

    memory: the encoded image.   encoder: every token's proposal, None for a one-stage model; the next three too:
    box_logits: [B, S, 4] the proposed boxes, with gradient.
    ranking: [B, R] tokens, most object-like first, as many as all sources together ask for or there are.
    embed: reference boxes [B, Q, 4] and, where they are proposals, their tokens [B, Q] -> positions and contents
    [B, Q, C], as the primary source makes them.
    points: of a one-stage model, positions [B, Q, C] -> reference points [B, Q, 2], as the primary source makes them.
    by: number ranked, class head, box head -> what other heads make of the same tokens.
    offset_boxes: proposals [B, T, 4] (None: there are none) and learned offsets [Q, 4] -> references, as above.
    """

    memory: Pyramid
    encoder: EncoderOutput | None = None
    box_logits: Tensor | None = None
    ranking: Tensor | None = None
    embed: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]] | None = None
    points: Callable[[Tensor], Tensor] | None = None
    by: Callable[[int, nn.Module, nn.Module], Proposals] | None = None
    offset_boxes: Callable[[Tensor | None, Tensor], Tensor] | None = None

    def references(self, selected: Tensor) -> Tensor:
        """[B, Q, 4]: the proposed boxes of tokens [B, Q], without gradient."""
        return self.box_logits.gather(1, selected[..., None].expand(-1, -1, 4)).detach().sigmoid()


class QuerySource(nn.Module):
    """Makes one query group.

    training_only: whether evaluation does without; the module is then removed by ``strip``.
    ranked: how many of the encoder's proposals it takes, after those of the sources before it.
    """

    training_only: ClassVar[bool] = True
    ranked: int = 0

    def forward(self, proposals: Proposals, targets: Targets | None, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        """proposals: of the encoder.   targets: of the batch; None for a source that evaluation runs, too.
        earlier: the groups made so far, the primary one first."""
        raise NotImplementedError


class LearnedQueries(QuerySource):
    """One-stage: contents and positions are learned, a reference point is read off each position."""

    training_only = False

    def __init__(self, dim: int, num_queries: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * dim)
        self.reference_points = Linear(dim, 2)
        self.reference_points.lr_group = "projection"
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def propose(self, memory: Pyramid, ranked: int, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        refuse_ranking(ranked)
        return Proposals(memory, points=self.points)

    def forward(self, proposals, targets=None, earlier=None) -> QueryGroup:
        batch = proposals.memory.tokens.shape[0]
        positions, contents = self.embedding.weight.expand(batch, -1, -1).chunk(2, dim=-1)
        return QueryGroup(PRIMARY, contents, positions, self.points(positions))

    def points(self, positions: Tensor) -> Tensor:
        return self.reference_points(positions).sigmoid()


class LearnedBoxQueries(QuerySource):
    """One-stage, DAB-DETR: contents and reference boxes are learned; the decoder makes positions in every layer.

    indicator: contents have a last channel of 0, for denoising queries that have a 1 there (DN-DETR, Section 4.3).
    """

    training_only = False

    def __init__(self, dim: int, num_queries: int, indicator: bool = False):
        super().__init__()
        self.indicator = indicator
        self.contents = nn.Embedding(num_queries, dim - indicator)
        self.references = nn.Embedding(num_queries, 4)  # logits

    def propose(self, memory: Pyramid, ranked: int, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        refuse_ranking(ranked)
        return Proposals(memory, embed=lambda references, selected=None: (no_positions(references, memory), None))

    def forward(self, proposals, targets=None, earlier=None) -> QueryGroup:
        batch = proposals.memory.tokens.shape[0]
        contents = nn.functional.pad(self.contents.weight, (0, int(self.indicator)))
        references = self.references.weight.sigmoid().expand(batch, -1, -1)
        positions, _ = proposals.embed(references)
        return QueryGroup(PRIMARY, contents.expand(batch, -1, -1), positions, references)


class ProposedQueries(QuerySource):
    """Two-stage: every token proposes a box around its own anchor; the most object-like become queries.

    A token's anchor is centred on it, with sides of 5 % of the image on the first level, doubling per level. Tokens on
    padding, or whose anchor's centre or side is not within (0.01, 0.99), have no features and the box (1, 1, 1, 1);
    they keep their place in the ranking.
    Mixed selection (Deformable DETR++): only positions come from proposals, contents are learned.
    own_heads: whether it predicts with heads of its own (a model with refinement) or the decoder's.
    rank_by: what makes a token object-like: its first class logit, or the largest of them.
    ranking: in which order proposals become queries; by that score unless a method sets another.
    """

    training_only = False

    def __init__(
        self,
        dim: int,
        num_queries: int,
        num_classes: int,
        own_heads: bool = True,
        rank_by: Literal["first_class", "best_class"] = "first_class",
    ):
        super().__init__()
        self.num_queries = self.ranked = num_queries
        self.rank_by = rank_by
        self.ranking: Ranking = most_object_like
        self.memory_projection = Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.class_head = class_head(dim, num_classes) if own_heads else None
        self.box_head = BoxHead(dim) if own_heads else None

    def propose(self, memory: Pyramid, ranked: int, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        """Every token's proposal, and the ``ranked`` most object-like tokens; of an image so small that there are fewer, all
        of them. class_head, box_head: the decoder's, used where this module has none of its own."""
        anchors, usable = self.anchors(memory)
        features = memory.tokens.masked_fill(~usable[..., None], 0)
        features = self.memory_norm(self.memory_projection(features))
        heads = self.class_head or class_head, self.box_head or box_head
        return self._proposals(memory, anchors, features, ranked, *heads)

    def _proposals(
        self,
        memory: Pyramid,
        anchors: Tensor,
        features: Tensor,
        ranked: int,
        class_head: nn.Module,
        box_head: nn.Module,
    ) -> Proposals:
        logits = class_head(features)  # [B, S, C]
        box_logits = box_head(features) + anchors  # [B, S, 4]
        output = EncoderOutput(Predictions(logits[None], box_logits.sigmoid()[None]), anchors.sigmoid())
        ranking = self.ranking(self.scores(logits), output.predictions.boxes[0], memory.shapes, ranked)
        embed, by = partial(self.embed, memory, features), partial(self._proposals, memory, anchors, features)
        return Proposals(memory, output, box_logits, ranking, embed, by=by)

    def scores(self, logits: Tensor) -> Tensor:
        """[B, S] by which tokens rank, from their class logits [B, S, C]."""
        return logits[..., 0] if self.rank_by == "first_class" else logits.amax(-1)

    def embed(
        self, memory: Pyramid, features: Tensor, references: Tensor, selected: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Positions and contents of queries, see ``Proposals``. features: [B, S, C] of all tokens."""
        raise NotImplementedError

    def forward(self, proposals, targets=None, earlier=None) -> QueryGroup:
        selected = proposals.ranking[:, : self.num_queries]
        references = proposals.references(selected)
        positions, contents = proposals.embed(references, selected)
        if self.contents is not None:
            contents = self.contents.weight[: selected.shape[1]].expand(selected.shape[0], -1, -1)
        return QueryGroup(PRIMARY, contents, positions, references, selected=selected)

    def anchors(self, memory: Pyramid) -> tuple[Tensor, Tensor]:
        """Logits of the anchors [B, S, 4], infinite where unusable, and which tokens are usable [B, S] bool."""
        boxes, usable = anchor_boxes(memory)
        return torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf), usable


class TokenContents(nn.Module):
    """What a chosen token's feature adds to the content of its query (DETA): [B, Q, C] -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.projection = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.projection(features))


class TwoStageQueries(ProposedQueries):
    """As in Deformable DETR: positions and, without mixed selection, contents are made from the proposed boxes, once for
    all layers.

    token_contents: adds to these contents what it makes of the chosen tokens' features, without their gradient; None
    unless a method sets it.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int,
        num_classes: int,
        mixed: bool,
        own_heads: bool = True,
        rank_by: Literal["first_class", "best_class"] = "first_class",
    ):
        super().__init__(dim, num_queries, num_classes, own_heads, rank_by)
        self.position_projection = Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        self.contents = nn.Embedding(num_queries, dim) if mixed else None
        self.token_contents: TokenContents | None = None
        nn.init.xavier_uniform_(self.memory_projection.weight)
        nn.init.xavier_uniform_(self.position_projection.weight)

    def embed(self, memory, features, references, selected=None):
        sines = sine_embedding_of_boxes(references, features.shape[-1])
        positions, contents = self.position_norm(self.position_projection(sines)).chunk(2, dim=-1)
        if self.token_contents is not None and selected is not None:
            contents = contents + self.token_contents(_of_tokens(features, selected).detach())
        return positions, contents


class ReferenceQueries(ProposedQueries):
    """As in DINO: the decoder makes positions in every layer; without mixed selection contents are the features of the
    chosen tokens, without gradient.

    Released: learned contents start from Xavier's uniform distribution, at a standard deviation of about 0.04 for 900
    queries of 256 channels.   Here: from the standard normal one, as those of Deformable DETR++.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int,
        num_classes: int,
        mixed: bool,
        own_heads: bool = True,
        rank_by: Literal["first_class", "best_class"] = "first_class",
    ):
        super().__init__(dim, num_queries, num_classes, own_heads, rank_by)
        self.contents = nn.Embedding(num_queries, dim) if mixed else None
        nn.init.xavier_uniform_(self.memory_projection.weight)

    def embed(self, memory, features, references, selected=None):
        contents = None
        if selected is not None:
            contents = _of_tokens(features, selected).detach()
        return no_positions(references, memory), contents


def refuse_ranking(ranked: int) -> None:
    """Raises InputError where sources ask a one-stage model for proposals."""
    if ranked:
        raise InputError("a one-stage model has no proposals to rank; use a two-stage model with this method")


def anchor_boxes(memory: Pyramid) -> tuple[Tensor, Tensor]:
    """A box around every token [B, S, 4], and which of them are usable [B, S] bool (see ``ProposedQueries``)."""
    centers = memory.token_centers()
    side = torch.cat([centers.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)])
    boxes = torch.cat([centers, side[None, :, None].expand(centers.shape[0], -1, 2)], dim=-1)
    return boxes, ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~memory.mask


def no_positions(references: Tensor, memory: Pyramid) -> Tensor:
    """Zeros [B, Q, C] in the place of positions that the decoder makes itself."""
    return references.new_zeros(1).expand(*references.shape[:2], memory.tokens.shape[-1])


def _of_tokens(features: Tensor, selected: Tensor) -> Tensor:
    """[B, S, C], tokens [B, Q] -> [B, Q, C]."""
    return features.gather(1, selected[..., None].expand(-1, -1, features.shape[-1]))
